"""`--from reports/<study>`: an ablation around the best arm of an earlier study.

The values that this arm searched become the ablation's own; the factors are set by the design. The
earlier study has to be about the same images, teacher and towers, or its best values mean nothing here.
"""

from __future__ import annotations

import json
from pathlib import Path

from comkd_ray import study_file
from comkd_ray.arms import SEED
from comkd_ray.config import Study
from comkd_ray.designs import with_block
from comkd_ray.errors import UserError
from comkd_ray.ledger import material_of
from comkd_ray.results import Row, ranked, read_records, write_atomic
from comkd_ray.words import shown

FILE = "start.json"


def start_from(study: Study, source: Path, before: str | None) -> Study:
    """The study with the values of `source`'s best complete arm as its own.

    before: `run/arm` that this ablation began with, if it has; it goes on from there, whatever is the best
    by now. UserError where `source` is no study, another one, or has no complete arm.
    """
    assert study.ablate is not None
    file = source / "study.yaml"
    if not file.is_file():
        raise UserError(f"--from {source}: no study.yaml there; name a run directory such as reports/STUDY")
    require_same(study, study_file.load(file), source)
    row = _arm(source, before)
    values = {key: row[key] for key in row["searched"] or () if key != SEED}
    started = study_file.resolve(study, values, f"--from {source}")
    return with_block(started, start=f"{source.name}/{row['arm']}")


def require_same(study: Study, other: Study, source: Path) -> None:
    """Refuse a study of other images, teacher or towers. UserError names the first key that differs."""
    ours, theirs = material_of(study), material_of(other)
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"--from {source}: another study: {key} is {shown(theirs.get(key))} there,"
                f" {shown(ours.get(key))} here"
            )


def remember_start(run: Path, study: Study) -> None:
    """Note what an ablation starts from, before its first search: the cells that name it come much later."""
    assert study.ablate is not None
    write_atomic(run / FILE, json.dumps({"start": study.ablate.start}).encode())


def remembered_start(run: Path, begun: Study | None) -> str | None:
    """What an ablation began with, by its study file or its first search. UserError for a damaged note."""
    if begun is not None and begun.ablate is not None:
        return begun.ablate.start
    try:
        start: str | None = json.loads((run / FILE).read_text(encoding="utf-8"))["start"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{run / FILE}: cannot be read; remove it to start from the best arm of today"
        ) from None
    return start


def _arm(source: Path, before: str | None) -> Row:
    records = read_records(source)
    run, _, arm = (before or "").partition("/")
    if run == source.name and arm in records:
        return records[arm]["arm"]
    best = ranked(records)
    if not best:
        raise UserError(f"--from {source}: no complete arm among its records")
    return best[0]


def remarks(study: Study, source: Path) -> list[str]:
    """What the starting point leaves to the file, a line each: values that the best arm did not search."""
    assert study.ablate is not None
    other = study_file.flatten(study_file.load(source / "study.yaml").model_dump(mode="json"))
    row = read_records(source)[(study.ablate.start or "").partition("/")[2]]["arm"]
    lines = []
    own = study_file.flatten(study.model_dump(mode="json"))
    kept = [
        f"{key} {shown(own[key])} (there {shown(other[key])})"
        for key in own
        if key.startswith(study_file.SEARCHABLE) and key not in (row["searched"] or ()) and key != SEED
        if other.get(key) != own[key] and key not in study.ablate.factors
    ]
    if kept:
        lines.append(f"of this file, not of {source.name}: {', '.join(kept)}")
    off = [
        key
        for key, levels in study.ablate.factors.items()
        if row.get(key) == levels[0] and levels[0] is False
    ]
    if off:
        lines.append(f"the best arm has {', '.join(off)} off: values that belong to it alone are this file's")
    if row.get(SEED) in study.ablate.seed_values:
        lines.append(
            f"seed {row[SEED]} chose this arm and is one of the ablation's: its noise was chosen, too"
        )
    return lines
