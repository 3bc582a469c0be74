"""Numbers against scipy, against hand calculation, and at the edges where n is 0 or 1."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from comkd_ray import stats

DIFFERENCES = [0.8, 0.3, -0.2, 0.9, 0.4]


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


def test_pareto_by_hand() -> None:
    cost, score = [3.0, 1.0, 2.0, 1.0, 4.0], [72.0, 70.0, 69.0, 68.0, 72.0]
    assert stats.pareto(cost, score) == [1, 0]
    assert stats.pareto([], []) == []
