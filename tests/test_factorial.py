"""What components are worth: against least squares, every order of joining, and hand calculation."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pandas
import polars as pl
import pytest
import statsmodels.formula.api as smf
from numpy.typing import NDArray

from comkd_ray import factorial
from comkd_ray.errors import UserError
from comkd_ray.factorial import Grid

DRAW = np.random.default_rng(11)


def grid(*sizes: int, seeds: int = 5) -> Grid:
    names = tuple("abcd"[: len(sizes)])
    levels = tuple(tuple(range(size)) for size in sizes)
    return Grid(names, levels, tuple(range(seeds)), np.random.default_rng(3).normal(70, 2, (seeds, *sizes)))


def frame(one: Grid) -> pl.DataFrame:
    rows = [
        {"seed": one.seeds[at[0]], "score": value}
        | {name: one.levels[k][at[k + 1]] for k, name in enumerate(one.factors)}
        for at, value in np.ndenumerate(one.scores)
    ]
    return pl.DataFrame(rows)


def label(effect: factorial.Effect) -> tuple[str, ...]:
    return tuple(f"{name}{level}" for name, level in zip(effect.factors, effect.levels, strict=True))


def test_effects_of_a_2x2_by_hand() -> None:
    """Seed 0: a gains 2 without b and 6 with it, so 4, and the interaction is 4."""
    one = Grid(("a", "b"), ((False, True),) * 2, (0, 1), np.array([[[1.0, 2.0], [3.0, 8.0]]] * 2))
    found = {effect.factors: effect.estimate.mean for effect in factorial.effects(one)}
    assert found == {("a",): 4.0, ("b",): 3.0, ("a", "b"): 4.0}


@pytest.mark.parametrize("sizes", [(2, 2), (2, 2, 2), (2, 3), (3, 4, 2)])
def test_means_are_least_squares_of_statsmodels(sizes: tuple[int, ...]) -> None:
    """Each level of each factor as an indicator minus its share; seeds as blocks; all interactions."""
    one = grid(*sizes)
    table = frame(one).to_pandas()
    terms = []
    for name, levels in zip(one.factors, one.levels, strict=True):
        for level in levels[1:]:
            table[f"{name}{level}"] = (table[name] == level) - 1 / len(levels)
        terms.append("(" + " + ".join(f"{name}{level}" for level in levels[1:]) + ")")
    fit = smf.ols(f"score ~ {' * '.join(terms)} + C(seed)", table).fit()
    effects = factorial.effects(one, order=len(sizes))
    assert len(effects) == math.prod(sizes) - 1
    for effect in effects:
        assert effect.estimate.mean == pytest.approx(fit.params[":".join(label(effect))])


def test_interval_is_least_squares_of_the_seeds_contrasts() -> None:
    one = grid(2, 3, 2)
    for effect in factorial.effects(one):
        picked = {one.factors.index(f): level for f, level in zip(effect.factors, effect.levels, strict=True)}
        fit = smf.ols("y ~ 1", pandas.DataFrame({"y": factorial.contrast(one, picked)})).fit()
        assert (effect.estimate.low, effect.estimate.high) == pytest.approx(fit.conf_int().to_numpy()[0])


def test_noise_that_a_seed_gives_all_its_cells_falls_out() -> None:
    one = grid(2, 2)
    shifted = one._replace(scores=one.scores + DRAW.normal(0, 50, (5, 1, 1)))
    for before, after in zip(factorial.effects(one), factorial.effects(shifted), strict=True):
        assert after.estimate == pytest.approx(before.estimate)


def test_shapley_is_the_mean_over_every_order_of_joining() -> None:
    one = grid(2, 2, 2, 2)
    for axis, part in enumerate(factorial.shapley(one)):
        gains: list[NDArray[np.float64]] = []
        for order in permutations(range(4)):
            before = [0] * 4
            for joined in order[: order.index(axis)]:
                before[joined] = 1
            after = before.copy()
            after[axis] = 1
            gains.append(one.scores[(slice(None), *after)] - one.scores[(slice(None), *before)])
        by_seed = np.mean(gains, axis=0)
        assert part.factor == one.factors[axis]
        assert part.estimate.mean == pytest.approx(by_seed.mean())
        assert part.estimate.sd == pytest.approx(by_seed.std(ddof=1))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_shapley_values_add_up_to_all_on_minus_all_off(k: int) -> None:
    scores = np.random.default_rng(k).normal(size=(4, *[2] * k))
    one = Grid(tuple("abcde"[:k]), ((False, True),) * k, (0, 1, 2, 3), scores)
    total = (scores[(slice(None), *[1] * k)] - scores[(slice(None), *[0] * k)]).mean()
    assert sum(part.estimate.mean for part in factorial.shapley(one)) == pytest.approx(total)


def test_shapley_of_a_component_that_does_nothing_and_of_a_redundant_pair() -> None:
    """a and b do the same: either alone gives 2, both give 2. c does nothing. So 1, 1 and 0."""
    a, b, _ = np.indices((2, 2, 2))
    one = Grid(("a", "b", "c"), ((False, True),) * 3, (0,), 2.0 * np.maximum(a, b)[None])
    assert [part.estimate.mean for part in factorial.shapley(one)] == pytest.approx([1, 1, 0])


def test_shapley_frozen() -> None:
    """By hand, with a 1, b 2, c 3, ab 5, ac 4, bc 6, abc 10: a has 1/3 + 3/6 + 1/6 + 4/3."""
    values = np.array([[[0.0, 3.0], [2.0, 6.0]], [[1.0, 4.0], [5.0, 10.0]]])
    one = Grid(("a", "b", "c"), ((False, True),) * 3, (0,), values[None])
    assert [part.estimate.mean for part in factorial.shapley(one)] == pytest.approx([7 / 3, 23 / 6, 23 / 6])


def test_rows_become_a_grid() -> None:
    """In any order; repeated cells are averaged; false stands before true."""
    one = grid(2, 3)
    rows = frame(one).sample(fraction=1.0, shuffle=True, seed=1)
    found = factorial.grid_of(pl.concat([rows, rows]), ["a", "b"], "score")
    assert found[:3] == one[:3]
    assert found.scores == pytest.approx(one.scores)
    switches = rows.with_columns(pl.col("a").cast(pl.Boolean))
    assert factorial.grid_of(switches, ["a", "b"], "score").levels[0] == (False, True)


@pytest.mark.parametrize("hole", [None, math.nan])
def test_a_seed_that_lacks_a_cell_is_dropped_and_named(hole: float | None) -> None:
    rows = frame(grid(2, 2)).with_columns(
        score=pl.when((pl.col("seed") == 3) & (pl.col("a") == 1)).then(hole).otherwise("score")
    )
    found = factorial.grid_of(rows, ["a", "b"], "score")
    assert (found.seeds, found.dropped, found.scores.shape) == ((0, 1, 2, 4), (3,), (4, 2, 2))


def test_a_grid_with_a_hole_in_every_seed_is_refused() -> None:
    rows = frame(grid(2, 2)).filter((pl.col("a") == 0) | (pl.col("b") == 0))
    with pytest.raises(UserError, match="no seed has all 4 cells; seed 0 lacks a=1, b=1"):
        factorial.grid_of(rows, ["a", "b"], "score")


def test_a_factor_needs_levels() -> None:
    rows = frame(grid(2, 2))
    with pytest.raises(UserError, match="a: a factor needs"):
        factorial.grid_of(rows.with_columns(a=pl.lit(1)), ["a", "b"], "score")
    empty = rows.with_columns(b=pl.when(pl.col("b") == 1).then("b"))
    with pytest.raises(UserError, match="b: a factor needs"):
        factorial.grid_of(empty, ["a", "b"], "score")
    with pytest.raises(UserError, match="b: a Shapley value needs off and on, not 3 levels"):
        factorial.shapley(grid(2, 3))


def test_nan_is_refused() -> None:
    one = grid(2, 2)
    one.scores[2, 0, 1] = math.nan
    for question in (factorial.effects, factorial.shapley):
        with pytest.raises(UserError, match="seed 2 has a cell without a finite score"):
            question(one)


def test_one_seed_has_no_spread_and_none_has_nothing() -> None:
    effect = factorial.effects(grid(2, 2, seeds=1))[0]
    assert (effect.estimate.sd, effect.p, effect.smallest_p) == (None, 1.0, 1.0)
    with pytest.raises(UserError, match="at least one seed"):
        factorial.effects(grid(2, 2, seeds=0))
