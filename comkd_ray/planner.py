"""What a design can find, before a GPU is spent: the p values, effects and seeds in its reach.

An effect is in sd units: the mean of the paired differences over their standard deviation. Power is
the chance of the verdict "supported" by the two-sided sign-flip test at `LEVEL`, for normal
differences, where one claim of `claims` has to pass Holm's first step (`LEVEL / claims`) on its own.
That is the worst case: Holm gives a claim more room once another of the family is significant.

Two computations, because the test is discrete for few seeds: up to n = 10 the exact test runs on
4,000 seeded draws (standard error at most 0.8 points); above, the noncentral t at the level that the
sign-flip test attains, to which the test converges (Hoeffding 1952). `docs/statistics.md` has the
distance between the two, and between both and fresh simulations.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from comkd_ray.stats import smallest_p
from comkd_ray.words import counted

LEVEL = 0.05
"""A claim is significant where its p, adjusted over the family of claims, is below this."""
POWER = 0.8
"""Chance of finding an effect that `detectable` and `seeds_needed` ask for."""
MOST_SEEDS = 1000
"""Beyond this many seeds `seeds_needed` answers None: such an effect is below 0.09 sd."""

_DRAWN_UP_TO = 10
_DRAWS = 4000
_LARGEST_EFFECT = 1e3

Array = NDArray[np.float64]


class Plan(NamedTuple):
    """What `seeds` paired seeds can show of `claims` claims."""

    seeds: int
    claims: int
    smallest_p: float
    """Of one claim alone: 2 / 2^seeds."""
    smallest_p_holm: float
    """Of the first claim of the family, after Holm."""
    detectable: float | None
    """Smallest effect in sd units with power 0.8; None where no outcome can be significant."""
    fewest_seeds: int
    """With fewer seeds than this no outcome can be significant."""


def plan(seeds: int, claims: int = 1) -> Plan:
    """The reach of a design. seeds: pairs a claim; claims: comparisons in the family."""
    return Plan(
        seeds,
        claims,
        smallest_p(seeds),
        smallest_p_holm(seeds, claims),
        detectable(seeds, claims),
        fewest_seeds(claims),
    )


def foretell(design: Plan) -> str:
    """A plan in one line, for `--dry-run`."""
    reach = f"{counted(design.seeds, 'seed')}, {counted(design.claims, 'claim')}: "
    reach += f"smallest p {design.smallest_p:.2g}"
    reach += f", {design.smallest_p_holm:.2g} after Holm"
    if design.detectable is None:
        return f"{reach}; nothing can be decided, {design.fewest_seeds} seeds could"
    return f"{reach}; effects from {design.detectable:.1f} sd are found in {POWER:.0%} of cases"


def smallest_p_holm(seeds: int, claims: int) -> float:
    """Smallest p that the first claim of a family can have after Holm's correction."""
    return min(1.0, claims * smallest_p(seeds))


def fewest_seeds(claims: int = 1) -> int:
    """Seeds below which no outcome of any claim is significant: 6 for one claim, 7 for two."""
    seeds = 1
    while smallest_p_holm(seeds, claims) >= LEVEL:
        seeds += 1
    return seeds


def power(effect: float, seeds: int, claims: int = 1) -> float:
    """Chance that a claim with this true effect (sd units, in the claimed direction) is supported."""
    if smallest_p_holm(seeds, claims) >= LEVEL:
        return 0.0
    if seeds > _DRAWN_UP_TO:
        return _power_t(effect, seeds, claims)
    differences = _noise(seeds) + effect
    significant = claims * sign_flip_p_rows(differences) < LEVEL
    return float(np.mean(significant & (differences.sum(axis=1) > 0)))


@lru_cache(maxsize=4096)
def detectable(seeds: int, claims: int = 1) -> float | None:
    """Smallest effect in sd units that is found with power 0.8, to 0.1 %; None where none can be."""
    if smallest_p_holm(seeds, claims) >= LEVEL:
        return None
    low, high = 0.0, 1.0
    while power(high, seeds, claims) < POWER and high < _LARGEST_EFFECT:
        low, high = high, 2 * high
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, seeds, claims) >= POWER else (middle, high)
    return high


def seeds_needed(effect: float, claims: int = 1) -> int | None:
    """Smallest number of seeds with power 0.8 for an effect of either sign in sd units.

    Never below `fewest_seeds`, however large the effect. None for no effect, or beyond MOST_SEEDS.
    """
    fewest = fewest_seeds(claims)
    for seeds in range(fewest, _DRAWN_UP_TO + 1):  # one by one: drawn powers may step back by a hair
        if _finds(effect, seeds, claims):
            return seeds
    low, high = max(fewest, _DRAWN_UP_TO + 1), MOST_SEEDS
    if not _finds(effect, high, claims):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _finds(effect, middle, claims) else (middle + 1, high)
    return low


def _finds(effect: float, seeds: int, claims: int) -> bool:
    smallest = detectable(seeds, claims)
    return smallest is not None and abs(effect) >= smallest


def sign_flip_p_rows(differences: Array) -> Array:
    """`stats.sign_flip_p` of every row of [B, n], n <= 16, at once: [B]."""
    rows, n = differences.shape
    patterns = _patterns(n)  # [n, 2^(n - 1)]
    block = max(1, 2**22 // patterns.shape[1])
    p = np.empty(rows)
    for start in range(0, rows, block):
        part = differences[start : start + block]
        tolerance = 1e-9 * np.maximum(1.0, np.abs(part).sum(axis=1))
        observed = np.abs(part.sum(axis=1)) - tolerance
        p[start : start + block] = np.mean(np.abs(part @ patterns) >= observed[:, None], axis=1)
    return p


@lru_cache(maxsize=4)
def _patterns(n: int) -> Array:
    """Sign patterns [n, 2^(n - 1)] whose first sign is +: the others have the same |sum|."""
    numbers: NDArray[Any] = np.arange(2 ** (n - 1))
    rest = 1.0 - 2.0 * ((numbers[None, :] >> np.arange(n - 1)[:, None]) & 1)
    return np.concatenate([np.ones((1, len(numbers))), rest])


@lru_cache(maxsize=16)
def _noise(seeds: int) -> Array:
    """The same normal draws [4000, seeds] for every effect, so that power rises with the effect."""
    return np.random.default_rng(seeds).standard_normal((_DRAWS, seeds))


def _power_t(effect: float, seeds: int, claims: int) -> float:
    """Power of the t-test at the level that the sign-flip test attains: a multiple of 2 / 2^n."""
    step = smallest_p(seeds)
    attained = (math.ceil(LEVEL / claims / step) - 1) * step
    critical = scipy_stats.t.isf(attained / 2, seeds - 1)
    found = scipy_stats.nct.sf(critical, seeds - 1, effect * math.sqrt(seeds))
    return float(found) if math.isfinite(found) else 1.0  # scipy has no number for a far tail
