"""Differences seed by seed: which arms are matched, and what `comparison` says of each pair of kinds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
from comkd_ray.collapse import FLAG, flagged, tally
from comkd_ray.comparison import Claim, Comparison, Direction, compare
from comkd_ray.sequential import compare_at_any_look
from comkd_ray.study_file import has_effect


class Rule(NamedTuple):
    """How settings are compared: what is claimed of each, how the seeds were chosen, what is crossed."""

    direction: Direction = "above"
    max_seeds: int | None = None
    """Seeds were added to open claims, up to so many; None: their number was fixed beforehand."""
    seeds_left: bool = True
    """Whether open claims may still get one."""
    compares: bool = True
    """Whether settings are compared with the first; those of a fraction are not."""
    crossed: frozenset[str] = frozenset()
    """Keys that the study has with every setting of all others: where one has no effect, an arm is all."""

    @property
    def of_methods(self) -> Rule:
        """That of `paired_by_seed`: methods are always compared, and each claims to be above."""
        return self._replace(direction="above", compares=True)


FIXED = Rule()


class Paired(NamedTuple):
    """Arms minus other arms, seed by seed, in points of a score."""

    baseline: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    found: Comparison
    """What they say of the claim that these arms score above the baseline."""
    flags: tuple[tuple[int, str], ...] = ()
    """(seed, flag) of every flagged arm in the differences: it is counted, and told."""

    @property
    def name(self) -> str:
        """Of the arms: a method's, or a variant's."""
        return self.found.claim

    @property
    def told(self) -> str:
        """`1 collapsed (seed 3)`: what stands beside a verdict; empty where no arm has a flag."""
        seeds = sorted({seed for seed, _ in self.flags})
        if not seeds:
            return ""
        named = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        return f"{tally(flag for _, flag in self.flags)} ({named})"


def family(baseline: str, pairs: Sequence[tuple[str, pl.DataFrame]], rule: Rule = FIXED) -> list[Paired]:
    """Every (name, rows of `differences`) as a claim of one family; names without a pair are left out."""
    filled = [(name, rows) for name, rows in pairs if len(rows)]
    claims = [Claim(name, tuple(rows["difference"]), rule.direction) for name, rows in filled]
    compared = compare(claims) if rule.max_seeds is None else compare_at_any_look(claims, rule.seeds_left)
    return [
        Paired(baseline, tuple(rows["seed"]), tuple(rows["difference"]), found, _flags(rows))
        for (_, rows), found in zip(filled, compared, strict=True)
    ]


def _flags(rows: pl.DataFrame) -> tuple[tuple[int, str], ...]:
    return tuple((seed, flag) for seed, flags in rows.select("seed", FLAG).iter_rows() for flag in flags)


def differences(
    ours: pl.DataFrame, theirs: pl.DataFrame, score: str, match: Sequence[str] = ()
) -> pl.DataFrame:
    """`seed`, `difference` (points), `flag` (list): ours minus theirs, one row a seed that both have.

    Arms are matched on the seed and the columns `match`. Within a match their scores are averaged, and
    matches within a seed, because two arms of one seed are not independent. Arms without a finite score
    are left out; flagged arms (`collapse.py`) are not, `flag` names those of a seed.
    """
    keys, named = ["seed", *match], pl.col(FLAG).filter(pl.col(FLAG) != "")
    finite = [flagged(rows).filter(pl.col(score).is_finite()) for rows in (ours, theirs)]
    means = [rows.group_by(keys).agg(pl.col(score).mean(), named) for rows in finite]
    pairs = means[0].join(means[1], on=keys, suffix="_off", nulls_equal=True)
    pairs = pairs.with_columns(
        pl.concat_list(FLAG, f"{FLAG}_off").alias(FLAG), difference=pl.col(score) - pl.col(f"{score}_off")
    )
    every = pl.col(FLAG).explode().drop_nulls().sort()
    return pairs.group_by("seed").agg(pl.col("difference").mean(), every).sort("seed")


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


def paired_by_seed(arms: pl.DataFrame, score: str, rule: Rule = FIXED) -> list[Paired]:
    """Projector only, and each module of the 2x2, minus both modules off in `score`, by seed.

    Arms are matched on the seed and on every other key that all arms searched; what only some
    searched is averaged within a match, and so is what is crossed but has no effect with both modules
    off (attention_scale needs EduAttention). Pairs with a missing half are left out. p values are
    adjusted over the methods compared; each claims to be above.
    """
    rows = full_budget(arms).drop_nulls([score])
    baseline, *others = module_cells(arms)
    if baseline != PROJECTOR_ONLY:
        others.insert(0, PROJECTOR_ONLY)
    found = []
    for method in others:
        ours, theirs = of_method(rows, method), of_method(rows, baseline)
        pairs = differences(ours, theirs, score, _matched(rows, method, baseline, rule.crossed))
        found.append((METHODS[method], pairs))
    return family(METHODS[baseline], found, rule.of_methods)


def _matched(rows: pl.DataFrame, method: Method, baseline: Method, crossed: Collection[str]) -> list[str]:
    """Keys that all arms searched, without those that tell the two methods apart, or stand for all values."""
    searched = [set(keys or ()) for keys in rows["searched"].to_list()]
    common = set.intersection(*searched) if searched else set()
    told_apart = {IFALIGN, EDU_ATTENTION, SEED} | ({PROMPTS} if method[0] != baseline[0] else set())
    off = {IFALIGN: baseline[1], EDU_ATTENTION: baseline[2]}
    return sorted(key for key in common - told_apart if key not in crossed or has_effect(key, off))
