"""Verdicts about two variants: the numbers against scipy and statsmodels, the edges, and a calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from comkd_ray import comparison, planner
from comkd_ray.comparison import Claim
from comkd_ray.errors import UserError

CLEAR = (0.8, 1.1, 0.9, 1.3, 0.7, 1.0, 1.2, 0.6)
MIXED = (0.8, -0.3, 0.2, 0.9, -0.4)


def one(differences: tuple[float, ...], direction: comparison.Direction = "above") -> comparison.Comparison:
    return comparison.compare([Claim("variant", differences, direction)])[0]


def test_pairs_are_the_seeds_that_both_have() -> None:
    assert comparison.paired({3: 5.0, 1: 2.0, 9: 7.0}, {1: 1.5, 2: 9.0, 3: 7.0}) == (0.5, -2.0)
    assert comparison.paired({1: 2.0}, {2: 2.0}) == ()


def test_a_family_has_the_p_of_scipy_and_the_holm_of_statsmodels() -> None:
    draw = np.random.default_rng(5)
    families = [tuple(draw.normal(shift, 1, 7)) for shift in (0.0, 0.5, 1.0, 2.0)]
    found = comparison.compare([Claim(str(k), values) for k, values in enumerate(families)])
    expected = [
        scipy_stats.permutation_test(
            (np.array(values),), np.mean, permutation_type="samples", n_resamples=np.inf
        ).pvalue
        for values in families
    ]
    assert [each.p for each in found] == pytest.approx(expected)
    assert [each.p_holm for each in found] == pytest.approx(multipletests(expected, method="holm")[1])


def test_verdict_follows_the_claimed_direction() -> None:
    assert one(CLEAR).verdict == "supported"
    assert one(CLEAR, "below").verdict == "refuted"
    assert one(tuple(-value for value in CLEAR)).verdict == "refuted"
    assert one(tuple(-value for value in CLEAR), "below").verdict == "supported"
    assert one(MIXED).verdict == "not decidable"


def test_more_claims_make_each_harder() -> None:
    """Six equal signs are enough alone (p 0.031), and not among two (0.0625)."""
    assert one(CLEAR[:6]).verdict == "supported"
    two = comparison.compare([Claim("a", CLEAR[:6]), Claim("b", MIXED)])
    assert (two[0].verdict, two[0].decidable, two[0].p_holm) == ("not decidable", False, 0.0625)


def test_a_claim_without_pairs_takes_no_part() -> None:
    found = comparison.compare([Claim("none", ()), Claim("six", CLEAR[:6])])
    assert found[0] == comparison.Comparison(
        "none", "above", 0, None, None, 1.0, 1.0, 1.0, False, "not decidable", None
    )
    assert found[1].verdict == "supported"


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_seeds_decide_nothing_and_say_how_many_would(n: int) -> None:
    found = one(CLEAR[:n])
    assert (found.verdict, found.decidable) == ("not decidable", False)
    assert found.smallest_p == 2 / 2**n
    assert found.further_seeds == (None if n == 1 else 6 - n)
    assert (found.bca is None) == (n < 3)


def test_further_seeds_frozen() -> None:
    """Effect 0.40 sd in five seeds: statsmodels' t-test asks for 52 (51.6), so 47 more."""
    found = one(MIXED)
    assert found.estimate is not None
    assert found.estimate.sd is not None
    effect = found.estimate.mean / found.estimate.sd
    needed = TTestPower().solve_power(effect, None, 0.05, 0.8, alternative="two-sided")
    assert found.further_seeds == math.ceil(needed) - 5 == 47


def test_equal_differences() -> None:
    same = one((0.5,) * 6)
    assert (same.verdict, same.bca) == ("supported", (0.5, 0.5))
    assert one((0.5,) * 3).further_seeds == 3
    nothing = one((0.0,) * 8)
    assert (nothing.p, nothing.verdict, nothing.further_seeds) == (1.0, "not decidable", None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(UserError, match="student B: difference 2 of 3 is"):
        comparison.compare([Claim("student B", (0.1, value, 0.2))])


def test_bca_is_the_formula_of_efron() -> None:
    """Restated with its own draws: bias from the share below the mean, acceleration from the jackknife."""
    values = np.array([0.1, 0.2, 0.4, 0.5, 0.9, 1.6, 2.8, 4.1])
    n, draw = len(values), np.random.default_rng(7)
    means = values[draw.integers(0, n, (40_000, n))].mean(axis=1)
    bias = scipy_stats.norm.ppf(np.mean(means < values.mean()))
    jackknife = (values.sum() - values) / (n - 1)
    away = jackknife.mean() - jackknife
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    shifted = bias + scipy_stats.norm.ppf([0.025, 0.975])
    levels = scipy_stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
    found = comparison.bca(values.tolist())
    assert found == pytest.approx(np.quantile(means, levels), abs=0.06 * float(values.std()))


def test_bca_is_the_same_at_every_call() -> None:
    assert comparison.bca(CLEAR) == comparison.bca(CLEAR)


@pytest.mark.parametrize("claims", [1, 3])
def test_without_an_effect_few_ablations_have_a_verdict(claims: int) -> None:
    """300 ablations with 8 seeds whose variants share a baseline; at most 5 %, to 1 in 1,000."""
    scores = np.random.default_rng(claims).standard_normal((300, 8, claims + 1))
    differences = scores[:, :, 1:] - scores[:, :, :1]
    families = [[Claim("", tuple(values)) for values in family.T.tolist()] for family in differences]
    wrong = [any(each.verdict != "not decidable" for each in comparison.compare(one)) for one in families]
    assert sum(wrong) <= scipy_stats.binom.ppf(0.999, 300, 0.05)


@pytest.mark.parametrize(("effect", "n"), [(1.0, 8), (2.0, 6)])
def test_power_is_what_the_planner_foretold(effect: float, n: int) -> None:
    """300 ablations with an effect: between the 1-in-1,000 bounds around the foretold share."""
    values = np.random.default_rng(n).normal(effect, 1.0, (300, n))
    found = sum(one(tuple(row)).verdict == "supported" for row in values.tolist())
    foretold = planner.power(effect, n)
    low, high = scipy_stats.binom.ppf([0.001, 0.999], 300, foretold)
    assert low <= found <= high
