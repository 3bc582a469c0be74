"""The same arms in six ways, timed on one machine: `comkd-ray bench sweep`.

    published           PromptKD's loop (baseline.py): both towers of the teacher in every step, JPEG
                        decoding in a DataLoader with the number of workers that is best here, one
                        process an arm
    cached_text         the same, its text features computed once
    kept_memory         the same, and the allocator keeps freed memory, as ours does (process.py)
    one_by_one          `comkd-ray tune`, arms_per_trial: 1
    cohorts             `comkd-ray tune`, the study's arms_per_trial
    halving             the same, and the weakest arms leave at the rungs

All ways have the same grid of arms, images, views and epochs. Stage I is the same for everybody: the
teacher is tuned once beforehand and in nobody's time. Everything else is in: each process is started
as a person starts it, and tune's three have an empty cache, so they decode, build the bank and start
Ray. Trying the loader's workers is in nobody's time. As an arm costs the published loop the same
whatever its values, it may run some arms and be scaled to all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from comkd_ray import prepare, provenance, search_space, study_file
from comkd_ray.bank_care import entries
from comkd_ray.bench_table import Way, grown, summary
from comkd_ray.config import Halving, Study
from comkd_ray.errors import UserError
from comkd_ray.material import write_card
from comkd_ray.progress import Watch
from comkd_ray.protocols import protocol_of
from comkd_ray.results import Row, read_records
from comkd_ray.search_space import Overrides

BASELINES = {
    "published": {"cached_text": False, "kept_memory": False},
    "cached_text": {"cached_text": True, "kept_memory": False},
    "kept_memory": {"cached_text": True, "kept_memory": True},
}
"""The loops, and what is changed in them."""
TUNED = ("one_by_one", "cohorts", "halving")
CELL = 8
"""Arms of the 2x2 of modules under two seeds, at one temperature."""
MEMORY_EVERY = 2.0  # seconds between two looks at memory: a look costs a study's processes 30 ms
CLUSTER = ("RAY_ADDRESS",)  # a Ray that runs already would hide its start

Say = Callable[[str], None]


def grid_of(arms: int) -> dict[str, Any]:
    """`search.space` of the grid: the 2x2 of modules, two seeds, and as many temperatures as it takes."""
    if arms < CELL or arms % CELL:
        raise UserError(f"--arms {arms}: a multiple of {CELL}: two modules on and off, two seeds")
    count = arms // CELL
    return {
        "student.ifalign": {"choice": [False, True]},
        "student.edu_attention": {"choice": [False, True]},
        "loss.temperature": {"choice": [round(4 ** (k / count), 4) for k in range(count)]},
        "train.seed": {"choice": [1, 2]},
    }


def study_of(study: Study, way: str, arms: int) -> Study:
    """The study file of a way: the grid of all arms, every epoch with a view of its own."""
    tree = study.model_dump(mode="json")
    if study.teacher.epochs == 0:
        raise UserError("teacher.epochs: 0: the published loop has a tuned teacher; bench sweep needs one")
    if study.selection != "strict":
        raise UserError("selection: bench sweep compares ways that look at test images once, at the end")
    halving = study.search.halving or Halving(eta=2, min_epochs=max(1, study.train.epochs // 3))
    tree["study"] = f"bench-{way}"
    tree["data"]["views"] = "epochs"
    tree["search"] = {
        "sampler": "grid",
        "arms_per_trial": 1 if way == "one_by_one" else study.search.arms_per_trial,
        "halving": halving.model_dump() if way == "halving" else None,
        "space": grid_of(arms),
    }
    return study_file.build(tree, f"bench {way}")


def tune_command(path: Path, reports: Path) -> list[str]:
    """What a person would type for a study file."""
    return [sys.executable, "-m", "comkd_ray.cli", "tune", str(path), "--json", "--reports", str(reports)]


def end_event(stdout: str) -> dict[str, Any]:
    """The last event of `comkd-ray tune --json`. UserError where the study did not end well."""
    events = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
    end = next((event for event in reversed(events) if event.get("event") == "end"), None)
    if end is None:
        raise UserError("bench: comkd-ray tune ended without its end event")
    if end["failed"] or end["left"]:
        raise UserError(f"bench: {end['failed']} arms failed, {end['left']} left: nothing to compare")
    return dict(end)


@dataclass(frozen=True)
class Timed:
    """A process that was run to its end."""

    out: str
    seconds: float
    peak: int
    """Bytes that it held with its descendants, at most."""
    own_peak: int
    """Bytes that it held alone, at most."""


def run_timed(command: Sequence[str], environment: Mapping[str, str]) -> Timed:
    """Run a process, and look at its memory meanwhile. UserError where it fails."""
    peak = own = 0
    start = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603  (our own program)
        command, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def look() -> None:
        nonlocal peak, own
        peak = max(peak, provenance.memory_of(process.pid))
        own = max(own, provenance.memory_of(process.pid, alone=True))

    try:
        with Watch(look, MEMORY_EVERY):
            out, err = process.communicate()
    except BaseException:  # Ctrl-C: what was started ends with us
        process.terminate()
        process.wait()
        raise
    spent = time.perf_counter() - start
    if process.returncode:
        last = (err.strip() or "it said nothing").splitlines()[-1]
        raise UserError(f"bench: {' '.join(command[1:4])} ended with code {process.returncode}: {last}")
    return Timed(out, spent, peak, own)


@dataclass
class Sweep:
    """A comparison in a folder of its own."""

    study: Study
    arms: int
    baseline_arms: int
    folder: Path
    say: Say

    def run(self) -> dict[str, Any]:
        """All ways, one after the other, and what they say together."""
        if self.study.compute.gpus == 0:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as Ray does for such a cohort
        self.prepare()
        ways = [self.baseline(way) for way in BASELINES] + [self.tuned(way, self.arms) for way in TUNED]
        gpus = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
        return summary(self.study, self.arms, ways) | {"machine": provenance.machine(gpus)}

    def prepare(self) -> None:
        """Tune the teacher, outside of all times; decode the images once for the baseline's shapes."""
        self.say("tuning the teacher, in nobody's time")
        study = study_of(self.study, "published", self.arms)
        run = self.folder / "published"
        run.mkdir(parents=True)
        study_file.dump(study, run / "study.yaml")
        write_card(run, prepare.prepare(study, self.folder / "cache", lambda *_: None))

    def baseline(self, way: str) -> Way:
        """The published loop: some arms, each in a process of its own, one after the other."""
        cells = list(search_space.grid(study_of(self.study, way, self.arms).search.space))
        chosen = spread(cells, min(self.baseline_arms, self.arms))
        loader = json.loads(self.published(way, chosen[-1], {"workers": None}).out)
        self.say(f"{way}: {loader['workers']} loader workers, {loader['threads']} threads are best here")
        seconds, peak, images, found = 0.0, 0, 0, {}
        for number, cell in enumerate(chosen, 1):
            self.say(f"{way}: arm {number} of {len(chosen)}")
            done = self.published(way, cell, loader)
            row = json.loads(done.out)
            seconds, peak, images = (
                seconds + done.seconds,
                max(peak, done.peak),
                images + row["teacher_images"],
            )
            found[name_of(cell)] = (row["objective"], row[protocol_of(self.study).headline])
        scale = self.arms / len(chosen)
        seen = round(images * scale)
        return Way(way, len(chosen), seconds * scale / at_once(self.study), peak, seen, seen, found, loader)

    def published(self, way: str, cell: Overrides, loader: Mapping[str, Any]) -> Timed:
        """One process of the published loop; `workers` None: it only tries loaders."""
        work = {
            "run": str(self.folder / "published"),
            "cache": str(self.folder / "cache"),
            "overrides": cell,
            **BASELINES[way],
            "workers": loader["workers"],
            "threads": loader.get("threads"),
        }
        path = self.folder / "work.json"
        path.write_text(json.dumps(work), encoding="utf-8")
        return run_timed([sys.executable, "-m", "comkd_ray.baseline", str(path)], os.environ)

    def tuned(self, way: str, arms: int) -> Way:
        """Ours, as a person runs it, with an empty cache but for the tuned teacher."""
        study = study_of(self.study, way, arms)
        name = f"{way}-{arms}"
        self.say(f"{way}: {arms} arms by comkd-ray tune")
        cache, path = self.folder / f"cache-{name}", self.folder / f"{name}.yaml"
        shutil.copytree(self.folder / "cache" / "teachers", cache / "teachers")
        study_file.dump(study, path)
        kept = {name: value for name, value in os.environ.items() if name not in CLUSTER}
        reports = self.folder / f"reports-{name}"
        done = run_timed(tune_command(path, reports), kept | {"COMKD_CACHE": str(cache)})
        end_event(done.out)
        run = reports / study.study
        records = [record["arm"] for record in read_records(run).values()]
        spoken, late = teacher_images(run, cache, study.teacher.model)
        found = {name_of(row): values_of(row, self.study) for row in records if row["status"] == "complete"}
        return Way(
            way,
            len(records),
            done.seconds,
            done.peak,
            spoken,
            late,
            found,
            driver_bytes=done.own_peak,
            stages=stages_of(run, done.seconds),
            arm_seconds=sum(row["seconds"] for row in records),
        )

    def growth(self, counts: Sequence[int]) -> dict[str, Any]:
        """Cohorts of few and of many arms: seconds and the driver's memory, by number of arms.

        UserError for a number of arms that is no grid, before anything runs.
        """
        for count in counts:
            grid_of(count)
        if len(set(counts)) < len(counts):
            raise UserError(f"--arms {counts[0]} {counts[-1]}: two numbers, few and many")
        self.prepare()
        return grown(self.study, {count: self.tuned("cohorts", count) for count in counts})


