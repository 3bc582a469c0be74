"""The claims of an ablation: which arms are which setting, and each setting minus the reference."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from comkd_ray.arms import full_budget, is_same, scores_of
from comkd_ray.config import Study
from comkd_ray.designs import count_claims, distinct_claims, setting_names, settings
from comkd_ray.pairing import Paired, Rule, differences, family
from comkd_ray.search_space import Overrides
from comkd_ray.study_file import has_effect
from comkd_ray.words import counted, signed


def at_values(arms: pl.DataFrame, values: Overrides) -> pl.DataFrame:
    """Arms that have these values; of keys without effect on an arm (C without EduAttention) any value."""
    kept = [
        all(is_same(row[key], value) or not has_effect(key, row) for key, value in values.items())
        for row in arms.iter_rows(named=True)
    ]
    return arms.filter(pl.Series(kept, dtype=pl.Boolean))


def claims_of(arms: pl.DataFrame, study: Study, asked: Sequence[Overrides], rule: Rule) -> list[Paired]:
    """Every setting minus the first, by seed, as a family; those without a pair are left out.

    asked: values of the settings, in the order of the design; those of the design itself, or re-tuned.
    """
    score, names = scores_of(arms).headline, setting_names(study)
    rows = full_budget(arms).drop_nulls([score])
    reference = at_values(rows, asked[0])
    pairs = [
        (names[place], differences(at_values(rows, asked[place]), reference, score))
        for place in distinct_claims(study, asked)
    ]
    return family(names[0], pairs, rule)


def verdicts(arms: pl.DataFrame, study: Study | None, rule: Rule) -> list[str]:
    """The claims at fixed knobs, a line each; none for a fraction, whose settings are not compared."""
    if study is None or study.ablate is None or not rule.compares:
        return []
    return [_line(pair) for pair in claims_of(arms, study, settings(study), rule)]


def summary(arms: pl.DataFrame, study: Study | None, rule: Rule) -> str:
    """All claims at fixed knobs in a sentence, those that are settled by name; empty where none is made."""
    if study is None or study.ablate is None or not rule.compares:
        return ""
    claims, parts = count_claims(study), []
    if not claims:
        return ""
    pairs = claims_of(arms, study, settings(study), rule)
    for verdict in ("supported", "refuted", "open", "not decidable"):
        names = [pair.name for pair in pairs if pair.found.verdict == verdict]
        named = f" ({', '.join(names)})" * (verdict in ("supported", "refuted"))
        parts += [f"{len(names)} {verdict}{named}"] * bool(names)
    parts += [f"{claims - len(pairs)} without a pair of arms"] * (claims > len(pairs))
    question = f"Which settings score {study.ablate.direction} {setting_names(study)[0]}?"
    return f"{question} Of {counted(claims, 'claim')}: {', '.join(parts)}."


def _line(pair: Paired) -> str:
    found = pair.found
    mean = None if found.estimate is None else found.estimate.mean
    words = f"{pair.name} minus {pair.baseline}: {signed(mean, 2)} points, {counted(found.n, 'seed')}, p "
    words += f"{found.p_holm:.2g} after Holm; that it scores {found.direction} is {found.verdict}"
    more = f", about {counted(found.further_seeds, 'more seed')} would tell" if found.further_seeds else ""
    return words.replace("is open", "is open: it wants another seed") + more
