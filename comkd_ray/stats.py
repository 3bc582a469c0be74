"""What numbers may claim: means with intervals, paired differences, an exact test.

Pure functions of numbers. Three habits of this field are avoided here:

* The interval is Student's t with ddof = 1. The usual `1.96 * np.std(x) / sqrt(n)` (ddof = 0) is
  2.7 times too narrow for three seeds.
* Arms are compared pair by pair (same seed, same other settings), never mean against mean.
* A p value comes with the smallest p its n can reach: with three seeds that is 0.25, so no
  outcome could have been called significant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

_EXACT_UP_TO = 20  # 2^20 sign patterns take 8 MiB and milliseconds
_DRAWS = 200_000


class Estimate(NamedTuple):
    """A mean with its spread; `sd` and the interval are None where n < 2."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate | None:
    """Mean, sd (ddof = 1) and t-interval of n values: mean +- t(n - 1) * sd / sqrt(n).

    None without values. https://en.wikipedia.org/wiki/Student%27s_t-distribution#Confidence_intervals
    """
    n = len(values)
    if n == 0:
        return None
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(1, mean, None, None, None)
    sd = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * sd / math.sqrt(n)
    return Estimate(n, mean, sd, mean - half, mean + half)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided sign-flip p of n paired differences: the share of the 2^n sign patterns whose
    |sum| is at least the observed one (Fisher 1935, Design of Experiments, section 21).

    Exact up to n = 20; above, (hits + 1) / (draws + 1) of 200,000 seeded patterns. 1.0 for n = 0.
    """
    values = np.asarray(differences, dtype=np.float64)  # [n]
    observed = abs(values.sum())
    tolerance = 1e-9 * max(1.0, float(np.abs(values).sum()))
    if len(values) <= _EXACT_UP_TO:
        sums = np.zeros(1)  # grows to [2^n]
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= observed - tolerance))
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(_DRAWS // 1000):
        signs = draw.integers(0, 2, (1000, len(values))) * 2 - 1
        hits += int(np.sum(np.abs(signs @ values) >= observed - tolerance))
    return (hits + 1) / (_DRAWS + 1)


def smallest_p(n: int) -> float:
    """The smallest two-sided p that `sign_flip_p` gives n pairs: 2 / 2^n, or one of its draws."""
    return min(1.0, 2.0 / 2.0**n) if n <= _EXACT_UP_TO else 1 / (_DRAWS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979), in the order given: running max of (k - rank) p."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def pareto(cost: Sequence[float], score: Sequence[float]) -> list[int]:
    """Indices of points that no other beats in both (lower cost, higher score), cheapest first.

    Of equal points the first stands for all.
    """
    front: list[int] = []
    order = sorted(range(len(cost)), key=lambda i: (cost[i], -score[i], i))
    for index in order:
        if not front or score[index] > score[front[-1]]:
            front.append(index)
    return front
