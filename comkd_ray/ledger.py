"""The ledger of an ablation's cells: its own records, and those that an earlier study has already.

A cell is an arm, and an arm's identity is the hash of all that has an effect on its numbers, images,
teacher and banks included. So a complete record of the same arm in another run directory is that
cell's record. Arms that halving pruned, or that failed, are nobody's.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import NamedTuple

from comkd_ray import study_file
from comkd_ray.config import Study
from comkd_ray.errors import UserError
from comkd_ray.growth import wanted_arms
from comkd_ray.jobs import Asked, arm_identity, asked_columns
from comkd_ray.material import identity_of
from comkd_ray.results import Row, write_record
from comkd_ray.search_space import Overrides
from comkd_ray.study_file import PIXELS, TOWER
from comkd_ray.weights import copy_student
from comkd_ray.words import counted

TAKEN_FROM = "taken_from"
"""Column of a row that another run trained: that run's name."""
MATERIAL = ("protocol", "selection", "data.", "source", "teacher.", *TOWER)
"""Keys that decide about images, teacher, banks and the frozen tower."""


class Shared(NamedTuple):
    """Records of cells in earlier runs, by arm: the run and the record's file."""

    records: Mapping[str, tuple[Path, Path]]

    def in_words(self, cells: int) -> str:
        """`12 of 32 cells are taken from reports/caltech101`; empty where none is."""
        if not self.records:
            return ""
        runs = dict.fromkeys(f"{run.parent.name}/{run.name}" for run, _ in self.records.values())
        verb = "is" if len(self.records) == 1 else "are"
        return f"{len(self.records)} of {counted(cells, 'cell')} {verb} taken from {', '.join(runs)}"


def arms_of(study: Study, identity: str) -> dict[str, Overrides]:
    """Arm to its values, for every cell of an enumerated study. identity: that of the material."""
    arms: dict[str, Overrides] = {}
    for cell in study_file.cells(study):  # of cells that are one arm the first stands for it
        arms.setdefault(arm_identity(identity, study_file.resolve(study, cell)), cell)
    return arms


def find_shared(study: Study, run: Path, identity: str) -> Shared:
    """Cells asked for by now, without a record of their own, that a run beside this one trained to the end.

    None beyond those: another study may have finished only its good arms, and seeds would come by outcome.
    """
    known = {path.stem: _read(path) for path in (run / "records").glob("*.json")}
    own = {arm: record for arm, record in known.items() if record is not None}
    asked = wanted_arms(study, lambda cell: arm_identity(identity, study_file.resolve(study, cell)), own)
    wanted = [arm for arm in arms_of(study, identity) if arm not in own and (asked is None or arm in asked)]
    found: dict[str, tuple[Path, Path]] = {}
    for other in _runs_beside(study, run):
        if identity_of(other) == identity:
            paths = {arm: other / "records" / f"{arm}.json" for arm in wanted if arm not in found}
            found |= {arm: (other, path) for arm, path in paths.items() if _is_whole(path)}
    return Shared(found)


def foretell_shared(study: Study, run: Path) -> Shared:
    """What `find_shared` will find, before any material is there.

    The identity is that of this run, or of runs beside it with the same data, teacher and towers.
    """
    known = [run, *(other for other in _runs_beside(study, run) if _same_material(study, other))]
    identities = dict.fromkeys(one for one in map(identity_of, known) if one is not None)
    found = [find_shared(study, run, identity) for identity in identities]
    return max(found, key=lambda shared: len(shared.records), default=Shared({}))


def take_shared(study: Study, run: Path, identity: str) -> Shared:
    """Copy what earlier runs trained into this run's records; each row says where it comes from.

    A key without effect on the arm has the cell's value, whatever the earlier study had written there. A
    student comes along where the earlier study kept it.
    """
    cells = arms_of(study, identity)
    taken: dict[str, tuple[Path, Path]] = {}
    numbers = {arm: number for number, arm in enumerate(cells)}
    while found := find_shared(study, run, identity).records:  # with these records more may be asked for
        for arm, (other, path) in found.items():
            record = json.loads(path.read_text(encoding="utf-8"))
            row: Row = record["arm"]
            asked = asked_columns(study, row["cohort"], Asked(arm, numbers[arm], cells[arm]))
            origin = row.get(TAKEN_FROM) or other.name
            copy_student(other, run, arm)
            write_record(run, row | asked | {TAKEN_FROM: origin}, record["epochs"])
        taken |= found
    return Shared(taken)


def set_failed_aside(run: Path, but: Container[str] = ()) -> int:
    """Move records of failed arms away, `but` some, so that they are tried again; how many there were."""
    failed = 0
    for path in sorted((run / "records").glob("*.json")):
        record = _read(path)  # a damaged one is moved aside where records are read
        if record is not None and record["arm"]["status"] == "failed" and path.stem not in but:
            path.replace(path.with_suffix(".failed"))
            failed += 1
    return failed


def seeds_of(run: Path) -> set[int]:
    """Seeds of the arms that have a record."""
    records = map(_read, (run / "records").glob("*.json"))
    return {record["arm"]["seed"] for record in records if record is not None}


def material_of(study: Study) -> dict[str, object]:
    """What decides about images, teacher, banks and the frozen tower, by dotted key."""
    flat = study_file.flatten(study.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if key.startswith(MATERIAL) and key not in PIXELS}


def _runs_beside(study: Study, run: Path) -> list[Path]:
    """Run directories in the same folder of reports, those of ablations over several materials too."""
    assert study.ablate is not None
    reports = run.parent if study.ablate.material is None else run.parent.parent
    found = [path.parent for depth in ("*", "*/*") for path in sorted(reports.glob(f"{depth}/material.json"))]
    return [other for other in found if other.resolve() != run.resolve()]


def _same_material(study: Study, other: Path) -> bool:
    try:
        return material_of(study_file.load(other / "study.yaml")) == material_of(study)
    except UserError:
        return False


def _is_whole(path: Path) -> bool:
    """Whether a record is of an arm that had all its epochs."""
    record = _read(path)
    row: Row = record["arm"] if record is not None else {"status": "none"}
    return row["status"] == "complete" and row.get("epochs_done", 0) == row.get("train.epochs")


def _read(path: Path) -> Row | None:
    """A record; None where there is none that can be read."""
    try:
        record: Row = json.loads(path.read_text(encoding="utf-8"))
        return record if record["arm"]["status"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
