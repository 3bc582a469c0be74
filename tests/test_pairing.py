"""What differs between methods, seed by seed: which arms are matched, and what n seeds can decide."""

from __future__ import annotations

from pathlib import Path

import fake_run
import polars as pl
import pytest

from comkd_ray import arms as arms_room
from comkd_ray import results
from comkd_ray.comparison import Claim, compare
from comkd_ray.pairing import is_seeded_grid, paired_by_seed

HM = "test_harmonic_mean"


def rows(run: Path, arms: list[tuple[fake_run.Row, list[fake_run.Row]]]) -> pl.DataFrame:
    return results.read_arms(fake_run.write(run, arms))


@pytest.fixture
def eight(tmp_path: Path) -> pl.DataFrame:
    """Projector only and the 2x2 with prompts, three seeds."""
    return rows(tmp_path, fake_run.rows_arms(fake_run.rows_tree()))


def test_seeds_are_paired(tmp_path: Path) -> None:
    """The difference of a seed is the difference of its two rows."""
    arms = rows(tmp_path, fake_run.grid_arms(5))
    pairs = {pair.name: pair for pair in paired_by_seed(arms, HM)}
    assert list(pairs) == [arms_room.METHODS[cell] for cell in arms_room.module_cells(arms)[1:]]
    both = arms_room.of_method(arms, (True, True, True)).sort("seed")["test_harmonic_mean"]
    off = arms_room.of_method(arms, arms_room.PROMPTKD).sort("seed")["test_harmonic_mean"]
    assert pairs["ComKD-CLIP"].seeds == (1, 2, 3, 4, 5)
    assert pairs["ComKD-CLIP"].differences == pytest.approx((both - off).to_list())
    assert pairs["ComKD-CLIP"].found.smallest_p == 0.0625
    assert not pairs["ComKD-CLIP"].found.decidable  # 3 comparisons * 0.0625 is above 0.05


def test_missing_half_leaves_its_pair_out(tmp_path: Path) -> None:
    arms = rows(tmp_path, fake_run.grid_arms(3))
    first = (pl.col("seed") == 1) & ~pl.col(arms_room.IFALIGN) & ~pl.col(arms_room.EDU_ATTENTION)
    broken = arms.with_columns(status=pl.when(first).then(pl.lit("failed")).otherwise("status"))
    assert [pair.seeds for pair in paired_by_seed(broken, HM)] == [(2, 3)] * 3


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
    (pair,) = paired_by_seed(rows(tmp_path, arms), HM)
    assert pair.name == "PromptKD + EduAttention"
    assert pair.differences == pytest.approx((2.5, 5.0))  # seed times the mean of 1 and 4


def test_seven_equal_signs_are_decidable(tmp_path: Path) -> None:
    arms = rows(tmp_path, fake_run.grid_arms(7)).with_columns(
        test_harmonic_mean=70.0 + 0.1 * pl.col("seed") + pl.col(arms_room.IFALIGN)
    )
    verdicts = {pair.name: pair.found.verdict for pair in paired_by_seed(arms, HM)}
    assert verdicts["PromptKD + IFAlign"] == "supported"
    assert verdicts["PromptKD + EduAttention"] == "not decidable"  # all differences are 0
    worse = arms.with_columns(test_harmonic_mean=140 - pl.col(HM))
    assert paired_by_seed(worse, HM)[0].found.verdict == "refuted"


def test_what_differences_say_is_what_comparison_says(tmp_path: Path) -> None:
    pairs = paired_by_seed(rows(tmp_path, fake_run.grid_arms(3)), HM)
    claims = [Claim(pair.name, pair.differences) for pair in pairs]
    assert [pair.found for pair in pairs] == compare(claims)


def test_an_arm_without_a_finite_score_is_no_half_of_a_pair(tmp_path: Path) -> None:
    arms = rows(tmp_path, fake_run.grid_arms(3))
    lost = (pl.col("seed") == 2) & pl.col(arms_room.IFALIGN) & ~pl.col(arms_room.EDU_ATTENTION)
    broken = arms.with_columns(pl.when(lost).then(float("nan")).otherwise(HM).alias(HM))
    seeds = {pair.name: pair.seeds for pair in paired_by_seed(broken, HM)}
    assert (seeds["PromptKD + IFAlign"], seeds["ComKD-CLIP"]) == ((1, 3), (1, 2, 3))


def test_six_equal_signs_decide_one_comparison_and_not_three(tmp_path: Path) -> None:
    """1/32 is below 0.05, and three times 1/32 is above."""
    arms = rows(tmp_path, fake_run.grid_arms(6))
    three = paired_by_seed(arms, HM)
    one = paired_by_seed(arms.filter(~pl.col(arms_room.EDU_ATTENTION)), HM)
    assert [(pair.found.smallest_p, pair.found.decidable) for pair in three] == [(1 / 32, False)] * 3
    assert [(pair.name, pair.found.decidable) for pair in one] == [("PromptKD + IFAlign", True)]


def test_what_is_a_seeded_grid(tmp_path: Path) -> None:
    grid = rows(tmp_path / "grid", fake_run.grid_arms(3))
    tpe = rows(tmp_path / "tpe", fake_run.searched_arms())
    assert is_seeded_grid(grid, True)
    assert is_seeded_grid(grid, None)
    assert not is_seeded_grid(grid, False)
    assert not is_seeded_grid(grid.head(11), None)
    assert not is_seeded_grid(tpe, True)


def test_projector_only_is_paired_with_promptkd_by_seed(eight: pl.DataFrame) -> None:
    first, *others = paired_by_seed(eight, HM)
    assert (first.name, first.baseline) == ("projector only", "PromptKD")
    projector = arms_room.of_method(eight, arms_room.PROJECTOR_ONLY).sort("seed")[HM]
    promptkd = arms_room.of_method(eight, arms_room.PROMPTKD).sort("seed")[HM]
    assert first.differences == pytest.approx((projector - promptkd).to_list())
    without = eight.filter(pl.col(arms_room.PROMPTS) > 0)
    alone = paired_by_seed(without, HM)
    assert [pair.differences for pair in others] == [pair.differences for pair in alone]
    assert [pair.name for pair in alone] == [
        arms_room.METHODS[cell] for cell in arms_room.module_cells(eight)[1:]
    ]


def test_without_prompts_the_baseline_is_projector_only(eight: pl.DataFrame) -> None:
    bare = eight.with_columns(pl.lit(0, dtype=pl.Int64).alias(arms_room.PROMPTS)).filter(
        pl.col("number") % 5 > 0
    )
    names = [arms_room.METHODS[cell] for cell in arms_room.module_cells(bare)]
    pairs = paired_by_seed(bare, HM)
    assert [(pair.name, pair.baseline) for pair in pairs] == [(name, names[0]) for name in names[1:]]
