"""Fixed knobs beside re-tuned ones: what each setting is worth before and after its own search.

Which arm is which follows from its values: at fixed knobs every searched key has the study's own value,
at re-tuned knobs it has those that `ablate.retuned` names. Where the search found nothing better than the
own values, one arm is both.
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from comkd_ray.claims import at_values, claims_of
from comkd_ray.config import Study
from comkd_ray.designs import distinct_claims, setting_names, settings
from comkd_ray.pairing import Paired, Rule
from comkd_ray.search_space import Overrides
from comkd_ray.study_file import flatten
from comkd_ray.words import shown


class Effect(NamedTuple):
    """A setting minus the reference, at fixed and at re-tuned values, in points of the headline score."""

    name: str
    fixed: Paired | None
    retuned: Paired | None
    values: list[tuple[str, str]]
    """Re-tuned values that are not the study's own."""


class Retuned(NamedTuple):
    """The effects of all settings that claim something of the reference, at either kind of values."""

    reference: str
    reference_values: list[tuple[str, str]]
    effects: list[Effect]


def tuned_keys(study: Study) -> list[str]:
    """Keys that any re-tuning searched."""
    assert study.ablate is not None
    keys = dict.fromkeys(key for one in study.ablate.retuned for key in one)
    return [key for key in keys if key not in study.ablate.factors]


def fixed_arms(arms: pl.DataFrame, study: Study | None) -> pl.DataFrame:
    """Arms at the study's own values of all re-tuned keys; all arms where nothing was re-tuned."""
    if study is None or study.ablate is None or not study.ablate.retuned:
        return arms
    flat = flatten(study.model_dump(mode="json"))
    return at_values(arms, {key: flat[key] for key in tuned_keys(study)})


def side_by_side(arms: pl.DataFrame, study: Study, rule: Rule) -> Retuned | None:
    """Both effects of every setting, each kind a family of claims; None where nothing was re-tuned."""
    block = study.ablate
    if block is None or not block.retuned:
        return None
    flat = flatten(study.model_dump(mode="json"))
    own = {key: flat[key] for key in tuned_keys(study)}
    kinds = [[own | one for one in many] for many in (settings(study), block.retuned)]
    claims = [{pair.name: pair for pair in claims_of(arms, study, kind, rule)} for kind in kinds]
    names = setting_names(study)
    changed = [_changed(one, own) for one in block.retuned]
    effects = [
        Effect(names[place], claims[0].get(names[place]), claims[1].get(names[place]), changed[place])
        for place in sorted({place for kind in kinds for place in distinct_claims(study, kind)})
    ]
    return Retuned(names[0], changed[0], effects)


def _changed(found: Overrides, own: Overrides) -> list[tuple[str, str]]:
    return [(key, shown(value)) for key, value in found.items() if key in own and value != own[key]]
