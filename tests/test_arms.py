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


@pytest.mark.parametrize("column", ["protocol", "selection"])
def test_an_unknown_protocol_or_selection_is_one_line(column: str, eight: pl.DataFrame) -> None:
    known = {"protocol": "base_to_novel, cross", "selection": "strict, promptkd"}[column]
    with pytest.raises(UserError, match=f"^results/arms: {column} 'foo' is unknown; known are {known}"):
        arms_room.scores_of(eight.with_columns(pl.lit("foo").alias(column)))


def test_a_stored_value_is_the_same_as_a_declared_one() -> None:
    """Parquet turns 1.0 beside a word into "1"; a flag is no number."""
    assert arms_room.is_same("1", 1.0)
    assert arms_room.is_same("sqrt_width", "sqrt_width")
    assert arms_room.is_same(2, 2.0)
    assert not arms_room.is_same("sqrt_width", 1.0)
    assert not arms_room.is_same(True, 1)
    assert not arms_room.is_same(None, 1.0)
