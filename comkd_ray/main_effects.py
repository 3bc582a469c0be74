"""What each factor of an ablation is worth over all settings: of a factorial, and of a fraction of one.

Every number is made inside a seed that has all settings, and the seeds' values are then tested. In a
fraction only main effects are given: its interactions cannot all be told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from comkd_ray.arms import full_budget, scores_of
from comkd_ray.claims import at_values
from comkd_ray.components import components
from comkd_ray.config import Study
from comkd_ray.designs import settings
from comkd_ray.errors import UserError
from comkd_ray.factorial import Effect, effects, grid_of
from comkd_ray.search_space import Scalar
from comkd_ray.stats import estimate, holm, sign_flip_p, smallest_p

SCORE = "score"


def main_effects(arms: pl.DataFrame, study: Study) -> list[Effect]:
    """Effects of a factorial (interactions of two factors, too) or of a fraction; [] for other designs.

    Also [] where no seed has a score in every setting. A level is compared with its factor's first.
    """
    block = study.ablate
    assert block is not None
    if block.design == "factorial":
        try:
            found = effects(grid_of(_by_place(arms, study), list(block.factors), SCORE))
        except UserError:
            return []
        return [one._replace(levels=_levels(one, block.factors)) for one in found]
    return _of_fraction(arms, study) if block.design == "fractional" else []


def further_effects(arms: pl.DataFrame, study: Study | None, enumerated: bool | None) -> list[Effect]:
    """Effects of an ablation that `components` does not have: of other factors, and of a fraction."""
    if study is None or study.ablate is None:
        return []
    known = components(arms, study, enumerated)
    if known is not None and set(study.ablate.factors) <= set(known.grid.factors):
        return []
    return main_effects(arms, study)


def _by_place(arms: pl.DataFrame, study: Study) -> pl.DataFrame:
    """`seed`, `score` and the place of each factor's level: a row for every arm and setting that it is.

    An arm may be several settings, where a factor has no effect under another.
    """
    assert study.ablate is not None
    factors, score = study.ablate.factors, scores_of(arms).headline
    rows = full_budget(arms).drop_nulls([score])
    parts = [
        at_values(rows, setting).select(
            "seed",
            pl.col(score).alias(SCORE),
            *(pl.lit(factors[key].index(level)).alias(key) for key, level in setting.items()),
        )
        for setting in settings(study)
    ]
    return pl.concat(parts)


def _levels(effect: Effect, factors: Mapping[str, Sequence[Scalar]]) -> tuple[Scalar, ...]:
    """The levels that an effect's places stand for."""
    return tuple(factors[key][int(place)] for key, place in zip(effect.factors, effect.levels, strict=True))


def _of_fraction(arms: pl.DataFrame, study: Study) -> list[Effect]:
    """On minus off of each factor, inside each seed that has all settings."""
    assert study.ablate is not None
    rows, factors = _by_place(arms, study), study.ablate.factors
    means = rows.group_by("seed", *factors).agg(pl.col(SCORE).mean())
    counts = means.group_by("seed").len()
    whole = counts.filter(pl.col("len") == len(settings(study)))["seed"].sort()
    if whole.is_empty():
        return []
    values = {}
    for key in factors:
        sides = means.group_by("seed", key).agg(pl.col(SCORE).mean()).pivot(key, index="seed", values=SCORE)
        by_seed = {
            row["seed"]: row["1"] - row["0"] for row in sides.iter_rows(named=True) if row["seed"] in whole
        }
        values[key] = [by_seed[seed] for seed in whole]
    p_values = [sign_flip_p(own) for own in values.values()]
    return [
        Effect((key,), (factors[key][-1],), known, p, smallest_p(len(whole)), p_holm)
        for (key, own), p, p_holm in zip(values.items(), p_values, holm(p_values), strict=True)
        if (known := estimate(own)) is not None
    ]
