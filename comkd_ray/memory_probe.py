"""How much memory arms take: `search.arms_per_trial: auto`.

Measured once, where cohorts run, by a process of its own: memory that a process has had it keeps, and
only its own peak is a number of the cohort's.

    python -m comkd_ray.memory_probe RUN CACHE THREADS

trains, evaluates and tests one batch with 1 arm and then with 3, and prints the peak after each. The line
through both is what a cohort takes whatever its size, and what an arm adds to it. Arms of several
structures in one cohort train one structure after the other, so what counts is the largest structure
that the study can ask for.

    $COMKD_CACHE/memory/<key>.json    both peaks; the key: structure with tower, batch size and precision,
                                      classes, pixels, device
    <run>/memory.json                 the line, and the bytes that were free on the device

What follows from it is in `cohort_size.py`.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import torch

from comkd_ray import process, study_file
from comkd_ray.cohort import EVAL_BATCH, Arm, Cohort
from comkd_ray.cohort_size import FILE, Memory
from comkd_ray.config import Study
from comkd_ray.data.datasets import TEST, TRAIN, VAL
from comkd_ray.errors import UserError
from comkd_ray.jobs import OUT_OF_MEMORY, structure
from comkd_ray.material import Material, open_material, read_card, read_text
from comkd_ray.models import default_device
from comkd_ray.protocols import OBJECTIVE
from comkd_ray.results import write_atomic
from comkd_ray.search_space import Overrides

FORMAT = 3
"""Raised when a cohort takes memory in another way: part of every key."""
SIZES = (1, 3)
"""Arms that are tried."""
HEAVIER: Overrides = {
    "student.ifalign": True,
    "student.edu_attention": True,
    "student.attention_layers": "separate",
    "student.alpha": "vector",
    "train.precision": "float16",
}
"""Of values that are no sizes, those that take more memory."""
SIZED = ("student.prompt_length", "student.prompt_depth", "student.projector_layers", "train.batch_size")
"""Where more is more."""
PEAK = "peak"


# What a worker does -----------------------------------------------------------------------------


def probe(run: Path, cache: Path, threads: int) -> Memory:
    """Measure for a prepared run, or take the line from the cache; leaves `memory.json` in the run.

    UserError where the measuring process fails for any other reason than memory.
    """
    study, card, device = study_file.load(run / "study.yaml"), read_card(run), default_device()
    heaviest = study_file.resolve(study, heaviest_values(study))
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {platform.machine()}"
    text = read_text(cache, card.teacher, card.text, torch.device("cpu"))
    where = torch.__version__, name, threads
    modules = heaviest.student.ifalign, heaviest.student.edu_attention
    inputs = list(text.shape), study.data.side, _many_seeds(study), EVAL_BATCH
    key = study_file.digest(FORMAT, *where, structure(heaviest), *modules, *inputs)
    path = cache / "memory" / f"{key}.json"
    free = free_bytes(device)
    try:
        peaks = {int(arms): int(size) for arms, size in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        peaks = _measure(run, cache, threads)
        if len(peaks) == len(SIZES):  # another time there may be more room
            write_atomic(path, json.dumps(peaks).encode())
    values, (fixed, per_arm) = heaviest_values(study), line(peaks)
    memory = Memory(device.type, name, values, fixed, per_arm, len(peaks) == len(SIZES), free)
    write_atomic(run / FILE, json.dumps(asdict(memory), indent=1).encode())
    return memory


def line(peaks: dict[int, int]) -> tuple[int, int]:
    """(fixed, per arm) bytes of the line through the peaks of the smallest and the largest cohort."""
    few, many = min(peaks), max(peaks)
    per_arm = max(1, (peaks[many] - peaks[few]) // max(1, many - few))
    return max(0, peaks[few] - few * per_arm), per_arm


def heaviest_values(study: Study) -> Overrides:
    """Values of the largest structure that the study can ask for, where they are not the study's own."""
    own = study_file.flatten(study.model_dump(mode="json"))
    asked = [study_file.flatten(one.model_dump(mode="json")) for one in study_file.variants(study)]
    heaviest: Overrides = {key: max(one[key] for one in asked) for key in SIZED}  # type: ignore[type-var]
    heaviest |= {key: value for key, value in HEAVIER.items() if any(one[key] == value for one in asked)}
    return {key: value for key, value in heaviest.items() if value != own[key]}


