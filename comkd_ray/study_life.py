"""A study after its first run: gone on with, with more arms, or forked into another.

A fork is a new run beside the old one, of a changed study file. Old results whose values fit the new
space are told to its sampler; those that are the very arms of the new study are copied, records and
weights, and not trained again. `fork.json` says what came from where; until it does, a fork that was
cut off takes over when it is resumed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comkd_ray import provenance, search_space, study_file
from comkd_ray.config import Study
from comkd_ray.errors import UserError
from comkd_ray.material import Card, identity_of
from comkd_ray.protocols import objective_of
from comkd_ray.results import Row, read_records, write_atomic, write_record
from comkd_ray.search_space import Overrides, Scalar
from comkd_ray.weights import copy_student

FILE = "fork.json"
BEGINNING = re.compile(r"fork\.json|\.fork\.json\.[0-9a-f]{8}|\.study\.yaml")
"""What lies in a fork's directory before its study file is whole."""
FREE = ("compute.", "search.arms", "note", *study_file.PIXELS)
"""What may change while a study goes on."""
GROWS = ("search.", "ablate.seeds", "ablate.max_seeds", "ablate.retune")
"""The same of an ablation: a cell that has a record stays what it is."""


def has_begun(run: Path) -> bool:
    """Whether a directory holds a study of ours; a sample that ships with the source is none."""
    begun = (run / "study.yaml").exists() or (run / "results").exists()
    return begun and provenance.read(run).get("sample") is not True


def check_run(study: Study, run: Path, resume: bool) -> None:
    """Refuse a directory that holds results unless it is to be resumed, and with the same study."""
    if not has_begun(run):
        if resume:
            raise UserError(f"{run}: nothing to resume here; run without --resume")
        return
    if not resume:
        raise UserError(
            f"{run}: this study has begun; add --resume to go on, or --set study=NAME for another"
        )
    changed = changes(study_file.load(run / "study.yaml"), study)
    if changed and study.ablate is not None:
        raise UserError(
            f"{run}: this ablation has begun with other values of {', '.join(changed)};"
            " --set study=NAME begins another"
        )
    if changed:
        raise UserError(
            f"{run}: --resume goes on with the same study, but {', '.join(changed)} changed;"
            f" {run / 'study.yaml'} is the one that began, --fork NAME makes another of it"
        )


def changes(old: Study, new: Study) -> list[str]:
    """Keys that differ and may not, where a study goes on."""
    free = FREE if new.ablate is None else FREE + GROWS
    return sorted(key for key, _, _ in differences(old, new) if not key.startswith(free))