def at_once(study: Study) -> int:
    """Loops that the GPUs of this machine hold at once, as they hold cohorts; on CPUs one takes all cores.

    The loop is timed alone, and taken to lose nothing where several run.
    """
    gpus = study.compute.gpus
    return max(1, int(torch.cuda.device_count() / gpus)) if gpus else 1


def teacher_images(run: Path, cache: Path, model: str) -> tuple[int, int]:
    """Images that the teacher's tower, tuned or not, encoded into banks; those of them after arms began.

    Arms cannot load the teacher at all; a bank that is younger than the run's card would betray them.
    """
    begun = (run / "material.json").stat().st_mtime
    spoken = [
        (one.created, one.views * one.images)
        for one in entries(cache)
        if one.of.get("model") == model and one.created and one.views and one.images
    ]
    return sum(count for _, count in spoken), sum(count for created, count in spoken if created > begun)


def stages_of(run: Path, seconds: float) -> dict[str, float]:
    """Where a study's seconds went, by its provenance: starts, checks and the report are in no stage."""
    stages: dict[str, float] = provenance.read(run)["stages"]
    return stages | {"everything else": seconds - sum(stages.values())}


def spread(cells: Sequence[Overrides], count: int) -> list[Overrides]:
    """`count` of the cells: the last one (all modules on), the first, and some between."""
    last = len(cells) - 1
    places = sorted({round(k * last / (count - 1)) for k in range(count)}) if count > 1 else [last]
    return [cells[place] for place in places]


def name_of(values: Mapping[str, Any]) -> str:
    """An arm by what the grid varies, whoever trained it."""
    keys = ("student.ifalign", "student.edu_attention", "loss.temperature", "train.seed")
    return " ".join(f"{key}={values[key]}" for key in keys)


def values_of(row: Row, study: Study) -> tuple[float, float]:
    """Objective and headline test score of a record."""
    return row["objective"], row[protocol_of(study).headline]
