"""What each piece of a study takes on this machine, measured in half a minute on a few photographs.

    comkd-ray tune STUDY.yaml --dry-run --probe

Nothing is kept, no Ray starts. Photographs are the study's own; the teacher's features are random
numbers, as time does not depend on values, and so are the weights of a tower that would have to be
downloaded. `forecast.py` puts the pieces together.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comkd_ray import process
from comkd_ray.bank import pixels_of
from comkd_ray.bank_store import BATCH
from comkd_ray.config import Study, Tower
from comkd_ray.data.datasets import TRAIN, VAL, ImageTable
from comkd_ray.data.folders import silent
from comkd_ray.data.pixels import kept, open_store
from comkd_ray.errors import UserError
from comkd_ray.material import Material
from comkd_ray.models import Clip, load_clip, model_name
from comkd_ray.photographs import TEMPLATE, Photographs, learned_classes, source_table, target_table
from comkd_ray.protocols import is_transductive
from comkd_ray.rehearsal import cohort_of, first_prompts, inputs_of, random_material
from comkd_ray.stopwatch import LONG, EnoughError, Others, Stopwatch, fastest_seconds, timed
from comkd_ray.student import has_visual_prompts
from comkd_ray.teacher import Encoder, FewShots, encode_prompted, fit_teacher, imagenet_templates

SAMPLE = 64
"""Photographs of a part that are decoded: a batch of evaluation and of the bank."""
IMPORTS = "import comkd_ray.study_run, open_clip"

Images = NDArray[np.int64]


@dataclass(frozen=True)
class Line:
    """Seconds that grow with the arms of a cohort."""

    base: float
    slope: float

    def at(self, arms: float) -> float:
        """Seconds with so many arms."""
        return self.base + self.slope * arms


@dataclass(frozen=True)
class Pace:
    """Seconds of every piece."""

    where: str
    """Device and torch threads."""
    import_seconds: float
    """A new process until its libraries are there."""
    list_seconds: float
    """Finding the photographs of the study."""
    load_teacher: float
    load_student: float
    decode: float
    """An image into the pixel store, on all cores."""
    teacher_image: float
    """An image through the teacher's tower, its crop included."""
    student_image: float
    class_text: float
    """A class through the teacher's text tower, in all templates."""
    teacher_step: float
    """A step of stage I; 0 for a zero-shot teacher."""
    inputs: float
    """An image of a further seed in a cohort: its crop and patch embedding."""
    steps: Mapping[str, Line]
    """An image of a training step, by kind of arm: "prompted", or "banked" without visual prompts."""
    evaluations: Mapping[str, Line]
    """An evaluated image, by kind of arm."""
    random_towers: tuple[str, ...] = ()
    """Towers that were given random weights."""
    others: float = 0.0
    """Share of this machine's CPU time that other processes took meanwhile."""
    seconds: float = 0.0
    """What the probe took."""


def probe(study: Study, kinds: Mapping[str, Study], arms: int) -> Pace:
    """Measure. kinds: the arm that stands for its kind; arms: of a cohort.

    UserError for what `tune` would refuse too.
    """
    begun, others, device = time.perf_counter(), Others(), device_of(study)
    process.set_up(max(1, int(study.compute.cpus)))
    listing, table = timed(lambda: target_table(study, silent))
    taught = source_table(study, table, silent)
    with tempfile.TemporaryDirectory(prefix="comkd-probe-") as folder:
        decode, photographs = _photographs(study, table, _largest_batch(study, kinds), Path(folder))
        loads = [timed(lambda t=tower: _tower(t, device)) for tower in (study.teacher, study.student)]  # type: ignore[misc]
        (load_teacher, (teacher, random_teacher)), (load_student, (student, random_student)) = loads
        images = _Towers(study, photographs, teacher, student)
        material = random_material(photographs, student, teacher.width)
        cohorts = {kind: _Cohorts(arm, material, images.student_image, arms) for kind, arm in kinds.items()}
        random_towers = {study.teacher.model: random_teacher, study.student.model: random_student}
        return Pace(
            where=f"{device.type}, {torch.get_num_threads()} threads",
            import_seconds=_import_seconds(),
            list_seconds=listing,
            load_teacher=load_teacher,
            load_student=load_student,
            decode=decode,
            teacher_image=images.teacher_image,
            student_image=images.student_image,
            class_text=images.class_text(),
            teacher_step=images.step(taught) if study.teacher.epochs else 0.0,
            inputs=max((one.inputs for one in cohorts.values()), default=0.0),
            steps={kind: one.step() for kind, one in cohorts.items()},
            evaluations={kind: one.evaluation() for kind, one in cohorts.items()},
            random_towers=tuple(name for name, drawn in random_towers.items() if drawn),
            others=others.share(),
            seconds=time.perf_counter() - begun,
        )


