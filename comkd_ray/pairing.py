"""Differences seed by seed: what one kind of arm has over another, and whether n seeds can decide it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from comkd_ray.arms import (
    EDU_ATTENTION,
    IFALIGN,
    METHODS,
    PROJECTOR_ONLY,
    PROMPTS,
    SEED,
    Method,
    full_budget,
    has_modules,
    module_cells,
    of_method,
    searched_keys,
)
from comkd_ray.stats import Estimate, estimate, holm, sign_flip_p, smallest_p


class Paired(NamedTuple):
    """Arms minus other arms, seed by seed, in points of a score."""

    name: str
    """Of the arms: a method's, or a variant's."""
    baseline: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    estimate: Estimate
    p: float
    smallest_p: float
    p_holm: float
    decidable: bool
    """Whether this n could have reached p < 0.05 after Holm's correction at all."""


def judged(baseline: str, found: Sequence[tuple[str, pl.DataFrame]]) -> list[Paired]:
    """What each (name, `seed` and `difference`) shows; names without a pair are left out.

    p values are adjusted over all that have one.
    """
    filled = [(name, tuple(pairs["seed"]), tuple(pairs["difference"])) for name, pairs in found if len(pairs)]
    p_values = [sign_flip_p(differences) for _, _, differences in filled]
    paired = []
    for (name, seeds, values), p, p_holm in zip(filled, p_values, holm(p_values), strict=True):
        mean = estimate(values)
        assert mean is not None
        reach = smallest_p(len(values))
        decidable = reach * len(filled) < 0.05
        paired.append(Paired(name, baseline, seeds, values, mean, p, reach, p_holm, decidable))
    return paired


def differences(
    ours: pl.DataFrame, theirs: pl.DataFrame, score: str, match: Sequence[str] = ()
) -> pl.DataFrame:
    """`seed`, `difference` (points): ours minus theirs, one row a seed that both have.

    Arms are matched on the seed and the columns `match`. Within a match their scores are averaged, and
    matches within a seed, because two arms of one seed are not independent.
    """
    keys = ["seed", *match]
    means = [rows.group_by(keys).agg(pl.col(score).mean()) for rows in (ours, theirs)]
    pairs = means[0].join(means[1], on=keys, suffix="_off", nulls_equal=True)
    pairs = pairs.with_columns(difference=pl.col(score) - pl.col(f"{score}_off"))
    return pairs.group_by("seed").agg(pl.col("difference").mean()).sort("seed")


def is_seeded_grid(arms: pl.DataFrame, enumerated: bool | None) -> bool:
    """Whether methods can be paired by seed: a grid or a list whose searched keys include train.seed.

    `enumerated` is search.is_enumerated of the study, or None where the study file is gone: then rows
    that fill seeds x methods without holes count as a grid.
    """
    if not has_modules(arms) or SEED not in searched_keys(arms) or arms["seed"].n_unique() < 2:
        return False
    if enumerated is not None:
        return enumerated
    method = [(pl.col(PROMPTS) > 0).alias("prompts"), pl.col(IFALIGN), pl.col(EDU_ATTENTION)]
    filled = arms.select("seed", *method).unique()
    return len(filled) == filled["seed"].n_unique() * len(filled.select(pl.exclude("seed")).unique())


def paired_by_seed(arms: pl.DataFrame, score: str) -> list[Paired]:
    """Projector only, and each module of the 2x2, minus both modules off in `score`, by seed.

    Arms are matched on the seed and on every other key that all arms searched; what only some
    searched (attention_scale needs EduAttention) is averaged within a match. Pairs with a missing
    half are left out. p values are adjusted over the methods compared.
    """
    rows = full_budget(arms).drop_nulls([score])
    baseline, *others = module_cells(arms)
    if baseline != PROJECTOR_ONLY:
        others.insert(0, PROJECTOR_ONLY)
    found = []
    for method in others:
        ours, theirs = of_method(rows, method), of_method(rows, baseline)
        pairs = differences(ours, theirs, score, _matched(rows, method, baseline))
        found.append((METHODS[method], pairs))
    return judged(METHODS[baseline], found)


def _matched(rows: pl.DataFrame, method: Method, baseline: Method) -> list[str]:
    """Keys that all arms searched, without those that tell the two methods apart."""
    searched = [set(keys or ()) for keys in rows["searched"].to_list()]
    common = set.intersection(*searched) if searched else set()
    told_apart = {IFALIGN, EDU_ATTENTION, SEED} | ({PROMPTS} if method[0] != baseline[0] else set())
    return sorted(common - told_apart)


def verdict(pair: Paired) -> str:
    """A paired difference at Holm-adjusted p < 0.05: above, below, or not decidable."""
    if pair.p_holm >= 0.05:
        return "not decidable"
    return "above" if pair.estimate.mean > 0 else "below"
