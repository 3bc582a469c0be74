"""`--retune N`: every setting gets the same tuning budget, so that no part wins by knobs tuned for it alone.

Each setting has an Optuna study and a run directory of its own, `reports/<name>/retune/<setting>/`: its
factors fixed, N arms of the file's `search`, the first of them the study's own values. So nobody starts
blind, and nobody ends below its fixed knobs on the score that chooses. The seed of these arms is none of the
ablation's, nor one that it grows to: its noise is not chosen for. Then the ablation compares settings at
fixed and at re-tuned values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from comkd_ray import search_space, study_file
from comkd_ray.arms import SEED
from comkd_ray.config import SEEDS, Study
from comkd_ray.designs import block_of, settings
from comkd_ray.errors import UserError
from comkd_ray.jobs import arm_identity
from comkd_ray.plan import count_arms
from comkd_ray.results import ranked, read_records
from comkd_ray.search_space import Dimension, Overrides, Scalar, Space
from comkd_ray.study_life import changes, has_begun
from comkd_ray.words import counted, shown

FOLDER = "retune"


class Tuning(NamedTuple):
    """The search of one setting."""

    setting: Overrides
    run: Path
    study: Study | None
    """None where no searched key has an effect under this setting: its own values stay."""

    def is_done(self) -> bool:
        """Whether its budget is spent."""
        if self.study is None:
            return True
        return len(read_records(self.run)) >= count_arms(self.study)

    def found(self) -> Overrides:
        """Factors and best values. UserError where no arm of the search was trained to the end."""
        if self.study is None:
            return self.setting
        best = ranked(read_records(self.run))
        if not best:
            raise UserError(f"{self.run}: no complete arm, so there is nothing to re-tune with; look there")
        return self.setting | {key: best[0][key] for key in best[0]["searched"]}


def tunings(study: Study, run: Path, arms: int, origin: str) -> list[Tuning]:
    """The searches of all settings, in the order of the design.

    run: directory of the ablation; arms: budget of each. UserError for a file without a search to ask,
    or whose own values lie outside it, and for a fraction, which compares no settings.
    """
    block = block_of(study, origin)
    if block.design == "fractional":
        raise UserError(
            f"{origin}: ablate.design: --retune compares settings, and a fraction tells of main effects"
            " alone; factorial, leave_one_out or add_one_in can be re-tuned"
        )
    if not study.search.space or study.search.sampler in ("grid", "list"):
        raise UserError(
            f"{origin}: search: --retune asks a sampler over search.space, such as tpe; here is none"
        )
    seed = next(one for one in chain([0], range(SEEDS - 1, 0, -1)) if one not in block.seed_values)
    return [
        _tuning(study, setting, run / FOLDER / _slug(place, setting), arms, seed, origin)
        for place, setting in enumerate(settings(study))
    ]


def check_begun(searches: list[Tuning]) -> None:
    """Refuse to go on with searches that began otherwise: with another seed, other own values, more arms.

    They would not be of these settings, of equal budget, or blind to the ablation's seeds. UserError.
    """
    for one in searches:
        if one.study is None or not has_begun(one.run):
            continue
        before = study_file.load(one.run / "study.yaml")
        changed = changes(before, one.study)
        if changed:
            raise UserError(
                f"{one.run}: this re-tuning has begun with other values of {', '.join(changed)};"
                " --set study=NAME begins another ablation"
            )
        spent, asked = before.search.arms or 0, one.study.search.arms or 0
        if spent > asked:
            raise UserError(
                f"{one.run}: --retune {asked}: this setting was given {spent} arms already, and all settings"
                f" get the same; --retune {spent} goes on"
            )


def _tuning(study: Study, setting: Overrides, run: Path, arms: int, seed: int, origin: str) -> Tuning:
    own = study_file.resolve(study, setting | {SEED: seed})
    space = reduced_space(study.search.space, own, setting)
    if not space:
        return Tuning(setting, run, None)
    tree = own.model_dump(mode="json") | {"study": run.name, "ablate": None}
    dimensions = {key: one.model_dump(mode="json") for key, one in space.items()}
    tree["search"] |= {"arms": arms, "space": dimensions, "first": [{}]}
    return Tuning(setting, run, study_file.build(tree, f"{origin}: --retune"))


def reduced_space(space: Space, own: Study, setting: Overrides) -> dict[str, Dimension]:
    """What of a space is left to search under a setting: no factor, no seed, nothing without effect.

    own: the study with the setting in place, whose values decide about conditions on fixed keys.
    """
    fixed = study_file.flatten(own.model_dump(mode="json"))
    kept: dict[str, Dimension] = {}
    for key in search_space.order(space):
        when = space[key].when or {}
        gone = {other: value for other, value in when.items() if other not in kept}
        if key in setting or key == SEED or any(fixed[other] != value for other, value in gone.items()):
            continue
        left = {other: value for other, value in when.items() if other in kept} or None
        kept[key] = space[key].model_copy(update={"when": left})
    return {key: one for key, one in kept.items() if _has_effect(own, key, kept)}


def _has_effect(own: Study, key: str, space: Space) -> bool:
    """Whether two values of a key make two arms, under the setting or with any other choice made too."""
    ends = space[key].bounds or space[key].choice or ()
    return any(
        len({arm_identity("", study_file.resolve(own, context | {key: value})) for value in ends}) > 1
        for context in _contexts(key, space)
    )


def _contexts(key: str, space: Space) -> Iterator[Overrides]:
    yield {}
    for other, dimension in space.items():
        if other != key:
            yield from ({other: choice} for choice in dimension.choice or ())


def _slug(place: int, setting: Overrides) -> str:
    """`02-ifalign-true-edu_attention-false`: a name for a folder and a study."""
    words = "-".join(f"{key.rpartition('.')[2]}-{_plain(value)}" for key, value in setting.items())
    return f"{place:02}-{words}"[:100]


def _plain(value: Scalar) -> str:
    return re.sub(r"[^A-Za-z0-9._]", "_", shown(value))


def in_words(searches: list[Tuning]) -> str:
    """What is re-tuned, and what it takes: for the plan."""
    known = [one.study for one in searches if one.study is not None]
    spent = sum(study.search.arms or 0 for study in known)
    keys = dict.fromkeys(key for study in known for key in study.search.space)
    idle = len(searches) - len(known)
    sampler = known[0].search.sampler if known else "nothing"
    words = f"{counted(len(known), 'setting')} with {sampler}, {counted(spent, 'arm')} in all, over "
    words += f"{', '.join(keys) or 'nothing'}; then as many cells again at the values found"
    return words + f"; {counted(idle, 'setting')} without a knob to tune" * bool(idle)