def device_of(study: Study) -> torch.device:
    """Where Ray would let this study compute. UserError where it asks for a GPU that is not here."""
    if study.compute.gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            f"compute.gpus: {study.compute.gpus:g}, but here is no GPU to probe; probe on a node that has one"
            ", or give --slots without --probe"
        )
    return torch.device("cuda")


def _import_seconds() -> float:
    """A fresh process that imports what a driver or a worker does, and ends."""
    return timed(lambda: subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True))[0]  # noqa: S603


def _per_image(work: Callable[[Images], object], images: Images, device: torch.device) -> float:
    """Seconds an image, in the largest batch up to BATCH that is not LONG."""
    one = fastest_seconds(lambda: work(images[:1]), device)
    count = max(1, min(len(images), BATCH, int(LONG / max(one, 1e-9))))
    return fastest_seconds(lambda: work(images[:count]), device) / count if count > 1 else one


# Photographs and towers -------------------------------------------------------------------------


def _largest_batch(study: Study, kinds: Mapping[str, Study]) -> int:
    return max(arm.train.batch_size for arm in (study, *kinds.values()))


def _photographs(study: Study, table: ImageTable, batch: int, cache: Path) -> tuple[float, Photographs]:
    """Seconds to decode an image, and some photographs of every part that the study uses."""
    size = max(SAMPLE, batch)
    parts = [table.select(part) for part in np.unique(table.parts)]
    spread = [part[np.unique(np.linspace(0, len(part) - 1, size).astype(int))] for part in parts]
    rows = np.sort(np.concatenate(spread))
    few = replace(
        table,
        paths=tuple(table.paths[row] for row in rows),
        labels=table.labels[rows],
        parts=table.parts[rows],
    )
    seconds, store = timed(lambda: open_store(few, study.data.side, cache, silent, study.data.skip_broken))
    base = learned_classes(study, table)
    photographs = Photographs(kept(few, store), store, base, TEMPLATE, is_transductive(study))
    return seconds / len(rows), photographs


def _tower(tower: Tower, device: torch.device) -> tuple[Clip, bool]:
    """The tower, and whether its weights are random: those that a name stands for are not downloaded."""
    import open_clip

    name = model_name(tower.model)
    carries = name.startswith(("local-dir:", "hf-hub:"))
    if carries or (tower.pretrained and Path(tower.pretrained).is_file()):
        return load_clip(tower, device), False
    model = open_clip.create_model(
        name, pretrained=None, load_weights=False, force_image_size=tower.image_size
    )
    settings = open_clip.get_model_preprocess_cfg(model)
    size = settings["size"] if isinstance(settings["size"], int) else settings["size"][0]
    model.requires_grad_(False).eval().to(device)
    tokenize = open_clip.get_tokenizer(name)
    return Clip(tower.model, model, tokenize, size, settings["mean"], settings["std"]), True


