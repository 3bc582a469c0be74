"""Numbers against scipy, against hand calculation, and at the edges where n is 0 or 1."""

from __future__ import annotations

import math
from pathlib import Path

import fake_run
import numpy as np
import polars as pl
import pytest
from scipy import stats as scipy_stats

from comkd_ray import results, stats

DIFFERENCES = [0.8, 0.3, -0.2, 0.9, 0.4]


def rows(run: Path, arms: list[tuple[fake_run.Row, list[fake_run.Row]]]) -> pl.DataFrame:
    return results.read_arms(fake_run.write(run, arms))


def test_estimate_is_the_t_interval_of_scipy() -> None:
    values = [71.2, 73.9, 70.4, 72.8]
    found = stats.estimate(values)
    assert found is not None
    expected = scipy_stats.t.interval(0.95, 3, np.mean(values), scipy_stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.sd == pytest.approx(np.std(values, ddof=1))


def test_estimate_for_three_seeds_frozen() -> None:
    """By hand: mean 2, sd 1, half-width 4.303 / sqrt(3) = 2.484; the field's habit gives 0.924."""
    found = stats.estimate([1.0, 2.0, 3.0])
    assert found is not None
    assert found.high is not None
    assert found[:3] == (3, 2.0, 1.0)
    assert found.high == pytest.approx(2 + 2.484, abs=1e-3)
    habit = 1.96 * np.std([1.0, 2.0, 3.0]) / math.sqrt(3)
    assert (found.high - 2) / habit == pytest.approx(2.69, abs=0.01)


def test_estimate_without_spread() -> None:
    assert stats.estimate([]) is None
    assert stats.estimate([5.0]) == stats.Estimate(1, 5.0, None, None, None)


def test_sign_flip_is_the_permutation_test_of_scipy() -> None:
    expected = scipy_stats.permutation_test(
        (np.array(DIFFERENCES),), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert stats.sign_flip_p(DIFFERENCES) == pytest.approx(expected.pvalue)


def test_sign_flip_by_hand() -> None:
    """Sums of 1, 2, 3 with signs: only +++ and --- reach 6; 4 of 8 reach 4."""
    assert stats.sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8
    assert stats.sign_flip_p([-1.0, 2.0, 3.0]) == 4 / 8
    assert stats.sign_flip_p([0.0, 0.0]) == 1.0
    assert stats.sign_flip_p([]) == 1.0


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 11])
def test_smallest_p_is_reached_by_equal_signs(n: int) -> None:
    assert stats.sign_flip_p([0.1] * n) == pytest.approx(stats.smallest_p(n))


def test_smallest_p_frozen() -> None:
    found = [stats.smallest_p(n) for n in (0, 1, 3, 5, 6, 11)]
    assert found == pytest.approx([1, 1, 0.25, 0.0625, 0.03125, 0.0009765625])


def test_sign_flip_of_many_pairs_is_drawn() -> None:
    """Above 20 pairs: near the normal approximation, and the same at every call."""
    values = np.random.default_rng(1).normal(0.3, 1.0, 40)
    p = stats.sign_flip_p(values.tolist())
    z = abs(values.sum()) / math.sqrt(float((values**2).sum()))
    assert p == pytest.approx(2 * scipy_stats.norm.sf(z), abs=0.01)
    assert p == stats.sign_flip_p(values.tolist())


def test_holm_by_hand() -> None:
    """0.01 * 3; 0.02 * 2; 0.03 * 1 is raised to 0.04, as adjusted values never fall."""
    assert stats.holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_best_arm_has_full_budget_and_highest_validation_score(tmp_path: Path) -> None:
    arms = rows(tmp_path, fake_run.searched_arms())
    shift = pl.when(pl.col("status") == "pruned").then(99.0).otherwise("val_harmonic_mean")
    best = stats.best_arm(arms.with_columns(val_harmonic_mean=shift))
    assert best is not None
    complete = arms.filter(pl.col("status") == "complete")
    assert best["val_harmonic_mean"] == complete["val_harmonic_mean"].max()


def test_best_arm_of_equals_is_the_first_asked(tmp_path: Path) -> None:
    arms = rows(tmp_path, fake_run.grid_arms(2)).with_columns(val_harmonic_mean=70.0)
    best = stats.best_arm(arms.sample(fraction=1.0, shuffle=True, seed=3))
    assert best is not None
    assert best["number"] == 0


def test_no_best_arm_among_failed(tmp_path: Path) -> None:
    arms = rows(tmp_path, [fake_run.arm(n, fake_run.drawn(n), "failed") for n in range(3)])
    assert stats.best_arm(arms) is None
    assert stats.searched_keys(arms) == sorted({k for n in range(3) for k in fake_run.drawn(n)})


def test_seeds_are_paired(tmp_path: Path) -> None:
    """The difference of a seed is the difference of its two rows."""
    arms = rows(tmp_path, fake_run.grid_arms(5))
    pairs = {pair.cell: pair for pair in stats.paired_by_seed(arms)}
    assert set(pairs) == set(stats.CELLS) - {stats.BOTH_OFF}
    both = stats.in_cell(arms, (True, True)).sort("seed")["test_harmonic_mean"]
    off = stats.in_cell(arms, stats.BOTH_OFF).sort("seed")["test_harmonic_mean"]
    assert pairs[True, True].seeds == (1, 2, 3, 4, 5)
    assert pairs[True, True].differences == pytest.approx((both - off).to_list())
    assert pairs[True, True].smallest_p == 0.0625
    assert not pairs[True, True].decidable  # 3 comparisons * 0.0625 is above 0.05


def test_missing_half_leaves_its_pair_out(tmp_path: Path) -> None:
    arms = rows(tmp_path, fake_run.grid_arms(3))
    first = (pl.col("seed") == 1) & ~pl.col(stats.IFALIGN) & ~pl.col(stats.EDU_ATTENTION)
    broken = arms.with_columns(status=pl.when(first).then(pl.lit("failed")).otherwise("status"))
    assert [pair.seeds for pair in stats.paired_by_seed(broken)] == [(2, 3)] * 3


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
    (pair,) = stats.paired_by_seed(rows(tmp_path, arms))
    assert pair.cell == (False, True)
    assert pair.differences == pytest.approx((2.5, 5.0))  # seed times the mean of 1 and 4


def test_seven_equal_signs_are_decidable(tmp_path: Path) -> None:
    arms = rows(tmp_path, fake_run.grid_arms(7)).with_columns(
        test_harmonic_mean=70.0 + 0.1 * pl.col("seed") + pl.col(stats.IFALIGN)
    )
    verdicts = {pair.cell: stats.verdict(pair) for pair in stats.paired_by_seed(arms)}
    assert verdicts[True, False] == "above"
    assert verdicts[False, True] == "not decidable"  # all differences are 0


def test_what_is_a_seeded_grid(tmp_path: Path) -> None:
    grid = rows(tmp_path / "grid", fake_run.grid_arms(3))
    tpe = rows(tmp_path / "tpe", fake_run.searched_arms())
    assert stats.is_seeded_grid(grid, "grid")
    assert stats.is_seeded_grid(grid, None)
    assert not stats.is_seeded_grid(grid, "tpe")
    assert not stats.is_seeded_grid(grid.head(11), None)
    assert not stats.is_seeded_grid(tpe, "grid")


def test_pareto_by_hand() -> None:
    cost, score = [3.0, 1.0, 2.0, 1.0, 4.0], [72.0, 70.0, 69.0, 68.0, 72.0]
    assert stats.pareto(cost, score) == [1, 0]
    assert stats.pareto([], []) == []
