"""What arms took and what was spared: each number equals its own words, done by hand."""

from __future__ import annotations

import re
from pathlib import Path

import fake_run
import polars as pl
import pytest

from comkd_ray import costs, report, results, run, study_file

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """22 arms of 9 epochs, four pruned after 2."""
    rows = fake_run.searched_arms()
    for row, _ in rows:
        row["train.epochs"] = 9
    return fake_run.write(tmp_path, rows)


@pytest.fixture
def arms(folder: Path) -> pl.DataFrame:
    return results.read_arms(folder)


@pytest.fixture
def epochs(folder: Path) -> pl.DataFrame:
    return results.read_epochs(folder)


def test_costs_add_up(arms: pl.DataFrame) -> None:
    found = {cost.what: cost for cost in costs.costs(arms, False)}
    every = found["all arms"]
    assert (every.arms, every.seconds) == (22, pytest.approx(sum(arms["seconds"])))
    assert found["full budget"].arms + found["pruned"].arms + found["failed"].arms == 22
    methods = [cost for what, cost in found.items() if what.startswith("method ")]
    assert sum(cost.seconds for cost in methods) == pytest.approx(every.seconds)
    pruned = arms.filter(pl.col("status") == "pruned")
    assert found["pruned"].an_arm == pytest.approx(sum(pruned["seconds"]) / 4)
    assert found["pruned"].an_epoch == pytest.approx(sum(pruned["seconds"]) / 8)
    assert not any(what.startswith("seed") for what in found)  # one seed


def test_a_grid_is_told_by_variant_and_seed(tmp_path: Path) -> None:
    tree, cells = fake_run.enumerated("stability", 3)
    rows = [fake_run.arm(n, cell, tree=tree) for n, cell in enumerate(cells)]
    stability = run.read(fake_run.write(tmp_path, rows, tree))
    found = {cost.what: cost for cost in costs.costs(stability.arms, True)}
    float16 = stability.arms.filter(
        pl.col("train.precision") == "float16", pl.col("loss.kd_weight") == pl.col("loss.kd_weight").min()
    )
    assert found["variant precision: float16"].seconds == pytest.approx(sum(float16["seconds"]))
    second = stability.arms.filter(pl.col("seed") == 2)
    assert found["seed 2"].seconds == pytest.approx(sum(second["seconds"]))
    assert [what for what in found if what.startswith("seed")] == ["seed 1", "seed 2", "seed 3"]


def test_arms_that_a_fork_copied_are_in_no_cost(tmp_path: Path) -> None:
    rows = fake_run.searched_arms(6)
    for place, (row, _) in enumerate(rows):
        row |= {"seconds": 30.0, "from": "older" if place < 4 else None}
    forked = run.read(fake_run.write(tmp_path, rows))
    every = costs.costs(forked.trained, False)[0]
    assert (every.what, every.arms, every.seconds) == ("all arms", 2, 60.0)


def test_the_bank_spares_what_it_did_not_cost(arms: pl.DataFrame, epochs: pl.DataFrame) -> None:
    """Fake arms save 11 s an epoch."""
    bank, _, _ = costs.savings(arms, epochs, {"bank": 61.0})
    assert bank.seconds == pytest.approx(sum(arms["teacher_seconds_saved"]) - 61)
    unbuilt = costs.savings(arms, epochs, {})[0]
    assert unbuilt.seconds == pytest.approx(sum(arms["teacher_seconds_saved"]))
    assert "not recorded and not subtracted" in unbuilt.how
    nothing = costs.savings(arms.with_columns(teacher_seconds_saved=None), epochs, {"bank": 61.0})[0]
    assert nothing.seconds is None


def test_halving_spares_the_epochs_that_pruned_arms_did_not_run(
    arms: pl.DataFrame, epochs: pl.DataFrame
) -> None:
    """Two epochs ran, of 3.5 s here; seven did not. An arm that stays has its last look to pay as well."""
    slower = epochs.with_columns(seconds=pl.col("seconds") + pl.col("epoch"))
    _, halving, _ = costs.savings(arms.with_columns(seconds=1e6), slower, {})
    assert halving.seconds == pytest.approx(4 * 7 * (3.5 + (1 + 2) / 2))
    assert halving.how.endswith(": 28 epochs of 4 pruned arms")
    without = costs.savings(arms.filter(pl.col("status") == "complete"), epochs, {})[1]
    assert without.seconds == 0.0
    assert costs.savings(arms.drop("train.epochs"), epochs, {})[1].seconds is None
    unread = costs.savings(arms, epochs.clear(), {})[1]
    assert (unread.seconds, unread.how.endswith("rows of their epochs are missing")) == (None, True)


def test_the_cohort_is_not_guessed(arms: pl.DataFrame, epochs: pl.DataFrame) -> None:
    cohort = costs.savings(arms, epochs, {"bank": 1.0})[2]
    assert cohort.seconds is None
    assert "comkd-ray bench sweep measures it" in cohort.how
    assert costs.saving_table(costs.savings(arms, epochs, {})).rows[2][-1] == "\u2013"


def test_a_bank_that_cost_more_than_it_spared_says_so(arms: pl.DataFrame, epochs: pl.DataFrame) -> None:
    shown = costs.saving_table(costs.savings(arms, epochs, {"bank": 1e6})).rows[0]
    assert shown[-1].startswith("\u2212")


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        ({"gpus": 1}, "1 GPU"),
        ({"gpus": 0.5}, "0.5 GPU"),
        ({"cpus": 2}, "2 CPU cores"),
        ({"cpus": 1}, "1 CPU core"),
    ],
)
def test_a_device_is_what_a_worker_holds(compute: fake_run.Row, words: str) -> None:
    tree = fake_run.study_tree(fake_run.SPACE, compute=compute)
    assert costs.device(study_file.build(tree, "fake")) == words


def test_the_committed_sample_tells_all_three() -> None:
    """By hand from its rows: 13 arms ran 6 epochs, 7 left after 3."""
    sample = run.read(ROOT / "reports" / "quickstart")
    bank, halving, _ = costs.savings(sample.arms, sample.epochs, sample.provenance["stages"])
    pruned = sample.arms.filter(pl.col("status") == "pruned")
    ran = sample.epochs.join(pruned, "arm", "semi")
    assert halving.seconds == pytest.approx(sum(ran["seconds"]))  # 3 of 6 epochs: as much again
    built = sample.provenance["stages"]["bank"]
    assert bank.seconds == pytest.approx(sum(sample.arms["teacher_seconds_saved"]) - built)
    page = report.page(sample)
    section = page[page.index('<section id="cost">') :]
    words = re.sub(r"<script.*?</script>", "", section, flags=re.DOTALL)
    assert "device-seconds (2 CPU cores)" in words
    assert "What was spared" in words
