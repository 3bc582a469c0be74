"""Which arms count, which is best, what method each is, and what differs between methods."""

from __future__ import annotations

from pathlib import Path

import fake_run
import polars as pl
import pytest

from comkd_ray import arms as arms_room
from comkd_ray import results
from comkd_ray.errors import UserError
from comkd_ray.protocols import PROTOCOLS

HM = "test_harmonic_mean"
COMKD = (True, True, True)


def rows(run: Path, arms: list[tuple[fake_run.Row, list[fake_run.Row]]]) -> pl.DataFrame:
    return results.read_arms(fake_run.write(run, arms))


def test_best_arm_has_full_budget_and_the_highest_objective(tmp_path: Path) -> None:
    arms = rows(tmp_path, fake_run.searched_arms())
    shift = pl.when(pl.col("status") == "pruned").then(99.0).otherwise("objective")
    best = arms_room.best_arm(arms.with_columns(objective=shift))
    assert best is not None
    complete = arms.filter(pl.col("status") == "complete")
    assert best["objective"] == complete["objective"].max()


def test_best_arm_of_equals_is_the_first_asked(tmp_path: Path) -> None:
    arms = rows(tmp_path, fake_run.grid_arms(2)).with_columns(objective=70.0)
    best = arms_room.best_arm(arms.sample(fraction=1.0, shuffle=True, seed=3))
    assert best is not None
    assert best["number"] == 0


def test_no_best_arm_among_failed(tmp_path: Path) -> None:
    arms = rows(tmp_path, [fake_run.arm(n, fake_run.drawn(n), "failed") for n in range(3)])
    assert arms_room.best_arm(arms) is None
    assert arms_room.searched_keys(arms) == sorted({k for n in range(3) for k in fake_run.drawn(n)})


def test_seeds_are_paired(tmp_path: Path) -> None:
    """The difference of a seed is the difference of its two rows."""
    arms = rows(tmp_path, fake_run.grid_arms(5))
    pairs = {pair.method: pair for pair in arms_room.paired_by_seed(arms, HM)}
    assert list(pairs) == arms_room.module_cells(arms)[1:]
    both = arms_room.of_method(arms, COMKD).sort("seed")["test_harmonic_mean"]
    off = arms_room.of_method(arms, arms_room.PROMPTKD).sort("seed")["test_harmonic_mean"]
    assert pairs[COMKD].seeds == (1, 2, 3, 4, 5)
    assert pairs[COMKD].differences == pytest.approx((both - off).to_list())
    assert pairs[COMKD].smallest_p == 0.0625
    assert not pairs[COMKD].decidable  # 3 comparisons * 0.0625 is above 0.05


def test_missing_half_leaves_its_pair_out(tmp_path: Path) -> None:
    arms = rows(tmp_path, fake_run.grid_arms(3))
    first = (pl.col("seed") == 1) & ~pl.col(arms_room.IFALIGN) & ~pl.col(arms_room.EDU_ATTENTION)
    broken = arms.with_columns(status=pl.when(first).then(pl.lit("failed")).otherwise("status"))
    assert [pair.seeds for pair in arms_room.paired_by_seed(broken, HM)] == [(2, 3)] * 3


def test_other_searched_keys_are_matched_and_conditional_ones_averaged(tmp_path: Path) -> None:
    """Per seed, two temperatures are matched; two scales, only under EduAttention, averaged."""
    arms: list[tuple[fake_run.Row, list[fake_run.Row]]] = []
    for seed in (1, 2):
        for temperature in (1.0, 4.0):
            for scale in (None, 1.0, 4.0):
                point: fake_run.Row = {
                    "student.ifalign": False,
                    "student.edu_attention": scale is not None,
                    "loss.temperature": temperature,
                    "train.seed": seed,
                }
                point |= {} if scale is None else {"student.attention_scale": scale}
                row, epochs = fake_run.arm(len(arms), point)
                row["test_harmonic_mean"] = 70 + 10 * temperature + seed * (scale or 0)
                arms.append((row, epochs))
    (pair,) = arms_room.paired_by_seed(rows(tmp_path, arms), HM)
    assert pair.method == (True, False, True)
    assert pair.differences == pytest.approx((2.5, 5.0))  # seed times the mean of 1 and 4


def test_seven_equal_signs_are_decidable(tmp_path: Path) -> None:
    arms = rows(tmp_path, fake_run.grid_arms(7)).with_columns(
        test_harmonic_mean=70.0 + 0.1 * pl.col("seed") + pl.col(arms_room.IFALIGN)
    )
    verdicts = {pair.method: arms_room.verdict(pair) for pair in arms_room.paired_by_seed(arms, HM)}
    assert verdicts[True, True, False] == "above"
    assert verdicts[True, False, True] == "not decidable"  # all differences are 0


def test_what_is_a_seeded_grid(tmp_path: Path) -> None:
    grid = rows(tmp_path / "grid", fake_run.grid_arms(3))
    tpe = rows(tmp_path / "tpe", fake_run.searched_arms())
    assert arms_room.is_seeded_grid(grid, "grid")
    assert arms_room.is_seeded_grid(grid, None)
    assert not arms_room.is_seeded_grid(grid, "tpe")
    assert not arms_room.is_seeded_grid(grid.head(11), None)
    assert not arms_room.is_seeded_grid(tpe, "grid")


