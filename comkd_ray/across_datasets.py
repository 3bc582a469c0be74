"""Methods over several data sets: average ranks, Friedman's test, and which methods differ.

A data set counts once: seeds are averaged inside it first. Friedman asks whether the methods differ
at all (Demsar 2006); which ones do is told by Wilcoxon's signed-rank test of each pair with Holm's
correction, as tests on mean ranks (Nemenyi) let the outcome of two methods depend on the others
(Benavoli, Corani, Mangili 2016, arXiv 1505.02288). Holm holds the error over all pairs by itself, so
the pairs do not wait for Friedman.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from comkd_ray.errors import UserError
from comkd_ray.planner import LEVEL
from comkd_ray.stats import holm, sign_flip_p, smallest_p


class Scores(NamedTuple):
    """A score of every method on every data set; higher is better."""

    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    values: NDArray[np.float64]
    """[data sets, methods]"""


class Pair(NamedTuple):
    """Two methods over all data sets."""

    first: str
    second: str
    mean_difference: float
    """first - second, in points of the score."""
    wins: int
    """Data sets where `first` scores higher."""
    p: float
    p_holm: float


class Ranks(NamedTuple):
    """What a critical-difference diagram shows; methods are in the order of their ranks, best first."""

    methods: tuple[str, ...]
    average_ranks: tuple[float, ...]
    datasets: int
    friedman: tuple[float, float] | None
    """Statistic and p of Friedman's test; None for two methods or a single data set."""
    smallest_p: float
    """That this number of data sets can give a pair, before Holm."""
    pairs: tuple[Pair, ...]
    cliques: tuple[tuple[str, ...], ...]
    """Largest groups, of two or more, without a significant pair: the bars of the diagram. A group
    may skip a method whose rank lies between its members."""


def scores_of(rows: pl.DataFrame, dataset: str, method: str, score: str) -> Scores:
    """Table of data sets and methods from one row an arm, averaged over the rows of each.

    Raises UserError where a method lacks a finite score on a data set.
    """
    finite = rows.filter(pl.col(score).is_finite())
    means = finite.group_by([dataset, method]).agg(pl.col(score).mean())
    found = {(row[0], row[1]): row[2] for row in means.select(dataset, method, score).iter_rows()}
    datasets, methods = sorted(rows[dataset].unique()), sorted(rows[method].unique())
    for cell in ((one, other) for one in datasets for other in methods):
        if cell not in found:
            raise UserError(f"{score}: {cell[1]} has no score on {cell[0]}; leave one out or train it")
    values = np.array([[found[one, other] for other in methods] for one in datasets], dtype=np.float64)
    return Scores(tuple(map(str, datasets)), tuple(map(str, methods)), values)


def rank(scores: Scores) -> Ranks:
    """Rank the methods and test every pair.

    Raises UserError for fewer than two methods, no data set, or a score that is not finite.
    """
    values = scores.values
    count, methods = len(scores.datasets), scores.methods
    if count == 0 or len(methods) < 2:
        raise UserError("a ranking needs at least one data set and two methods")
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise UserError(f"{methods[column]} has no finite score on {scores.datasets[row]}")
    average = scipy_stats.rankdata(-values, axis=1).mean(axis=0)  # [methods], 1 is best
    order = [int(place) for place in np.argsort(average, kind="stable")]
    found = [(a, b, wilcoxon_p(values[:, a] - values[:, b])) for a, b in combinations(order, 2)]
    adjusted = holm([p for _, _, p in found])
    pairs = tuple(
        Pair(
            methods[a],
            methods[b],
            float(np.mean(values[:, a] - values[:, b])),
            int(np.sum(values[:, a] > values[:, b])),
            p,
            p_holm,
        )
        for (a, b, p), p_holm in zip(found, adjusted, strict=True)
    )
    ranked = tuple(methods[place] for place in order)
    average_ranks = tuple(float(average[place]) for place in order)
    groups = cliques(ranked, pairs)
    return Ranks(ranked, average_ranks, count, friedman(values), smallest_p(count), pairs, groups)


def friedman(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Friedman's statistic and p (chi-squared) of [data sets, methods]; (0, 1) where all tie.

    None for fewer than three methods or two data sets. The p is approximate and errs to the safe side
    for few data sets.
    """
    if values.shape[0] < 2 or values.shape[1] < 3:
        return None
    if (values == values[:, :1]).all():
        return 0.0, 1.0
    statistic, p = scipy_stats.friedmanchisquare(*values.T)
    return float(statistic), float(p)


def wilcoxon_p(differences: NDArray[np.float64]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test: the sign-flip test of the signed ranks.

    Zeros are dropped; 1.0 where all are zero. scipy.stats.wilcoxon gives the same, but takes a normal
    approximation for tied sizes, where this stays exact (up to 20 differences).
    """
    kept = differences[differences != 0]
    return sign_flip_p((scipy_stats.rankdata(np.abs(kept)) * np.sign(kept)).tolist())


def cliques(methods: Sequence[str], pairs: Sequence[Pair]) -> tuple[tuple[str, ...], ...]:
    """Every largest group of two or more methods in which no pair differs significantly."""
    alike: dict[str, set[str]] = {method: set() for method in methods}
    for pair in pairs:
        if pair.p_holm >= LEVEL:
            alike[pair.first].add(pair.second)
            alike[pair.second].add(pair.first)
    groups = _grow([], list(methods), set(), alike)
    return tuple(tuple(sorted(group, key=list(methods).index)) for group in groups if len(group) > 1)


def _grow(
    group: list[str], candidates: list[str], done: set[str], alike: Mapping[str, set[str]]
) -> list[list[str]]:
    """Bron and Kerbosch (1973): all maximal cliques that hold `group`."""
    if not candidates:
        return [] if done else [group]
    found: list[list[str]] = []
    done = set(done)
    for place, method in enumerate(candidates):
        rest = [other for other in candidates[place + 1 :] if other in alike[method]]
        found += _grow([*group, method], rest, done & alike[method], alike)
        done.add(method)
    return found
