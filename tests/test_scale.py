"""What a driver carries, on a handful of made-up arms, and ImageNet on clusters that nobody has here."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import outer
import pytest
from click.testing import CliRunner

from comkd_ray import bench_scale as room
from comkd_ray import results, scale
from comkd_ray.bench_scale import ROWS, bench_scale, lines, made_up
from comkd_ray.cli import main
from comkd_ray.config import Study
from comkd_ray.optuna_search import OptunaArms, Proposal
from comkd_ray.run import read
from comkd_ray.scale import GPUS, all_scales, imagenet, table

Tree = dict[str, Any]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    world = tmp_path_factory.mktemp("world")
    return outer.study(outer.world(world), outer.tpe(4, arms_per_trial=3))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench") / "run"


@pytest.fixture(scope="module")
def found(study: Study, run: Path) -> Tree:
    return bench_scale(study, 5, run)


# One driver ------------------------------------------------------------------------------------


def test_arms_lie_in_a_real_journal_and_in_real_records(found: Tree, run: Path, study: Study) -> None:
    """5 that fill and a cohort of 3; three more were asked for to be timed, and so stay RUNNING."""
    records = results.read_records(run)
    assert len(records) == 8
    again = OptunaArms(study, run / "optuna.journal").optuna
    states = [trial.state.name for trial in again.get_trials()]
    assert (states.count("COMPLETE"), states.count("RUNNING")) == (8, room.REPEATS)
    trial = again.get_trials()[0]
    rows = records[trial.user_attrs["arm"]]["epochs"]
    assert list(trial.intermediate_values.values()) == [row["objective"] for row in rows]
    assert len(read(run).arms) == 8


def test_every_row_of_the_table_was_measured(found: Tree) -> None:
    assert {name for name, _, _ in ROWS} <= set(found)
    assert all(found[name] >= 0 for name, _, _ in ROWS)
    assert min(found[name] for name, _, _ in ROWS if not name.endswith("memory")) > 0
    assert json.loads(json.dumps(found, allow_nan=False))["event"] == "bench scale"
    told = lines(found)
    assert told[0] == "tiny: 5 arms of 2 epochs, cohorts of 3"
    assert len(told) == 1 + len(ROWS)
    assert f"{found['order_bytes'] / 1e3:,.1f} kB  once" in next(
        row for row in told if "order" in row and "kB" in row
    )


def test_a_made_up_record_has_the_columns_of_a_real_one(study: Study) -> None:
    """Those of `results.ARMS` and `EPOCHS` that the protocol has, and every key of the arm."""
    record = made_up(study, "a", Proposal(3, {"loss.temperature": 2.0}), random.Random(0))
    whole = {"val_accuracy", "val_agreement", "test_accuracy"}
    references = {f"{name}_test_accuracy" for name in results.REFERENCES}
    assert set(results.ARMS) - set(record["arm"]) == whole | references
    assert record["arm"]["loss.temperature"] == 2.0
    best = record["arm"]["best_epoch"]
    whole_epoch = {"val_accuracy", "val_agreement", "test_accuracy"}
    tested = {f"test_{name}" for name in ("base_accuracy", "novel_accuracy", "harmonic_mean")}
    for row in record["epochs"]:
        assert set(results.EPOCHS) - set(row) == whole_epoch | (set() if row["epoch"] == best else tested)


# Clusters --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clusters() -> list[scale.Scaled]:
    return all_scales(64, (8, 64))


def test_banks_of_imagenet_are_its_images_and_views() -> None:
    """1,281,167 training images, of which 50 a class are for validation; 20 views; 768 and 512 wide."""
    _, plan = imagenet()
    assert plan.images == {"train": 1_231_167, "val": 50_000, "test": 50_000}
    assert plan.bank_bytes == 2 * ((20 * 1_231_167 + 100_000) * 768 + 100_000 * 512)
    assert plan.pixel_bytes == 1_331_167 * 3 * 256 * 256
    assert imagenet(few=True)[1].images["train"] == 16_000


def test_more_gpus_end_sooner_until_cohorts_run_out(clusters: list[scale.Scaled]) -> None:
    """64 arms are 8 cohorts of 8: 64 GPUs are as fast as 8, and idle."""
    eight, many, _ = clusters[:3]
    assert many.wall_seconds == pytest.approx(eight.wall_seconds, rel=0.3)
    assert many.utilisation < 0.2 < 0.8 < eight.utilisation


def test_arms_that_all_begin_at_once_do_not_know_of_each_other(clusters: list[scale.Scaled]) -> None:
    """Cohorts of one keep all GPUs busy, but no arm leaves: all are trained to their end."""
    _, together, alone = clusters[:3]
    assert (together.arms_per_trial, alone.arms_per_trial) == (8, 1)
    assert alone.wall_seconds < together.wall_seconds
    assert alone.device_hours > 2.5 * together.device_hours
    assert alone.read_bytes_per_second > together.read_bytes_per_second


def test_few_shots_take_less(clusters: list[scale.Scaled]) -> None:
    whole, few = clusters[0], clusters[3]
    assert few.wall_seconds < whole.wall_seconds
    assert few.bank_bytes < whole.bank_bytes / 50


def test_the_table_has_a_line_for_each(clusters: list[scale.Scaled]) -> None:
    told = table(clusters)
    names = [
        (study, *one)
        for study in ("imagenet", "imagenet-16-shot")
        for one in (("8", "8"), ("64", "8"), ("64", "1"))
    ]
    assert [tuple(row.split()[:3]) for row in told[1:]] == names
    assert len({len(row) for row in told}) == 1
    assert GPUS == (8, 64, 1000)


# The command line ------------------------------------------------------------------------------


def test_the_command_prints_one_object(tmp_path: Path, alone: None) -> None:
    tree = outer.tree(outer.world(tmp_path / "world"), outer.tpe(4))
    path = outer.write_yaml(tmp_path / "tiny.yaml", tree)
    done = CliRunner().invoke(
        main, ["bench", "scale", str(path), "--arms", "2", "--json"], catch_exceptions=False
    )
    told = json.loads(done.stdout)
    assert (told["arms"], len(told["clusters"])) == (2, 12)


@pytest.mark.parametrize(("words", "why"), [
    (["--arms", "0"], "0 is not in the range"), (["--set", "train.epoch=1"], "did you mean 'train.epochs'?"),
    (["--set", "search.sampler=list", "--set", "search.space={}"], "a grid or a list asks no sampler"),
])  # fmt: skip
def test_bad_input_is_told(words: list[str], why: str) -> None:
    done = CliRunner().invoke(main, ["bench", "scale", *words])
    assert (done.exit_code, why in done.stderr) == (2, True), done.stderr