def differences(old: Study, new: Study) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) of what differs; None stands for a key that one of them lacks."""
    before, after = (study_file.flatten(one.model_dump(mode="json")) for one in (old, new))
    keys = dict.fromkeys([*before, *after])
    found = [(key, before.get(key), after.get(key)) for key in keys]
    return [(key, one, other) for key, one, other in found if one != other]


def grown(study: Study, run: Path, more: int) -> Study:
    """The study as its run goes on: never fewer arms than it has in study.yaml, and `more` on top.

    UserError where a study of known arms is to have more.
    """
    if not (run / "study.yaml").exists():
        return study  # `check_run` says so
    before, search = study_file.load(run / "study.yaml").search, study.search
    if search.sampler in ("grid", "list"):
        if more:
            raise UserError(
                f"--add-arms: a {search.sampler} has all its arms already; "
                "widen it and take its results over with --fork NAME"
            )
        return study
    if more and before.is_exhausted:
        raise UserError(
            f"--add-arms: all {search_space.count(before.space)} arms of this space are in the study; "
            "widen search.space and take its results over with --fork NAME"
        )
    arms = max(search.arms or 0, before.arms or 0) + more
    return study.model_copy(update={"search": search.model_copy(update={"arms": arms})})


@dataclass(frozen=True)
class Fork:
    """A new study, and the run that it takes results over from."""

    study: Study
    run: Path
    origin: Path
    changes: list[tuple[str, Any, Any]]

    def lines(self) -> list[str]:
        """What changed, a line a key."""
        return [f"{key}: {_shown(old)} -> {_shown(new)}" for key, old, new in self.changes]


def _shown(value: Any) -> str:
    return "-" if value is None else json.dumps(value)


def plan_fork(study: Study, reports: Path, name: str) -> Fork:
    """Check a fork; nothing is written. UserError where there is nothing to fork, or NAME is taken."""
    origin, run = reports / study.study, reports / name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"--fork {name}: a study's name has letters, digits and . _ - only")
    if run.exists() and not _is_beginning(run):
        raise UserError(f"--fork {name}: {run} exists; nothing was written")
    if not (origin / "study.yaml").exists() or not read_records(origin):
        raise UserError(f"--fork {name}: {origin} holds no records to take over")
    changes = differences(study_file.load(origin / "study.yaml"), study)
    if not changes:
        raise UserError(f"--fork {name}: nothing differs from {origin}; --resume --add-arms N goes on there")
    return Fork(study.model_copy(update={"study": name}), run, origin, changes)


def _is_beginning(run: Path) -> bool:
    """Whether a directory is what a fork leaves that was killed before its study file was written."""
    return run.is_dir() and all(path.is_file() and BEGINNING.fullmatch(path.name) for path in run.iterdir())


def begin_fork(fork: Fork) -> None:
    """Note in the new run where its results come from; `take_over` does it once the material is there."""
    changes = {key: [old, new] for key, old, new in fork.changes}
    _write(fork.run, {"from": fork.origin.name, "changes": changes, "told": None})


def is_pending(run: Path) -> bool:
    """Whether a run is a fork that has not taken over its results yet."""
    return (run / FILE).exists() and _read(run)["told"] is None


def told(run: Path) -> tuple[Row, ...]:
    """Records of another study that this one's sampler learns from; empty where it is no fork."""
    return tuple(_read(run)["told"] or ()) if (run / FILE).exists() else ()


def take_over(study: Study, run: Path, card: Card, identify: Callable[[Overrides], str]) -> str:
    """Copy the old study's records that are arms of this one, keep the others that fit to be told.

    Only arms at full budget on the same material, by the same objective. Returns what was done, in words.
    """
    name = str(_read(run)["from"])
    origin = run.parent / name
    old, reason = study_file.load(origin / "study.yaml"), ""
    if objective_of(old) != objective_of(study) or old.protocol != study.protocol:
        reason = "it goes by another objective"
    elif identity_of(origin) != card.identity:
        reason = "its material is another (data, views, teacher or student model)"
    records = [] if reason else sorted(read_records(origin).values(), key=lambda one: one["arm"]["number"])
    copied, kept = 0, []
    for record in records:
        row, point = record["arm"], _place(study, record["arm"])
        if row["status"] != "complete" or point is None:
            continue
        moved = {**row, "number": copied, "from": name, "searched": sorted(point)}
        if identify(point) == row["arm"]:
            write_record(run, moved, record["epochs"])
            copy_student(origin, run, row["arm"])
            copied += 1
        elif not study.search.is_enumerated:
            kept.append({"arm": moved, "epochs": record["epochs"]})
    _write(run, {**_read(run), "told": kept})
    provenance.update(run, fork={"from": name, "copied": copied, "told": len(kept)})
    if reason:
        return f"nothing of {name} is taken over: {reason}"
    return f"of {name}, {copied} arms are copied and {len(kept)} more are told to the sampler"


def _place(study: Study, row: Row) -> Overrides | None:
    """The point of the new space at which an old arm lies, or None where it lies outside."""
    own, space = study_file.flatten(study.model_dump(mode="json")), study.search.space
    moved = [key for key in row["searched"] if key not in space and row.get(key) != own.get(key)]
    if moved or any(row.get(key) is None for key in space):
        return None
    point: dict[str, Scalar] = search_space.draw(space, lambda key, _: row[key])
    return point if all(space[key].holds(value) for key, value in point.items()) else None


def _read(run: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((run / FILE).read_text(encoding="utf-8"))
        return {"from": found["from"], "changes": found["changes"], "told": found["told"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{run / FILE}: cannot be read; remove it to go on without what the older study has to tell"
        ) from None


def _write(run: Path, content: dict[str, Any]) -> None:
    write_atomic(run / FILE, json.dumps(content).encode())
