"""What the rows of a study may claim: means with intervals, paired differences, an exact test.

Pure functions of numbers and of the `arms` table. Three habits of this field are avoided here:

* The interval is Student's t with ddof = 1. The usual `1.96 * np.std(x) / sqrt(n)` (ddof = 0) is
  2.7 times too narrow for three seeds.
* Arms are compared pair by pair (same seed, same other settings), never mean against mean.
* A p value comes with the smallest p its n can reach: with three seeds that is 0.25, so no
  outcome could have been called significant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from scipy import stats

Row = dict[str, Any]

IFALIGN, EDU_ATTENTION = "student.ifalign", "student.edu_attention"
SEED = "train.seed"

Cell = tuple[bool, bool]
"""One corner of the 2x2: (student.ifalign, student.edu_attention)."""
BOTH_OFF: Cell = (False, False)
CELLS: dict[Cell, str] = {
    BOTH_OFF: "both off (PromptKD)",
    (True, False): "IFAlign only",
    (False, True): "EduAttention only",
    (True, True): "both on (ComKD-CLIP)",
}

_EXACT_UP_TO = 20  # 2^20 sign patterns take 8 MiB and milliseconds
_DRAWS = 200_000


class Estimate(NamedTuple):
    """A mean with its spread; `sd` and the interval are None where n < 2."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


class Paired(NamedTuple):
    """A cell of the 2x2 minus both-off, seed by seed, in points of a score."""

    cell: Cell
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    estimate: Estimate
    p: float
    smallest_p: float
    p_holm: float
    decidable: bool
    """Whether this n could have reached p < 0.05 after Holm's correction at all."""


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
    """The smallest two-sided sign-flip p that n pairs can reach: 2 / 2^n, at most 1."""
    return min(1.0, 2.0 / 2.0**n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979), in the order given: running max of (k - rank) p."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def full_budget(arms: pl.DataFrame) -> pl.DataFrame:
    """Arms that trained for all their epochs and have a finite validation score."""
    score = pl.col("val_harmonic_mean")
    return arms.filter(pl.col("status") == "complete", score.is_not_null(), score.is_finite())


def best_arm(arms: pl.DataFrame) -> Row | None:
    """The full-budget arm with the highest val_harmonic_mean; the earliest of equals, or None."""
    ranked = ranking(arms)
    return ranked.row(0, named=True) if len(ranked) else None


def ranking(arms: pl.DataFrame) -> pl.DataFrame:
    """Full-budget arms, best val_harmonic_mean first; equals in the order of `number`."""
    return full_budget(arms).sort(
        "val_harmonic_mean", "number", descending=[True, False], maintain_order=True
    )


def in_cell(arms: pl.DataFrame, cell: Cell) -> pl.DataFrame:
    """The arms of one corner of the 2x2."""
    return arms.filter(pl.col(IFALIGN) == cell[0], pl.col(EDU_ATTENTION) == cell[1])


def has_modules(arms: pl.DataFrame) -> bool:
    """Whether the table says which modules each arm had."""
    return IFALIGN in arms.columns and EDU_ATTENTION in arms.columns


def cell_values(arms: pl.DataFrame, cell: Cell, score: str) -> list[float]:
    """Values of `score` (percent) of the full-budget arms of a cell, without nulls."""
    return [float(value) for value in in_cell(full_budget(arms), cell)[score].drop_nulls()]


def searched_keys(arms: pl.DataFrame) -> list[str]:
    """Every key that at least one arm searched, in alphabetical order."""
    return sorted({key for keys in arms["searched"].drop_nulls().to_list() for key in keys})


def is_seeded_grid(arms: pl.DataFrame, sampler: str | None) -> bool:
    """Whether arms can be paired by seed: a grid whose searched keys include train.seed.

    `sampler` is search.sampler of the study, or None where the study file is gone: then rows that
    fill seeds x modules without holes count as a grid.
    """
    if not has_modules(arms) or SEED not in searched_keys(arms) or arms["seed"].n_unique() < 2:
        return False
    if sampler is not None:
        return sampler == "grid"
    full = arms.select("seed", IFALIGN, EDU_ATTENTION).unique()
    return len(full) == full["seed"].n_unique() * len(full.unique([IFALIGN, EDU_ATTENTION]))


def paired_by_seed(arms: pl.DataFrame, score: str = "test_harmonic_mean") -> list[Paired]:
    """Each cell of the 2x2 minus both-off in `score`, paired by seed: one difference a seed.

    Arms are matched on the seed and on every other key that all arms searched; what only some
    searched (attention_scale needs EduAttention) is averaged within a match, and matches are
    averaged within a seed, because two arms of one seed are not independent. Pairs with a missing
    half are left out. p values are adjusted over the cells compared.
    """
    rows = full_budget(arms).drop_nulls([score])
    searched = [set(keys or ()) for keys in rows["searched"].to_list()]
    common = set.intersection(*searched) if searched else set()
    match = ["seed", *sorted(common - {IFALIGN, EDU_ATTENTION, SEED})]
    by_cell = {cell: in_cell(rows, cell).group_by(match).agg(pl.col(score).mean()) for cell in CELLS}
    found = []
    for cell in list(CELLS)[1:]:
        pairs = by_cell[cell].join(by_cell[BOTH_OFF], on=match, suffix="_off", nulls_equal=True)
        pairs = pairs.with_columns(difference=pl.col(score) - pl.col(f"{score}_off"))
        pairs = pairs.group_by("seed").agg(pl.col("difference").mean()).sort("seed")
        if len(pairs):
            found.append((cell, tuple(pairs["seed"]), tuple(pairs["difference"])))
    p_values = [sign_flip_p(differences) for _, _, differences in found]
    paired = []
    for (cell, seeds, values), p, p_holm in zip(found, p_values, holm(p_values), strict=True):
        mean = estimate(values)
        assert mean is not None
        reach = smallest_p(len(values))
        decidable = reach * len(found) < 0.05
        paired.append(Paired(cell, seeds, values, mean, p, reach, p_holm, decidable))
    return paired


def verdict(pair: Paired) -> str:
    """A paired difference at Holm-adjusted p < 0.05: above, below, or not decidable."""
    if pair.p_holm >= 0.05:
        return "not decidable"
    return "above" if pair.estimate.mean > 0 else "below"


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
