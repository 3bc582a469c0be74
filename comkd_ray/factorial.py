"""What each component of a full factorial grid is worth: effects, interactions, Shapley values.

Every number is first computed inside each seed, from all cells of that seed, and the seeds' values
then give mean, t-interval and sign-flip p. So seeds are the unit, and noise that all cells of a seed
share falls out. For the means this is ordinary least squares with factors coded around zero (off -1/2,
on +1/2); least squares over all rows would take its spread from within the cells instead.

* Main effect: a level minus the first level, averaged over all settings of the other factors.
* Interaction of two factors: by how much the effect of one changes with the other (a difference of
  differences, not halved); of more factors the same once more.
* Shapley value (Shapley 1953): a component's gain when it joins those before it, averaged over every
  order of joining. The values add up to everything on minus everything off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from comkd_ray.errors import UserError
from comkd_ray.stats import Estimate, estimate, holm, sign_flip_p, smallest_p

Level = bool | int | float | str
Array = NDArray[np.float64]


class Grid(NamedTuple):
    """A full factorial: a score of every cell for every seed."""

    factors: tuple[str, ...]
    levels: tuple[tuple[Level, ...], ...]
    """Of each factor, in order; the first is the one that the others are compared with (off)."""
    seeds: tuple[int, ...]
    scores: Array
    """[seeds, levels of factor 1, ..., levels of factor k]"""
    dropped: tuple[int, ...] = ()
    """Seeds that lack a cell."""


class Effect(NamedTuple):
    """A main effect (one factor) or an interaction, in points of the score."""

    factors: tuple[str, ...]
    levels: tuple[Level, ...]
    """The level of each that is compared with its factor's first."""
    estimate: Estimate
    p: float
    smallest_p: float
    p_holm: float
    """Adjusted over all effects that were computed together."""


class Share(NamedTuple):
    """Shapley value of a component, in points of the score."""

    factor: str
    estimate: Estimate


def grid_of(rows: pl.DataFrame, factors: Sequence[str], score: str, seed: str = "seed") -> Grid:
    """Table of a grid from one row an arm; rows of one cell and seed are averaged.

    Levels are in ascending order (false before true). Seeds that lack a finite score in some cell are
    dropped and named. Raises UserError for a factor with an empty value or a single level, and where
    no seed has all cells.
    """
    for factor in factors:
        if rows[factor].null_count() or rows[factor].n_unique() < 2:
            raise UserError(f"{factor}: a factor needs a value in every row and at least two different ones")
    levels = tuple(tuple(rows[factor].unique().sort()) for factor in factors)
    finite = rows.filter(pl.col(score).is_finite())
    means = finite.group_by([seed, *factors]).agg(pl.col(score).mean())
    found = {tuple(row[:-1]): row[-1] for row in means.select(seed, *factors, score).iter_rows()}
    seeds = sorted(rows[seed].unique())
    cells = list(product(*levels))
    whole = [one for one in seeds if all((one, *cell) in found for cell in cells)]
    if not whole:
        lacking = next(cell for cell in cells if (seeds[0], *cell) not in found)
        named = ", ".join(f"{factor}={level}" for factor, level in zip(factors, lacking, strict=True))
        raise UserError(f"{score}: no seed has all {len(cells)} cells; seed {seeds[0]} lacks {named}")
    scores = np.array([[found[(one, *cell)] for cell in cells] for one in whole], dtype=np.float64)
    shape = (len(whole), *map(len, levels))
    dropped = tuple(one for one in seeds if one not in whole)
    return Grid(tuple(factors), levels, tuple(whole), scores.reshape(shape), dropped)


def effects(grid: Grid, order: int = 2) -> list[Effect]:
    """Main effects and interactions of up to `order` factors, mains first.

    Raises UserError where a score is not a finite number.
    """
    _require_finite(grid)
    chosen: list[dict[int, int]] = []  # factor to level, both as their positions
    for size in range(1, min(order, len(grid.factors)) + 1):
        for axes in combinations(range(len(grid.factors)), size):
            above = [range(1, len(grid.levels[axis])) for axis in axes]
            chosen += [dict(zip(axes, picked, strict=True)) for picked in product(*above)]
    by_seed = [contrast(grid, picked) for picked in chosen]  # each [seeds]
    p_values = [sign_flip_p(values.tolist()) for values in by_seed]
    return [
        Effect(
            tuple(grid.factors[axis] for axis in picked),
            tuple(grid.levels[axis][level] for axis, level in picked.items()),
            _mean(values),
            p,
            smallest_p(len(values)),
            p_holm,
        )
        for picked, values, p, p_holm in zip(chosen, by_seed, p_values, holm(p_values), strict=True)
    ]


def contrast(grid: Grid, picked: Mapping[int, int]) -> Array:
    """An effect inside each seed: [seeds]. picked: position of a factor to that of its level.

    Picked factors are differenced (level minus first level), all others averaged out.
    """
    scores: Any = grid.scores
    for axis in reversed(range(len(grid.factors))):
        if axis in picked:
            scores = scores.take(picked[axis], axis + 1) - scores.take(0, axis + 1)
        else:
            scores = scores.mean(axis + 1)
    return np.asarray(scores, dtype=np.float64)


def shapley(grid: Grid) -> list[Share]:
    """Exact Shapley value of each component of a 2^k grid, with its t-interval over seeds.

    Raises UserError for a factor with more than two levels, or a score that is not finite.
    """
    _require_finite(grid)
    for factor, levels in zip(grid.factors, grid.levels, strict=True):
        if len(levels) != 2:
            raise UserError(f"{factor}: a Shapley value needs off and on, not {len(levels)} levels")
    return [Share(factor, _mean(_shapley_by_seed(grid, axis))) for axis, factor in enumerate(grid.factors)]


def _shapley_by_seed(grid: Grid, axis: int) -> Array:
    """[seeds]: gain of a component over each set of the others, weighted by how many orders have it."""
    k = len(grid.factors)
    gains: Any = grid.scores.take(1, axis + 1) - grid.scores.take(0, axis + 1)  # [seeds, 2, ..., 2]
    total = np.zeros(len(grid.seeds))
    for others in product((0, 1), repeat=k - 1):
        before = sum(others)
        weight = math.factorial(before) * math.factorial(k - 1 - before) / math.factorial(k)
        total += weight * gains[(slice(None), *others)]
    return total


def _mean(by_seed: Array) -> Estimate:
    found = estimate(by_seed.tolist())
    if found is None:
        raise UserError("a factorial needs at least one seed with all cells")
    return found


def _require_finite(grid: Grid) -> None:
    if not np.isfinite(grid.scores).all():
        seed = grid.seeds[int(np.argwhere(~np.isfinite(grid.scores))[0, 0])]
        raise UserError(f"seed {seed} has a cell without a finite score; leave the seed out or train it")
