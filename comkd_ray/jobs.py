"""A cohort's work order, and carrying it out: what a worker does, without any Ray.

The driver writes `cohorts/<cohort>.json` into the run directory; a worker reads it, opens the
material, trains, and stores one durable record an arm before it reports anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from comkd_ray import process, study_file
from comkd_ray.cohort import Arm
from comkd_ray.config import Study
from comkd_ray.material import Material, open_material, read_card
from comkd_ray.progress import Meter
from comkd_ray.protocols import OBJECTIVE
from comkd_ray.results import Row, read_records, write_atomic, write_record
from comkd_ray.search_space import Overrides
from comkd_ray.train import Ended, EpochReport, Share, fit
from comkd_ray.weights import save_student

SCALARS = ("student.ifalign", "student.edu_attention", "student.attention_scale")
SHAPING = ("student.", "train.batch_size", "train.epochs", "train.precision")
OUT_OF_MEMORY = ("out of memory", "allocate memory", "ALLOC_FAILED")  # in the words of torch's errors

Report = Callable[[Row], None]


@dataclass(frozen=True)
class Asked:
    """An arm as the search asked for it."""

    arm: str
    number: int
    overrides: Overrides
    protected: bool = False


@dataclass(frozen=True)
class Job:
    """A cohort's work order."""

    cohort: str
    run: str
    cache: str
    threads: int
    workers: int
    cpus: float
    gpus: float
    arms: tuple[Asked, ...]
    history: dict[int, list[float]]
    """Rung -> validation values that earlier arms had there."""


def write_job(job: Job) -> Path:
    """Put the work order where every node sees it."""
    path = Path(job.run) / "cohorts" / f"{job.cohort}.json"
    write_atomic(path, json.dumps(asdict(job)).encode())
    return path


def read_job(path: Path) -> Job:
    """Read a work order back."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    arms = tuple(Asked(**arm) for arm in tree.pop("arms"))
    history = {int(rung): values for rung, values in tree.pop("history").items()}
    return Job(**tree, arms=arms, history=history)


def ordered(run: Path) -> dict[str, Overrides]:
    """Arms that any work order of a run names, but named arms: what the search asked for, ended or not."""
    found: dict[str, Overrides] = {}
    for path in sorted((run / "cohorts").glob("*.json")):
        try:
            arms = read_job(path).arms
        except (ValueError, KeyError, TypeError):  # damaged: its arms may be known elsewhere
            continue
        found |= {one.arm: one.overrides for one in arms if not one.protected}
    return found


def arm_identity(identity: str, study: Study) -> str:
    """Hash of the material and of everything of the arm that has an effect on its numbers."""
    return study_file.digest(identity, study_file.effective(study))


def structure(study: Study) -> str:
    """What arms must share to train in lockstep: everything but scalars, flags and seeds."""
    config = study_file.flatten(study.model_dump(mode="json"))
    return study_file.digest({k: v for k, v in config.items() if k.startswith(SHAPING) and k not in SCALARS})


@lru_cache(maxsize=1)
def _shared(run: str, cache: str) -> tuple[Study, Material]:
    """The study and its material, kept by a worker from cohort to cohort."""
    study = study_file.load(Path(run) / "study.yaml")
    return study, open_material(study, read_card(Path(run)), Path(cache))


def run_job(path: Path, report: Report, share: Share = Share()) -> None:  # noqa: B008  (frozen)
    """Carry out a work order, or this process's share of it.

    Arms that ended before are left out. Arms that do not fit into memory together are trained in
    two halves, one after the other. An error of the device or of a file is raised: the process is
    not to be trusted any more. Any other ends the arms of its structure as failed, in all processes
    of the group, and the next structure goes on.
    """
    job = read_job(path)
    process.set_up(job.threads)
    study, material = _shared(job.run, job.cache)
    material.touch()  # opened by an earlier cohort, perhaps days ago
    records: dict[str, Row] = {}
    for one in job.arms:
        records |= read_records(Path(job.run), one.arm)
    finished = share.gather({"finished": sorted(records)})[0]["finished"]  # one answer for all
    arms = [
        Arm(one.arm, study_file.resolve(study, one.overrides), one.protected)
        for one in job.arms
        if one.arm not in finished
    ]
    heard = replace(share, gather=partial(_gather_or_raise, share))
    recorder = _Recorder(job, study, material.photographs.table.classes, report, heard)
    meter = Meter(Path(job.run), f"{job.cohort}.{share.rank}")
    waiting, done = partition(arms), 0
    while waiting:
        group = waiting.pop(0)
        steps = partial(_step, meter, done, done + 1 + len(waiting))
        history = _history(job, records, recorder.reached, group)
        try:
            fit(group, material, recorder.epoch, history, heard, steps)
        except Exception as error:
            failure = _agree(error, share)
            rest = recorder.open_arms(group) if failure.too_large else []
            if len(rest) > 1:
                waiting[:0] = [rest[::2], rest[1::2]]
                continue
            recorder.fail(group[share.rank :: share.size], str(failure))
        done += 1
    report({"done": True})


class _GroupError(RuntimeError):
    """What ended a structure: this process's own error, or what another of the group says of its."""

    def __init__(self, words: str, too_large: bool) -> None:
        super().__init__(words)
        self.too_large = too_large


