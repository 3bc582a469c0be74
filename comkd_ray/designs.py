"""From an `ablate` block to an enumerated search: which settings are compared, and with which.

    factorial       every combination of all levels, compared with the first levels
    leave_one_out   all factors on, compared with each of them off alone
    add_one_in      all factors off, compared with each of them on alone
    one_knob        the study's own values, compared with every level of every factor alone
    fractional      a 2^(k - p) part of a factorial, for the main effects of five factors or more

The first setting is the reference of all claims. Every setting is trained with every seed, and arms of
one seed start alike and see the same images in the same order: they are pairs by construction.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comkd_ray.arms import METHOD_KEYS, METHODS, SEED, method_of
from comkd_ray.config import MOST_SEEDS, Ablate, Study
from comkd_ray.errors import UserError
from comkd_ray.fractional import FEWEST, fraction
from comkd_ray.search_space import Overrides, Scalar
from comkd_ray.study_file import MOST_CELLS, build, check_searchable, digest, effective, flatten, resolve
from comkd_ray.words import shown

MATERIAL_KEYS = ("data.", "source.", "teacher.", "student.", "loss.", "train.")
"""What a material may set."""


def compile_study(study: Study, name: str, origin: str, confirmed: bool = False) -> Study:
    """The study whose arms are the cells of the block, called `name`: what is run, planned and reported.

    origin: the file, for messages. UserError for whatever the block has wrong, and for more than
    MOST_CELLS cells unless `confirmed`.
    """
    block = block_of(study, origin)
    check_factors(study, block, f"{origin}: ablate")
    cells = count_settings(block) * len(block.seed_values)
    if cells > MOST_CELLS and not confirmed:
        raise UserError(
            f"{origin}: ablate: {cells:,} cells are more than {MOST_CELLS:,}; --yes confirms them"
        )
    space: dict[str, Any] = {SEED: {"choice": list(block.seed_values)}}
    search: dict[str, Any] = {"arms_per_trial": study.search.arms_per_trial}
    if block.design == "factorial" and not block.retuned:
        levels = {key: {"choice": list(own)} for key, own in block.factors.items()}
        search |= {"sampler": "grid", "space": levels | space}
    else:
        first = [*settings(study), *block.retuned]
        search |= {"sampler": "list", "first": first, "space": space}
    return build(study.model_dump(mode="json") | {"study": name, "search": search}, origin)


def block_of(study: Study, origin: str) -> Ablate:
    """The block. UserError where there is none."""
    if study.ablate is None:
        raise UserError(f"{origin}: ablate: no such block; it names a design, factors and seeds")
    return study.ablate


def asked_for(
    study: Study, origin: str, until: bool, max_seeds: int | None, retune: int | None, confirmed: bool
) -> Study:
    """The study with what a command adds to its block. UserError for all that is wrong with either."""
    if until or max_seeds is not None:
        study = until_decided(study, origin, max_seeds if until else None)
    for one in (study, *materials_of(study, origin).values()):
        compile_study(one, one.study, origin, confirmed)
    return study if retune is None else with_block(study, retune=retune)


def materials_of(study: Study, origin: str) -> dict[str, Study]:
    """Each material's study, by name; its block names no further ones. UserError names what is wrong."""
    block, found = block_of(study, origin), {}
    flat = flatten(study.model_dump(mode="json"))
    known = [key for key in flat if key.startswith(MATERIAL_KEYS) and key not in (*block.factors, SEED)]
    for name, keys in block.materials.items():
        where = f"{origin}: ablate.materials.{name}"
        for key in keys:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(MATERIAL_KEYS)}*"
                raise UserError(f"{where}: {key}: no key that a material sets; {hint}")
        own = resolve(with_block(study, materials={}, material=name), keys, where)  # type: ignore[arg-type]
        found[name] = build(own.model_dump(mode="json") | {"study": name}, where)
    return found


