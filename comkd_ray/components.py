"""What the modules are worth in a study that is a full factorial: which arms are one, and its numbers.

The 2x2 over seeds is the smallest. Every other value that arms differ in is a factor too, and has to
be crossed with the modules completely: what a hole in the grid would hide is not guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import polars as pl

from comkd_ray.arms import (
    EDU_ATTENTION,
    IFALIGN,
    PROMPTS,
    SEED,
    full_budget,
    module_cells,
    scores_of,
    searched_keys,
)
from comkd_ray.collapse import among
from comkd_ray.config import Study
from comkd_ray.errors import UserError
from comkd_ray.factorial import Effect, Grid, Share, effects, grid_of, shapley
from comkd_ray.pairing import is_seeded_grid
from comkd_ray.reference_rows import at_own_values
from comkd_ray.search_space import Scalar
from comkd_ray.stats import Estimate, estimate
from comkd_ray.study_file import has_effect

MODULES = (IFALIGN, EDU_ATTENTION)


class Components(NamedTuple):
    """A factorial of the modules, in points of the headline score."""

    grid: Grid
    """The modules first, then every other value that its arms differ in."""
    effects: list[Effect]
    """Main effects, then interactions of two factors."""
    shares: list[Share]
    """Shapley values of the modules, and of prompts where the grid has them off and on."""
    total: Estimate
    """All components on minus all off: the sum of the shares."""
    flags: tuple[str, ...] = ()
    """One a flagged arm of the grid (`collapse.py`)."""


def components(arms: pl.DataFrame, study: Study | None, enumerated: bool | None) -> Components | None:
    """The widest complete grid of two seeds or more among the arms; None where there is none.

    Tried in turn: all full-budget arms; those with prompts (in a study without any, without); of
    these, those at the study file's own values.
    """
    if not is_seeded_grid(arms, enumerated):
        return None
    score = scores_of(arms).headline
    for rows in _candidates(arms, study):
        varied = _varied(rows)
        if not set(MODULES) <= set(varied):
            continue
        try:
            grid = grid_of(rows, [*MODULES, *(key for key in varied if key not in MODULES)], score)
        except UserError:  # no seed has every cell
            continue
        if len(grid.seeds) > 1:
            inside = rows.filter(pl.col("seed").is_in(grid.seeds))
            return _worth(grid)._replace(flags=among(inside).flags)
    return None


def _varied(rows: pl.DataFrame) -> list[str]:
    """Searched keys, the seed apart, that these arms differ in: counted are values that have an effect."""
    values: dict[str, set[Scalar]] = {key: set() for key in searched_keys(rows) if key != SEED}
    for row in rows.iter_rows(named=True):
        for key in values:
            if has_effect(key, row):
                values[key].add(row[key])
    return [key for key, own in values.items() if len(own) > 1]


def _candidates(arms: pl.DataFrame, study: Study | None) -> Iterator[pl.DataFrame]:
    full = full_budget(arms)
    yield full
    prompted = full.filter((pl.col(PROMPTS) > 0) == module_cells(arms)[0][0])
    yield prompted
    yield at_own_values(prompted, study)


def _worth(grid: Grid) -> Components:
    alone = _of_components(grid)
    shares = shapley(alone)
    cells = alone.scores.reshape(len(alone.seeds), -1)  # the first has all off, the last all on
    total = estimate((cells[:, -1] - cells[:, 0]).tolist())
    assert total is not None
    return Components(grid, effects(grid), shares, total)


def _of_components(grid: Grid) -> Grid:
    """The grid of what is off or on, averaged over all other factors."""
    kept = [
        axis
        for axis, (factor, levels) in enumerate(zip(grid.factors, grid.levels, strict=True))
        if factor in MODULES or (factor == PROMPTS and len(levels) == 2 and levels[0] == 0)
    ]
    others = tuple(axis + 1 for axis in range(len(grid.factors)) if axis not in kept)
    return grid._replace(
        factors=tuple(grid.factors[axis] for axis in kept),
        levels=tuple(grid.levels[axis] for axis in kept),
        scores=grid.scores.mean(axis=others),
    )
