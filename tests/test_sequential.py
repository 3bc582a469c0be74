"""The rule that may look after every seed: proved by counting all sign patterns, not by trust."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats as scipy_stats

from comkd_ray import sequential
from comkd_ray.comparison import Claim
from comkd_ray.errors import UserError

SIZES = np.array([0.3, 1.2, 0.7, 2.5, 0.1, 0.9, 1.1, 0.4, 3.0, 0.8])
PATTERNS = SIZES * np.array(list(product((-1.0, 1.0), repeat=len(SIZES))))  # [1024, 10]


def test_evidence_is_a_gamblers_purse() -> None:
    """Restated as a loop: stake, outcome, purse; two gamblers a direction share the start."""
    values = [0.5, -0.2, 1.4, 0.8]
    for direction, found in zip((1, -1), sequential.evidence(np.array([values]))[:, 0], strict=True):
        for place in range(len(values)):
            purses = []
            for theta in (1.0, 2.0):
                purse = 1.0
                for i in range(place + 1):
                    rms = math.sqrt(sum(value**2 for value in values[: i + 1]) / (i + 1))
                    stake = math.tanh(theta * abs(values[i]) / rms)
                    purse *= 1 + stake * direction * math.copysign(1, values[i])
                purses.append(purse)
            assert found[place] == pytest.approx(sum(purses) / 2)


def test_without_an_effect_the_purse_stays_what_it_was_on_average() -> None:
    """Over all 1,024 sign patterns of given sizes its mean is 1 after every difference."""
    assert sequential.evidence(PATTERNS).mean(axis=1) == pytest.approx(np.ones((2, 10)))


@pytest.mark.parametrize("level", [0.05, 0.01, 0.2])
def test_error_over_all_looks_is_below_the_level_exactly(level: float) -> None:
    """Of all sign patterns at most that share ever has a p below the level."""
    largest = sequential.evidence(PATTERNS).max(axis=(0, 2))
    assert np.mean(2 / largest < level) <= level
    assert largest[0] == pytest.approx(2 / sequential.anytime_p(PATTERNS[0].tolist())[0])


def test_p_never_rises_and_says_which_way() -> None:
    values = [1.0, 1.2, 0.9, 1.1, 1.0, 0.8, -0.1, -3.0, 0.0]
    found = [sequential.anytime_p(values[:n])[0] for n in range(len(values) + 1)]
    assert found == sorted(found, reverse=True)
    assert found[0] == 1.0
    assert sequential.anytime_p(values)[1] == "above"
    assert sequential.anytime_p([-value for value in values]) == (found[-1], "below")


def test_p_does_not_depend_on_the_unit() -> None:
    values = [0.7, -0.1, 1.2, 0.4]
    assert sequential.anytime_p([100 * value for value in values])[0] == pytest.approx(
        sequential.anytime_p(values)[0]
    )


def test_zeros_say_nothing() -> None:
    assert sequential.anytime_p([0.0] * 30) == (1.0, "above")
    purses = sequential.evidence(np.array([[1.0, 0.0, 0.0]]))[0, 0]
    assert purses[1] == purses[0] == purses[2]


def test_fewest_seeds_frozen() -> None:
    """Alone as few as a plain test needs. By hand: 2 / mean of 1.7616^8 and 1.9640^8 = 2 / 157.1."""
    assert [sequential.fewest_seeds(claims) for claims in (1, 2, 3, 6, 10)] == [6, 7, 8, 9, 10]
    assert sequential.anytime_p([1.0] * 8)[0] == pytest.approx(0.01273, abs=1e-5)


def test_standing_of_a_family() -> None:
    claims = [
        Claim("better", (1.0,) * 9),
        Claim("claimed better, is worse", (-1.0,) * 9),
        Claim("worse as claimed", (-1.0,) * 9, "below"),
        Claim("unclear", (1.0, -1.0) * 4),
        Claim("not begun", ()),
    ]
    for seeds_left, standing in ((True, "open"), (False, "not decidable")):
        found = {question.claim: question for question in sequential.decide(claims, seeds_left)}
        assert [question.standing for question in found.values()] == [
            "supported", "refuted", "supported", standing, standing,
        ]  # fmt: skip
        assert found["not begun"].p == 1.0


def test_more_seeds_may_be_allowed_later() -> None:
    """What was decided stays so, and p only falls."""
    draw = np.random.default_rng(2)
    claims = [Claim("a", tuple(draw.normal(2, 1, 20))), Claim("b", tuple(draw.normal(0.3, 1, 20)))]
    begun = [claim._replace(differences=claim.differences[:10]) for claim in claims]
    few, many = sequential.decide(begun, True), sequential.decide(claims, True)
    assert few[0].standing == many[0].standing == "supported"
    assert all(late.p <= early.p for early, late in zip(few, many, strict=True))


def test_nan_is_refused() -> None:
    with pytest.raises(UserError, match="a: difference 1 of 2 is nan"):
        sequential.decide([Claim("a", (math.nan, 1.0))], True)


def test_looking_after_every_seed_keeps_the_error() -> None:
    """300 nulls, looked at after each of 16 seeds, heavy-tailed noise; 5 % to 1 in 1,000."""
    values = np.random.default_rng(4).standard_t(3, (300, 16))
    decided = [
        sequential.decide([Claim("", tuple(row))], False)[0].standing != "not decidable"
        for row in values.tolist()
    ]
    assert sum(decided) <= scipy_stats.binom.ppf(0.999, 300, 0.05)