# Projector only ---------------------------------------------------------------------------------


@pytest.fixture
def eight(tmp_path: Path) -> pl.DataFrame:
    """Projector only and the 2x2 with prompts, three seeds."""
    return rows(tmp_path, fake_run.rows_arms(fake_run.rows_tree()))


def test_projector_only_is_no_promptkd(eight: pl.DataFrame) -> None:
    """Both have both modules off; they are told apart by prompts."""
    both_off = eight.filter(~pl.col(arms_room.IFALIGN), ~pl.col(arms_room.EDU_ATTENTION))
    assert len(both_off) == 6
    projector = arms_room.of_method(eight, arms_room.PROJECTOR_ONLY)
    promptkd = arms_room.of_method(eight, arms_room.PROMPTKD)
    assert projector[arms_room.PROMPTS].to_list() == [0, 0, 0]
    assert promptkd[arms_room.PROMPTS].to_list() == [4, 4, 4]
    assert [arms_room.method_of(row) for row in promptkd.rows(named=True)] == [arms_room.PROMPTKD] * 3
    assert arms_room.module_cells(eight)[0] == arms_room.PROMPTKD


def test_projector_only_is_paired_with_promptkd_by_seed(eight: pl.DataFrame) -> None:
    first, *others = arms_room.paired_by_seed(eight, HM)
    assert (first.method, first.baseline) == (arms_room.PROJECTOR_ONLY, arms_room.PROMPTKD)
    projector = arms_room.of_method(eight, arms_room.PROJECTOR_ONLY).sort("seed")[HM]
    promptkd = arms_room.of_method(eight, arms_room.PROMPTKD).sort("seed")[HM]
    assert first.differences == pytest.approx((projector - promptkd).to_list())
    without = eight.filter(pl.col(arms_room.PROMPTS) > 0)
    alone = arms_room.paired_by_seed(without, HM)
    assert [pair.differences for pair in others] == [pair.differences for pair in alone]
    assert [pair.method for pair in alone] == arms_room.module_cells(eight)[1:]


def test_a_study_without_prompts_has_a_2x2_of_its_own(eight: pl.DataFrame) -> None:
    bare = eight.with_columns(pl.lit(0, dtype=pl.Int64).alias(arms_room.PROMPTS)).filter(
        pl.col("number") % 5 > 0
    )
    cells = arms_room.module_cells(bare)
    assert [arms_room.METHODS[cell] for cell in cells] == [
        "projector only",
        "projector + IFAlign",
        "projector + EduAttention",
        "ComKD-CLIP without prompts",
    ]
    pairs = arms_room.paired_by_seed(bare, HM)
    assert [(pair.method, pair.baseline) for pair in pairs] == [(cell, cells[0]) for cell in cells[1:]]


# Scores -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", fake_run.KINDS)
def test_scores_follow_the_protocol(tmp_path: Path, kind: tuple[str, str]) -> None:
    """One family of scores; its columns are filled, and the best arm is that of the objective."""
    table = rows(tmp_path, fake_run.rows_arms(fake_run.rows_tree(kind)))
    scores = arms_room.scores_of(table)
    assert scores == kind
    assert scores.headline == PROTOCOLS[kind[0]].headline == scores.tests[-1]
    assert scores.objective == PROTOCOLS[kind[0]].objective(kind[1])
    assert len(scores.names) == len(scores.tests) == (3 if kind[0] == "base_to_novel" else 1)
    assert all(table[test].null_count() == 0 for test in scores.tests)
    assert table["objective"].to_list() == table[scores.objective].to_list()
    best = arms_room.best_arm(table)
    assert best is not None
    assert best[scores.objective] == table[scores.objective].max()


def test_scores_chosen_on_test_carry_a_warning() -> None:
    warnings = {kind: arms_room.Scores(*kind).warning for kind in fake_run.KINDS}
    assert [kind for kind, words in warnings.items() if words] == [
        ("base_to_novel", "promptkd"),
        ("domain_generalization", "promptkd"),
    ]
    assert "not an estimate of new images" in warnings["base_to_novel", "promptkd"]
    assert "transductive" not in warnings["base_to_novel", "promptkd"]
    assert "trained on the test images" in warnings["domain_generalization", "promptkd"]


def test_rows_of_two_selections_are_no_one_report(eight: pl.DataFrame) -> None:
    other = eight.with_columns(selection=pl.lit("promptkd"))
    with pytest.raises(UserError, match="base_to_novel/promptkd, base_to_novel/strict: a report"):
        arms_room.scores_of(pl.concat([eight, other]))


def test_a_table_older_than_protocols_is_refused_in_one_line(eight: pl.DataFrame) -> None:
    with pytest.raises(UserError, match="an older version wrote it: run the study again"):
        arms_room.scores_of(eight.drop("protocol", "selection"))


def test_a_stored_value_is_the_same_as_a_declared_one() -> None:
    """Parquet turns 1.0 beside a word into "1"; a flag is no number."""
    assert arms_room.is_same("1", 1.0)
    assert arms_room.is_same("sqrt_width", "sqrt_width")
    assert arms_room.is_same(2, 2.0)
    assert not arms_room.is_same("sqrt_width", 1.0)
    assert not arms_room.is_same(True, 1)
    assert not arms_room.is_same(None, 1.0)
