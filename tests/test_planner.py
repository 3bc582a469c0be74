"""What a design can find: against closed forms, statsmodels, and the test that it foretells."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.power import TTestPower

from comkd_ray import planner
from comkd_ray.stats import sign_flip_p, smallest_p


@pytest.mark.parametrize("n", [1, 2, 3, 6, 11])
def test_rows_have_the_p_of_the_one_sample_test(n: int) -> None:
    values = np.random.default_rng(n).normal(0.4, 1.0, (40, n)).round(1)  # rounded: with ties and zeros
    assert planner.sign_flip_p_rows(values) == pytest.approx([sign_flip_p(row) for row in values.tolist()])


@pytest.mark.parametrize("effect", [0.0, 0.5, 1.0, 2.0])
def test_with_six_seeds_only_six_equal_signs_are_significant(effect: float) -> None:
    """So power is Phi(effect)^6; four standard errors of 4,000 draws are allowed."""
    exact = scipy_stats.norm.cdf(effect) ** 6
    assert planner.power(effect, 6) == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 4000))


@pytest.mark.parametrize("effect", [0.3, 0.5])
def test_many_seeds_have_the_power_of_statsmodels_t_test(effect: float) -> None:
    expected = TTestPower().power(effect, 40, 0.05, alternative="two-sided")
    assert planner.power(effect, 40) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("effect", [0.5, 1.0, 1.5])
def test_drawn_power_joins_the_t_test_where_one_hands_over_to_the_other(effect: float) -> None:
    steps = np.diff([planner.power(effect, n) for n in (9, 10, 11, 12)])
    assert (steps > -0.02).all()
    assert (steps < 0.12).all()


@pytest.mark.parametrize(("claims", "fewest"), [(1, 6), (2, 7), (3, 7), (4, 8), (10, 9)])
def test_below_the_fewest_seeds_nothing_can_be_decided(claims: int, fewest: int) -> None:
    """By hand: claims * 2 / 2^n < 0.05."""
    assert planner.fewest_seeds(claims) == fewest
    assert planner.power(100.0, fewest - 1, claims) == 0
    assert planner.detectable(fewest - 1, claims) is None
    assert planner.power(100.0, fewest, claims) == 1
    assert planner.smallest_p_holm(fewest, claims) == claims * smallest_p(fewest)


@pytest.mark.parametrize(("n", "claims"), [(6, 1), (8, 3), (10, 1), (14, 3)])
def test_detectable_is_where_power_crosses_80_percent(n: int, claims: int) -> None:
    found = planner.detectable(n, claims)
    assert found is not None
    assert planner.power(found, n, claims) >= 0.8 > planner.power(found - 0.02, n, claims)


def test_detectable_frozen() -> None:
    """n = 6 by hand: Phi(d)^6 = 0.8 at d = 1.79."""
    found = [planner.detectable(n) for n in (6, 8, 12, 20)]
    assert found == pytest.approx([1.79, 1.18, 0.91, 0.66], abs=0.03)


@pytest.mark.parametrize(("effect", "claims"), [(0.5, 1), (-0.5, 3), (1.0, 1), (1.0, 3), (2.5, 1)])
def test_seeds_needed_is_the_smallest_number_with_80_percent_power(effect: float, claims: int) -> None:
    found = planner.seeds_needed(effect, claims)
    assert found is not None
    assert planner.power(abs(effect), found, claims) >= 0.8
    if found > planner.fewest_seeds(claims):
        assert planner.power(abs(effect), found - 1, claims) < 0.8


def test_seeds_needed_at_the_edges() -> None:
    assert planner.seeds_needed(float("inf")) == 6
    assert planner.seeds_needed(1e9, claims=10) == 9
    assert planner.seeds_needed(0.0) is None
    assert planner.seeds_needed(0.01) is None


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_a_plan_for_few_seeds_says_that_nothing_can_be_decided(n: int) -> None:
    design = planner.plan(n, 3)
    assert design.smallest_p == min(1, 2 / 2**n)
    assert design.detectable is None
    assert planner.foretell(design).endswith("nothing can be decided, 7 seeds could")


def test_a_plan_in_one_line() -> None:
    reach = "8 seeds, 3 claims: smallest p 0.0078, 0.023 after Holm"
    expected = f"{reach}; effects from 1.5 sd are found in 80% of cases"
    assert planner.foretell(planner.plan(8, 3)) == expected
    assert planner.foretell(planner.plan(1, 1)).startswith(
        "1 seed, 1 claim: smallest p 1, 1 after Holm; nothing"
    )