def _many_seeds(study: Study) -> bool:
    """Whether arms of one cohort may have seeds, and so images, of their own."""
    return len({one.train.seed for one in study_file.variants(study)}) > 1


def free_bytes(device: torch.device) -> int:
    """Memory of the device that nobody holds; on a CPU, what this container may take, too."""
    process.give_back()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what this process holds without need
        return int(torch.cuda.mem_get_info()[0])
    return min(int(psutil.virtual_memory().available), _container_bytes())


def _container_bytes(group: Path = Path("/sys/fs/cgroup")) -> int:
    """What a cgroup still allows; pages of files that can be dropped count as free."""
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stat = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
        return limit - used + int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):
        return sys.maxsize  # no limit


def _measure(run: Path, cache: Path, threads: int) -> dict[int, int]:
    """Arms -> peak bytes, of those SIZES that could be trained."""
    command = [sys.executable, "-m", "comkd_ray.memory_probe", str(run), str(cache), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (our own)
    rows = [row.split()[1:] for row in done.stdout.splitlines() if row.startswith(PEAK)]
    peaks = {int(arms): int(size) for arms, size in rows}
    words = (done.stderr.strip() or "it said nothing").splitlines()[-1]
    too_large = done.returncode == -9 or any(one in words for one in (*OUT_OF_MEMORY, "MemoryError"))
    if not peaks or (done.returncode and not too_large):
        raise UserError(
            f"search.arms_per_trial: auto: the probe ended with code {done.returncode} ({words}); set a"
            " number"
        )
    return peaks


# The measuring process --------------------------------------------------------------------------


def peak_bytes(device: torch.device) -> int:
    """The most that this process has held: tensors on a GPU, else all of its memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would add what the parent held
        fields = dict(row.split(":", 1) for row in status.read_text(encoding="utf-8").splitlines())
        return 1024 * int(fields["VmHWM"].split()[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def exercise(study: Study, material: Material, arms: int) -> None:
    """Two training steps, so that momentum is there, and an evaluation batch after each.

    At the end all best states are kept and looked at on the test images, beside what training holds.
    """
    seeds = range(1, arms + 1) if _many_seeds(study) else [study.train.seed] * arms
    heaviest = heaviest_values(study)
    studies = [study_file.resolve(study, heaviest | {"train.seed": seed}) for seed in seeds]
    cohort = Cohort([Arm(str(k), one) for k, one in enumerate(studies)], _few(material, studies[0]))
    for epoch in (1, 2):
        cohort.train_epoch(epoch, lambda done, total: None)
        cohort.evaluate()
        rows = [{"arm": arm.arm, "epoch": epoch, "loss": 0.0, OBJECTIVE: float(epoch)} for arm in cohort.arms]
        cohort.charge(rows, 0.0)  # made up: each epoch is the best so far, whatever these few images say
    cohort.test([arm.arm for arm in cohort.arms])


def _few(material: Material, study: Study) -> Material:
    """The material with one batch to train on, and one of each part to evaluate."""
    photographs = material.photographs
    table = photographs.table
    train = photographs.part(TRAIN)[: study.train.batch_size]
    evaluated = [photographs.part(part)[:EVAL_BATCH] for part in (VAL, TEST)]
    chosen = np.concatenate([train, *evaluated])
    parts = np.full_like(table.parts, -1)  # in no part
    parts[chosen] = table.parts[chosen]
    return replace(material, photographs=replace(photographs, table=replace(table, parts=parts)))


def main(words: Sequence[str]) -> None:
    """Print `peak ARMS BYTES` for each of SIZES."""
    run, cache, threads = Path(words[0]), Path(words[1]), int(words[2])
    process.set_up(threads)
    study = study_file.load(run / "study.yaml")
    material = open_material(study, read_card(run), cache)
    for arms in SIZES:
        exercise(study, material, arms)
        print(PEAK, arms, peak_bytes(default_device()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