def until_decided(study: Study, origin: str, max_seeds: int | None) -> Study:
    """The study whose open claims get more seeds, up to `max_seeds`. UserError where that cannot be."""
    block = block_of(study, origin)
    if max_seeds is None:
        raise UserError(
            f"{origin}: --until-decided and --max-seeds M go together: where to stop, and that it may"
        )
    if max_seeds <= len(block.first_seeds):
        raise UserError(
            f"{origin}: --max-seeds {max_seeds}: ablate.seeds are {len(block.first_seeds)} already"
        )
    if max_seeds > MOST_SEEDS:
        raise UserError(f"{origin}: --max-seeds {max_seeds}: more than {MOST_SEEDS:,}")
    return with_block(study, max_seeds=max_seeds)


def with_block(study: Study, **changes: Any) -> Study:
    """The study with other values in its block."""
    assert study.ablate is not None
    return study.model_copy(update={"ablate": study.ablate.model_copy(update=changes)})


def keep_begun(study: Study, begun: Study | None, used: set[int]) -> Study:
    """The study with what it began with: having looked at seeds, it cannot go back to a fixed n, and cells
    at re-tuned values stay part of it. used: seeds that have a record. UserError where seeds are gone, or
    where others come between those that claims were looked at with.
    """
    before = begun.ablate if begun is not None else None
    if before is None or study.ablate is None:
        return study
    if gone := sorted(set(before.first_seeds) - set(study.ablate.first_seeds)):
        raise UserError(
            f"ablate.seeds: this ablation has begun with seed {gone[0]} too; seeds may grow, not go:"
            " --set study=NAME begins another"
        )
    most = max(before.max_seeds or 0, study.ablate.max_seeds or 0) or None
    if most is not None:
        most = max(most, len(study.ablate.first_seeds))
    kept = {"max_seeds": most, "retune": study.ablate.retune or before.retune, "retuned": before.retuned}
    study = with_block(study, **kept)
    if before.max_seeds is not None:
        _check_order(before, block_of(study, study.study), used)
    return study


def _check_order(before: Ablate, now: Ablate, used: set[int]) -> None:
    """The p of a claim depends on the order of its seeds: those in use stay the first. UserError."""
    for place, (old, new) in enumerate(zip(before.seed_values, now.seed_values, strict=False)):
        if old != new and not used.isdisjoint(before.seed_values[place:]):
            raise UserError(
                f"ablate.seeds: this ablation has used seed {old}, in whose place {new} comes; p depends"
                " on the order, so new seeds come after those in use: --set study=NAME begins another"
            )


def settings(study: Study) -> list[Overrides]:
    """Every setting of the design, the reference first; all name the same keys."""
    block = study.ablate
    assert block is not None
    off = {key: levels[0] for key, levels in block.factors.items()}
    on = {key: levels[-1] for key, levels in block.factors.items()}
    if block.design == "leave_one_out":
        return [on, *(on | {key: off[key]} for key in on)]
    if block.design == "add_one_in":
        return [off, *(off | {key: on[key]} for key in on)]
    if block.design == "fractional":
        rows = fraction(len(off)).rows
        return [{key: block.factors[key][level] for key, level in zip(off, row, strict=True)} for row in rows]
    if block.design == "one_knob":
        return _one_knob(study, block)
    combined: list[Overrides] = [{}]
    for key, levels in block.factors.items():
        combined = [setting | {key: level} for setting in combined for level in levels]
    return combined


def setting_names(study: Study) -> list[str]:
    """What each setting is called: the method, where the factors say which it is, else the levels."""
    asked, flat = settings(study), flatten(study.model_dump(mode="json"))
    if set(asked[0]) <= METHOD_KEYS:
        names = [METHODS[method_of({**flat, **one})] for one in asked]
        if len(set(names)) == len(names):
            return names
    return [
        ", ".join(f"{key.rpartition('.')[2]}: {shown(value)}" for key, value in one.items()) for one in asked
    ]


