"""Is a variant better than another? Paired differences, their intervals, and a verdict per claim.

A claim says that a variant scores above (or below) another. Both are trained with the same seeds and
the seeds' differences are tested: an exact sign-flip test, adjusted by Holm over all claims that are
made together. Its only assumption is that without an effect a difference is as likely to have either
sign; that holds for any noise when the two variants' scores are then exchangeable.

The interval beside a verdict is Student's t. BCa (Efron 1987), which arXiv 2511.19794 pairs with the
sign-flip test, is given too, but it is too narrow for few seeds (docs/statistics.md), so it is not
the default. No verdict follows from an interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats as scipy_stats

from comkd_ray.errors import UserError
from comkd_ray.planner import LEVEL, seeds_needed, smallest_p_holm
from comkd_ray.stats import Estimate, estimate, holm, sign_flip_p, smallest_p

Direction = Literal["above", "below"]
Verdict = Literal["supported", "refuted", "open", "not decidable"]
"""`open` is said only where seeds are added until it is decided: `sequential.py`."""

_RESAMPLES = 1999


class Claim(NamedTuple):
    """That a variant's score is above (or below) another's, with the seeds' differences."""

    name: str
    differences: tuple[float, ...]
    """Variant minus the other, one a seed, in points of the score."""
    direction: Direction = "above"


class Comparison(NamedTuple):
    """A claim, and what its differences say about it. Fields after `n` are empty for n = 0."""

    claim: str
    direction: Direction
    n: int
    estimate: Estimate | None
    """Mean difference, sd and t-interval, in points."""
    bca: tuple[float, float] | None
    p: float
    smallest_p: float
    p_holm: float
    decidable: bool
    """Whether this n could have been significant, had it been the family's strongest claim."""
    verdict: Verdict
    further_seeds: int | None
    """Seeds to add so that an effect as large as the one seen is found with power 0.8; 0 where it is
    decided, None where no effect was seen or n < 2. A guess: the effect seen is itself uncertain."""
    at_any_look: bool = False
    """Whether p and verdict count every look, by the rule of `sequential.py`; else n was fixed before."""


def paired(variant: Mapping[int, float], other: Mapping[int, float]) -> tuple[float, ...]:
    """Differences variant - other over the seeds that both have, in the order of the seeds."""
    return tuple(variant[seed] - other[seed] for seed in sorted(variant.keys() & other.keys()))


def compare(claims: Sequence[Claim]) -> list[Comparison]:
    """Every claim of a family, in its order; p values are adjusted over those that have a pair.

    Raises UserError where a difference is not a finite number.
    """
    for claim in claims:
        require_finite(claim.name, claim.differences)
    tested = [claim for claim in claims if claim.differences]
    p_values = [sign_flip_p(claim.differences) for claim in tested]
    adjusted = iter(holm(p_values))
    family = max(1, len(tested))
    return [_compare(claim, next(adjusted) if claim.differences else 1.0, family) for claim in claims]


def _compare(claim: Claim, p_holm: float, family: int) -> Comparison:
    values, n = claim.differences, len(claim.differences)
    found = estimate(values)
    decided = p_holm < LEVEL
    verdict: Verdict = "not decidable"
    if decided and found is not None:
        verdict = "supported" if (found.mean > 0) == (claim.direction == "above") else "refuted"
    return Comparison(
        claim.name,
        claim.direction,
        n,
        found,
        bca(values),
        sign_flip_p(values),
        smallest_p(n),
        p_holm,
        smallest_p_holm(n, family) < LEVEL,
        verdict,
        0 if decided else further_seeds(found, family),
    )


def further_seeds(found: Estimate | None, claims: int = 1) -> int | None:
    """Seeds to add to those of an estimate until an effect as large as the one seen has power 0.8.

    At least 1: the call is for an open claim. None without a spread (n < 2), without an effect, or
    where the plan would pass `planner.MOST_SEEDS`. Adding seeds and testing again is a second look at
    the data; `sequential.py` is the rule whose error counts all looks.
    """
    if found is None or found.sd is None:
        return None
    effect = found.mean / found.sd if found.sd > 0 else math.copysign(math.inf, found.mean)
    needed = None if found.mean == 0 else seeds_needed(effect, claims)
    return None if needed is None else max(1, needed - found.n)


def bca(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """BCa bootstrap interval of the mean, 1,999 seeded resamples (scipy.stats.bootstrap).

    None below n = 3, where resamples hardly differ; the point itself where all values are equal.
    """
    sample = np.asarray(values, dtype=np.float64)  # [n]
    if len(sample) < 3:
        return None
    if np.ptp(sample) <= 1e-12 * max(1.0, float(np.abs(sample).max())):
        return float(sample.mean()), float(sample.mean())
    interval = scipy_stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=confidence,
        method="BCa",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def require_finite(name: str, values: Sequence[float]) -> None:
    """Refuse NaN and infinities: a missing score is left out by the caller, never counted."""
    for place, value in enumerate(values):
        if not math.isfinite(value):
            raise UserError(
                f"{name}: difference {place + 1} of {len(values)} is {value}; leave that seed out or train it"
            )