def _agree(error: Exception, share: Share) -> _GroupError:
    """The failure that all processes of the group act on. Memory is told apart: it is no fault of an arm."""
    if isinstance(error, _GroupError):
        return error
    too_large = isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)
    if isinstance(error, OSError) or ("CUDA" in str(error) and not too_large):
        raise error
    own = {"error": f"{type(error).__name__}: {error}", "too_large": too_large}
    return _failure(share.gather(own))


def _failure(parts: list[Row]) -> _GroupError:
    """One verdict of all that failed at once: halves help only where memory was all that lacked."""
    failed = [part for part in parts if "error" in part]
    return _GroupError(failed[0]["error"], all(part["too_large"] for part in failed))


def _gather_or_raise(share: Share, own: Row) -> list[Row]:
    """Gather, and fail with the process that failed: it says so where the others wait for it."""
    parts = share.gather(own)
    if any("error" in part for part in parts):
        raise _failure(parts)
    return parts


def _history(
    job: Job, records: dict[str, Row], reached: dict[int, dict[str, float]], group: Sequence[Arm]
) -> dict[int, list[float]]:
    """Values that others had at each epoch: the order's, those of a try before, those of this one."""
    history = {epoch: list(values) for epoch, values in job.history.items()}
    for one in job.arms:
        for row in records.get(one.arm, {}).get("epochs", ()):
            if row["loss"] is not None:
                history.setdefault(row["epoch"], []).append(row[OBJECTIVE])
    own = {arm.arm for arm in group}
    for epoch, values in reached.items():
        history.setdefault(epoch, []).extend(value for arm, value in values.items() if arm not in own)
    return history


def partition(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Arms that may train in lockstep, together: one list a structure, in the order asked."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(structure(arm.study), []).append(arm)
    return list(groups.values())


def _step(meter: Meter, index: int, groups: int, done: int, total: int) -> None:
    meter("arms", index * total + done, groups * total)


class _Recorder:
    """Turns what `fit` says into durable records, then into small reports of all processes."""

    def __init__(
        self, job: Job, study: Study, classes: tuple[str, ...], report: Report, share: Share
    ) -> None:
        self.job, self.study, self.classes, self.report, self.share = job, study, classes, report, share
        self.ended: set[str] = set()
        self.reached: dict[int, dict[str, float]] = {}
        """Epoch -> arm -> its value there, of all processes."""
        self.untold: list[str] = []
        """Arms with a record that no report has named yet."""

    def epoch(self, epoch: EpochReport) -> None:
        for one in epoch.ended:
            self.write(one)
        values = [[row["arm"], row[OBJECTIVE]] for row in epoch.rows if row["loss"] is not None]
        self.tell(epoch.epoch, values)

    def tell(self, epoch: int, own: list[list[Any]]) -> None:
        """One report of what all processes of the group have."""
        parts = self.share.gather({"values": own, "ended": self.untold})
        self.untold = []
        values = [pair for part in parts for pair in part["values"]]
        self.reached.setdefault(epoch, {}).update(dict(values))
        self.report({"epoch": epoch, "values": values, "ended": [arm for p in parts for arm in p["ended"]]})

    def open_arms(self, arms: Sequence[Arm]) -> list[Arm]:
        """Those that have not ended, in this process or another of the group."""
        own = [arm for part in self.share.gather({"ended": sorted(self.ended)}) for arm in part["ended"]]
        return [arm for arm in arms if arm.arm not in own]

    def fail(self, arms: Sequence[Arm], words: str) -> None:
        """Record arms that an error ended; those that had ended before stay as they are."""
        lost = [one for one in self.job.arms if one.arm in {arm.arm for arm in arms} - self.ended]
        for one in lost:
            write_failed(self.study, self.job.run, self.job.cohort, one, words)
            self.untold.append(one.arm)
        self.tell(0, [])

    def write(self, ended: Ended) -> None:
        """Add what the order says of the arm, and store its record for good."""
        asked = next(one for one in self.job.arms if one.arm == ended.arm["arm"])
        run, row = Path(self.job.run), ended.arm | asked_columns(self.study, self.job.cohort, asked)
        if ended.state is not None:
            study = study_file.resolve(self.study, asked.overrides)
            save_student(run, asked.arm, study, ended.state, self.classes)
        write_record(run, row, ended.epochs)
        self.ended.add(asked.arm)
        self.untold.append(asked.arm)


def asked_columns(study: Study, cohort: str, asked: Asked) -> Row:
    """What a row says of the arm before it is trained: its place in the search and its values."""
    config = study_file.flatten(study_file.resolve(study, asked.overrides).model_dump(mode="json"))
    return {
        "arm": asked.arm,
        "cohort": cohort,
        "number": asked.number,
        "searched": sorted(asked.overrides),
        "seed": config["train.seed"],
        **{key: value for key, value in config.items() if key.startswith(study_file.SEARCHABLE)},
    }


def write_failed(study: Study, run: str, cohort: str, asked: Asked, error: str) -> None:
    """Record an arm that ended without a result, and why."""
    kind = {"protocol": study.protocol, "selection": study.selection}
    row = kind | {"status": "failed", "error": " ".join(error.split())[:500], "epochs_done": 0}
    write_record(Path(run), row | asked_columns(study, cohort, asked), [])
