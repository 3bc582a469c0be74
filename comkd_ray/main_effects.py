"""What each factor of an ablation is worth over all settings: of a factorial, and of a fraction of one.

Every number is made inside a seed that has all settings, and the seeds' values are then tested. In a
fraction only main effects are given: its interactions cannot all be told apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from comkd_ray.arms import SEED, full_budget, is_same, scores_of
from comkd_ray.config import Study
from comkd_ray.designs import settings
from comkd_ray.errors import UserError
from comkd_ray.factorial import Effect, effects, grid_of
from comkd_ray.search_space import Overrides
from comkd_ray.stats import estimate, holm, sign_flip_p, smallest_p


def main_effects(arms: pl.DataFrame, study: Study) -> list[Effect]:
    """Effects of a factorial (interactions of two factors, too) or of a fraction; [] for other designs.

    Also [] where no seed has a score in every setting.
    """
    block, score = study.ablate, scores_of(arms).headline
    assert block is not None
    rows = full_budget(arms).drop_nulls([score])
    if block.design == "factorial":
        try:
            return effects(grid_of(rows, list(block.factors), score))
        except UserError:
            return []
    return _of_fraction(rows, study, score) if block.design == "fractional" else []


def _of_fraction(rows: pl.DataFrame, study: Study, score: str) -> list[Effect]:
    assert study.ablate is not None
    asked, factors = settings(study), study.ablate.factors
    found = [_by_seed(rows, setting, score) for setting in asked]
    seeds = sorted(set.intersection(*map(set, found)))
    if not seeds:
        return []
    scores = np.array([[own[seed] for own in found] for seed in seeds])  # [seeds, settings]
    values = []
    for key, levels in factors.items():
        on = np.array([setting[key] == levels[-1] for setting in asked])
        values.append((scores[:, on].mean(axis=1) - scores[:, ~on].mean(axis=1)).tolist())
    p_values = [sign_flip_p(own) for own in values]
    return [
        Effect((key,), (levels[-1],), known, p, smallest_p(len(seeds)), p_holm)
        for (key, levels), own, p, p_holm in zip(
            factors.items(), values, p_values, holm(p_values), strict=True
        )
        if (known := estimate(own)) is not None
    ]


def _by_seed(rows: pl.DataFrame, setting: Overrides, score: str) -> Mapping[int, float]:
    keys = (*setting, SEED)
    return {
        row[SEED]: float(row[score])
        for row in rows.select(*dict.fromkeys((*keys, score))).iter_rows(named=True)
        if all(is_same(row[key], value) for key, value in setting.items())
    }