def _one_knob(study: Study, block: Ablate) -> list[Overrides]:
    """The study's own values, then each level of each factor that is another."""
    own = own_values(study, block)
    others = [{key: level} for key, levels in block.factors.items() for level in levels]
    flats = [flatten(resolve(study, one).model_dump(mode="json")) for one in others]
    return [own, *(own | one for one, flat in zip(others, flats, strict=True) if not _holds(flat, own))]


def _holds(flat: Mapping[str, Scalar], values: Overrides) -> bool:
    return all(flat[key] == value for key, value in values.items())


def distinct_claims(study: Study, asked: Sequence[Overrides]) -> list[int]:
    """Places in `asked` of the settings that claim something of the first: one of those that are the same
    arms (of every C, where EduAttention is off), and none that is the first's own.
    """
    arms = [digest(effective(resolve(study, one))) for one in asked]
    first = {arm: place for place, arm in reversed([*enumerate(arms)])}
    return sorted(first.values())[1:]


def count_claims(study: Study) -> int:
    """Claims that are made together at fixed values: the distinct ones, or one a factor of a fraction."""
    assert study.ablate is not None
    if study.ablate.design == "fractional":
        return len(study.ablate.factors)
    return len(distinct_claims(study, settings(study)))


def claim_pairs(study: Study) -> list[tuple[int, int]]:
    """(setting, its reference) of every claim, by their places in the cells of a compiled study.

    With re-tuned settings these are claimed of one another, and so are those at fixed values.
    """
    assert study.ablate is not None
    fixed, retuned = settings(study), study.ablate.retuned
    kinds = ((0, fixed), (len(fixed), retuned))
    return [(start + place, start) for start, asked in kinds for place in distinct_claims(study, asked)]


def own_values(study: Study, block: Ablate) -> Overrides:
    """The study's own values of the factors."""
    flat = flatten(study.model_dump(mode="json"))
    return {key: flat[key] for key in block.factors}


def count_settings(block: Ablate) -> int:
    """Settings of the design, none listed; of one_knob at most, where its own values are no level."""
    sizes = [len(levels) for levels in block.factors.values()]
    if block.design == "factorial":
        return math.prod(sizes)
    if block.design == "fractional":
        return len(fraction(len(sizes)).rows)
    return 1 + (sum(sizes) if block.design == "one_knob" else len(sizes))


def check_factors(study: Study, block: Ablate, origin: str) -> None:
    """Factors are keys that an arm may set, and take their levels; the block suits its design. UserError."""
    flat = flatten(study.model_dump(mode="json"))
    for key, levels in block.factors.items():
        if key == SEED:
            raise UserError(f"{origin}.factors: {SEED}: seeds are no factor; they stand under ablate.seeds")
        check_searchable(key, flat, f"{origin}.factors: {key}")
        for level in levels:
            resolve(study, {key: level}, f"{origin}.factors")
        if block.design in ("leave_one_out", "add_one_in", "fractional") and len(levels) != 2:
            raise UserError(
                f"{origin}.factors: {key}: {block.design} takes two levels, off and on, not {len(levels)}"
            )
    if block.design == "fractional" and len(block.factors) < FEWEST:
        raise UserError(
            f"{origin}.design: fractional is for {FEWEST} factors or more, here are {len(block.factors)};"
            " use factorial"
        )
    if block.design == "fractional" and block.max_seeds is not None:
        raise UserError(
            f"{origin}.max_seeds: the effects of a fraction need every setting with every seed, so no claim"
            " gets more alone (--until-decided); ask for more ablate.seeds"
        )


def run_name(study: Study) -> str:
    """`<study>-ablate` where the file can be tuned as well, so that the two never meet; else `<study>`."""
    return f"{study.study}-ablate" if study.search.is_asked else study.study


def run_directory(reports: Path, study: Study) -> Path:
    """Where an ablation of this file lies."""
    return (reports / run_name(study)).absolute()