class _Towers:
    """Both towers on photographs, and stage I."""

    def __init__(self, study: Study, photographs: Photographs, teacher: Clip, student: Clip) -> None:
        self.study, self.photographs, self.teacher = study, photographs, teacher
        self.images = photographs.part(TRAIN)
        self.visual = first_prompts(study, teacher)
        self.teacher_image = self.seconds(teacher, self.visual)
        self.student_image = self.seconds(student, None)

    def seconds(self, clip: Clip, visual: Tensor | None) -> float:
        @torch.no_grad()
        def encode(images: Images) -> Tensor:
            return self.encode(clip, images, visual).half().cpu()

        return _per_image(encode, self.images, clip.device)

    def encode(self, clip: Clip, images: Images, visual: Tensor | None) -> Tensor:
        pixels = pixels_of(self.photographs.store, images, 1, clip.image_size, clip.device)
        return encode_prompted(clip, pixels, visual)

    def class_text(self) -> float:
        name = self.photographs.table.classes[:1]
        return fastest_seconds(
            lambda: self.teacher.encode_classes(name, imagenet_templates()), self.teacher.device
        )

    def step(self, taught: ImageTable) -> float:
        """Seconds of a step of stage I: `fit_teacher` itself, stopped when enough was seen.

        The frozen text features, made once, are left out: two cheap terms of the loss with them.
        """
        config, device = self.study.teacher, self.teacher.device
        frozen = config.image_l1_weight > 0 or config.logit_kl_weight > 0
        config = config.model_copy(
            update={"text_l1_weight": 0.0, "logit_kl_weight": 0.0, "image_l1_weight": float(frozen),
                    "keep": "last", "epochs": 10**6}
        )  # fmt: skip
        classes = taught.classes[: learned_classes(self.study, taught)]
        images = self.images[: config.batch_size]
        labels = np.arange(len(images)) % len(classes)
        none = np.empty(0, np.int64)
        shots = FewShots(images, labels, none, none, classes, 1)
        features = torch.randn(len(images), self.teacher.width, device=device)
        encode: Encoder = lambda some, _, visual: (  # noqa: E731
            features if self.visual is None else self.encode(self.teacher, some, visual)
        )
        watch = Stopwatch(device)
        try:
            fit_teacher("probe", config, self.teacher, shots, encode, watch)
        except EnoughError:
            return watch.seconds
        raise AssertionError("a million epochs ended")


# Cohorts ----------------------------------------------------------------------------------------


def fitted(measure: Callable[[int], float], most: int) -> Line:
    """The line through one arm and `most`; through nothing and one arm where `most` would take LONG."""
    one = measure(1)
    if most == 1 or one * most > LONG:
        return Line(0.0, one)
    slope = max(0.0, (measure(most) - one) / (most - 1))
    return Line(max(0.0, one - slope), slope)


class _Cohorts:
    """Cohorts of one kind of arm, of one arm and of `most`."""

    def __init__(self, study: Study, material: Material, image_seconds: float, most: int) -> None:
        """image_seconds: of the student's tower, to know beforehand what would take too long."""
        self.study, self.material, self.image_seconds, self.most = study, material, image_seconds, most
        cohort, _ = cohort_of(study, material, 1)
        self.batch = cohort.train_images[: study.train.batch_size]
        seconds = fastest_seconds(inputs_of(cohort, self.batch), cohort.device)
        self.inputs = seconds / len(self.batch)

    def step(self) -> Line:
        """Seconds of a step an image of its batch."""

        def measure(arms: int) -> float:
            cohort, step = cohort_of(self.study, self.material, arms)
            return fastest_seconds(step, cohort.device)

        line, count = fitted(measure, self.most), len(self.batch)
        return Line(line.base / count, line.slope / count)

    def evaluation(self) -> Line:
        """Seconds of an evaluated image: an arm's pass through its tower, and what it takes beside."""
        photographs = self.material.photographs
        by_test = self.study.selection == "promptkd"
        images = len(photographs.evaluated if by_test else photographs.part(VAL))
        prompted = has_visual_prompts(self.study.student, self.material.student)
        if prompted and images * self.image_seconds > LONG:
            return Line(0.0, self.image_seconds)

        def measure(arms: int) -> float:
            cohort, _ = cohort_of(self.study, self.material, arms)
            return fastest_seconds(cohort.evaluate, cohort.device)

        line = fitted(measure, self.most)
        return Line(line.base / images, line.slope / images)
