"""Every setting of a grid or a list as a row: its scores over seeds, and what it has over the first.

The 2x2 and the reference rows tell arms apart by their method alone. Here arms that differ in any
searched value but the seed are apart: readings of the method, weights of its loss, precisions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import polars as pl

from comkd_ray.arms import (
    METHOD_KEYS,
    METHODS,
    PROJECTOR_ONLY,
    PROMPTS,
    SEED,
    full_budget,
    has_modules,
    method_of,
    module_cells,
    scores_of,
    searched_keys,
)
from comkd_ray.collapse import Flagged, among
from comkd_ray.pairing import FIXED, Paired, Rule, differences, family
from comkd_ray.search_space import Scalar
from comkd_ray.stats import Estimate, estimate
from comkd_ray.study_file import has_effect
from comkd_ray.words import shown

Setting = Mapping[str, Scalar | None]
"""Values of one arm under the keys that any arm searched, train.seed apart."""


class Variant(NamedTuple):
    """One setting: its full-budget arms, which differ by seed alone."""

    name: str
    n: int
    """Arms with a headline score."""
    estimates: tuple[Estimate | None, ...]
    """In percent, in the order of `Scores.tests`."""
    lowest: float | None
    highest: float | None
    """Of the headline, in percent."""
    best_epoch: float | None
    """Median."""
    paired: Paired | None
    """Minus the first variant, by seed; None for the first itself and where no seed has both."""
    flagged: Flagged = Flagged()


class Variants(NamedTuple):
    """All variants in the order of the study, and what the first is set to."""

    rows: list[Variant]
    first: list[tuple[str, str]]
    """Keys that differ anywhere, and the first variant's values."""
    compared: bool = True
    """Whether the others are compared with the first: not in a fraction."""

    @property
    def ranked(self) -> list[Variant]:
        """Those with a headline score, best mean first."""
        known = [(row.estimates[-1].mean, row) for row in self.rows if row.estimates[-1] is not None]
        return [row for _, row in sorted(known, key=lambda pair: -pair[0])]


def variants(arms: pl.DataFrame, enumerated: bool | None, rule: Rule = FIXED) -> Variants | None:
    """The variants of a grid or a list; None for any other study, and where other tables say it all.

    Those others are the 2x2 and the reference rows: they do where arms differ by method and seed alone.
    """
    groups = _settings(arms) if enumerated else []
    keys = _varied([setting for setting, _ in groups])
    if len(groups) < 2 or _are_methods(arms, groups, keys):
        return None
    score = scores_of(arms).headline
    names = _names(arms, groups, keys)
    scored = [full_budget(rows).drop_nulls([score]) for _, rows in groups]
    against = [
        (name, differences(rows, scored[0], score)) for name, rows in zip(names[1:], scored[1:], strict=True)
    ]
    paired = {pair.name: pair for pair in family(names[0], against, rule)} if rule.compares else {}
    rows = [_variant(*each, scores_of(arms).tests, paired) for each in zip(names, scored, strict=True)]
    return Variants(rows, [(key, shown(groups[0][0][key])) for key in keys], rule.compares)


def named(arms: pl.DataFrame) -> list[tuple[str, Setting, pl.DataFrame]]:
    """Every setting of a grid or a list, in the study's order: its name, values, and arms of any status."""
    groups = _settings(arms)
    names = _names(arms, groups, _varied([setting for setting, _ in groups])) if groups else []
    return [(name, *group) for name, group in zip(names, groups, strict=True)]


def _variant(name: str, rows: pl.DataFrame, tests: Sequence[str], paired: Mapping[str, Paired]) -> Variant:
    values = [[float(value) for value in rows[test].drop_nulls()] for test in tests]
    headline = values[-1]
    epoch = rows["best_epoch"].median()
    return Variant(
        name,
        len(headline),
        tuple(map(estimate, values)),
        min(headline, default=None),
        max(headline, default=None),
        float(epoch) if isinstance(epoch, int | float) else None,
        paired.get(name),
        among(rows),
    )


def _settings(arms: pl.DataFrame) -> list[tuple[Setting, pl.DataFrame]]:
    """Settings in the order in which arms were asked for, each with its arms, failed ones too.

    They differ in a value that has an effect: arms without EduAttention are one setting for every C.
    """
    ordered, keys = arms.sort("number", "arm"), [key for key in searched_keys(arms) if key != SEED]
    found: dict[tuple[Scalar | None, ...], list[int]] = {}
    for place, row in enumerate(ordered.iter_rows(named=True) if keys else ()):
        values = tuple(row[key] if has_effect(key, row) else None for key in keys)
        found.setdefault(values, []).append(place)
    return [({key: ordered[key][places[0]] for key in keys}, ordered[places]) for places in found.values()]


def _varied(settings: Sequence[Setting]) -> list[str]:
    """Keys whose value is not the same in all settings."""
    keys = list(settings[0]) if settings else []
    return [key for key in keys if len({setting[key] for setting in settings}) > 1]


def _are_methods(
    arms: pl.DataFrame, groups: Sequence[tuple[Setting, pl.DataFrame]], keys: Sequence[str]
) -> bool:
    """Whether settings are methods of the 2x2, or projector only, and no method is two settings."""
    if not has_modules(arms) or not set(keys) <= METHOD_KEYS:
        return False
    methods = [method_of(rows.row(0, named=True)) for _, rows in groups]
    cells = module_cells(arms)
    known = {PROJECTOR_ONLY, *cells}
    return cells[0] in methods and set(methods) <= known and len(set(methods)) == len(methods)


def _names(
    arms: pl.DataFrame, groups: Sequence[tuple[Setting, pl.DataFrame]], keys: Sequence[str]
) -> list[str]:
    """What each setting is called: what differs from the first, its method by name."""
    first, known = groups[0][0], has_modules(arms)
    rows = [of_setting.row(0, named=True) for _, of_setting in groups]
    methods = [METHODS[method_of(row)] if known else "first" for row in rows]
    told = METHOD_KEYS if known else set()
    if known and len({row[PROMPTS] for row in rows if row[PROMPTS]}) > 1:
        told = METHOD_KEYS - {PROMPTS}  # the name of a method does not say how long its prompts are
    short, names = _short(keys), []
    for (setting, _), method in zip(groups, methods, strict=True):
        parts = [method] * (method != methods[0])
        for key in keys:
            without = key == PROMPTS and not setting[key]
            if key not in told and not without and setting[key] != first[key]:
                parts.append(f"{short[key]}: {shown(setting[key])}")
        names.append(", ".join(parts) or methods[0])
    return names


def _short(keys: Sequence[str]) -> dict[str, str]:
    """Keys without their section, where that leaves them apart."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}
