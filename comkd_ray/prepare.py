"""Everything that is done once a study: decode, tune the teacher, bank what it says, measure it.

A part that is in the cache already is taken from there, so a later study of the same pair and data
starts its first arm at once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comkd_ray import study_file
from comkd_ray.bank import CENTER, Bank
from comkd_ray.bank_store import Layout
from comkd_ray.config import Study
from comkd_ray.data.datasets import TRAIN
from comkd_ray.data.pixels import Progress
from comkd_ray.material import METHOD, Card
from comkd_ray.models import Clip, default_device, load_clip
from comkd_ray.photographs import Photographs, check_batch, open_both, open_photographs
from comkd_ray.prompts import check_class_names
from comkd_ray.stage_one import StageOne, bank_images, bank_scores, open_stage_one, spoken_by
from comkd_ray.student import check_depths, has_visual_prompts
from comkd_ray.study_file import digest
from comkd_ray.teacher import build_text

Images = NDArray[np.int64]


def view_count(study: Study) -> int:
    """Views an image: as the study says, or one for every epoch of the longest arm."""
    if isinstance(study.data.views, int):
        return study.data.views
    space = study.search.space.get("train.epochs")
    searched = [] if space is None else [*(space.bounds or ()), *(space.choice or ())]
    points = [point["train.epochs"] for point in study.search.first if "train.epochs" in point]
    return max([study.train.epochs, *(int(value) for value in (*searched, *points))])


def most_shards(study: Study, cache: Path) -> int:
    """Shards of the largest bank: more processes than that have nothing to do."""
    images = len(open_photographs(study, cache, lambda *_: None).part(TRAIN))
    return Layout.of(images, view_count(study)).shards


def check(study: Study, cache: Path, progress: Progress) -> list[str]:
    """Refuse what can be refused before anything is trained; returns remarks a person should see.

    Decodes the photographs, so a broken one is found here.
    """
    preparation = _open(study, cache, progress, torch.device("cpu"))
    photographs = {"data": (study.data, preparation.photographs)}
    if study.source is not None:
        photographs["source"] = study.source, preparation.stage_one.photographs
    streamed = [
        f"{section}: images are decoded from files at every use; {section}.pixels: store would keep them"
        f" decoded in {cache}"
        for section, (data, found) in photographs.items()
        if data.pixels == "auto" and not found.store.stored
    ]
    return streamed + [
        f"{clip.name}: its image tower is no ViT and takes no visual prompts; its features are banked"
        for clip, config in ((preparation.teacher, study.teacher), (preparation.student, study.student))
        if config.prompt_length > 0 and not clip.is_vit
    ]


def prepare(study: Study, cache: Path, progress: Progress) -> Card:
    """Build teacher and banks as far as they are missing, and say where they are."""
    return _open(study, cache, progress, default_device()).run()


def _open(study: Study, cache: Path, progress: Progress, device: torch.device) -> _Preparation:
    stages: dict[str, float] = {}
    with _timed(stages, "pixels"):
        photographs, source = open_both(study, cache, progress)
    stage_one = open_stage_one(study, source, cache, progress, device)
    student, config = load_clip(study.student, device), study.teacher
    if config.epochs > 0:  # it speaks about the target's classes too
        classes = photographs.table.classes
        check_class_names(stage_one.clip, classes, config.context, config.text_prompt_length)
    _check_shapes(study, student, len(photographs.part(TRAIN)))
    return _Preparation(study, cache, progress, photographs, stage_one, student, stages)


class _timed:
    """Adds the seconds of a block to `stages[name]`."""

    def __init__(self, stages: dict[str, float], name: str) -> None:
        self.stages, self.name = stages, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self.start
        self.stages[self.name] = self.stages.get(self.name, 0.0) + spent


def _check_shapes(study: Study, student: Clip, images: int) -> None:
    """Refuse prompts deeper than their tower, and batches that cannot be filled, of any arm."""
    variants = study_file.variants(study)
    for variant in variants:
        check_batch(variant, images)
    check_depths(student, [variant.student for variant in variants])


@dataclass
class _Preparation:
    study: Study
    cache: Path
    progress: Progress
    photographs: Photographs
    stage_one: StageOne
    student: Clip
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def teacher(self) -> Clip:
        return self.stage_one.clip

    def run(self) -> Card:
        photographs, views = self.photographs, list(range(1, view_count(self.study) + 1))
        train, evaluated = photographs.part(TRAIN), photographs.evaluated
        zero_shot = self.bank(self.teacher, None, self.teacher.digest, evaluated, [CENTER])
        student_center = self.bank(self.student, None, self.student.digest, evaluated, [CENTER])
        with _timed(self.stages, "teacher"):
            tuned = self.stage_one.tune()
            name, text = build_text(self.teacher, tuned, photographs.table.classes, self.cache, self.progress)
        visual, identity = spoken_by(self.teacher, tuned)
        train_bank = self.bank(self.teacher, visual, identity, train, views)
        val_bank = self.bank(self.teacher, visual, identity, evaluated, [CENTER])
        own = None
        configs = [variant.student for variant in study_file.variants(self.study)]
        if not all(has_visual_prompts(config, self.student) for config in configs):
            own = self.bank(self.student, None, self.student.digest, train, views).key, student_center.key
        rules = self.study.protocol, self.study.selection
        banks = train_bank.key, val_bank.key
        identity = digest(METHOD, *rules, photographs.digest, tuned.digest, *banks, self.student.digest)
        return Card(
            identity,
            photographs.digest,
            tuned.key,
            name,
            train_bank.key,
            val_bank.key,
            own,
            self.teacher.logit_scale,
            self.teacher.image_parameters,
            self.references(text, val_bank, zero_shot, student_center),
            self.stages,
            tuned.digest,
        )

    def bank(
        self, clip: Clip, visual: Tensor | None, identity: str, images: Images, views: list[int]
    ) -> Bank:
        with _timed(self.stages, "bank"):
            return bank_images(
                clip, visual, identity, self.photographs, images, views, self.cache, self.progress
            )

    def references(self, text: Tensor, val: Bank, zero_shot: Bank, student: Bank) -> dict[str, float]:
        """Test accuracies of the tuned teacher and of both zero-shot models."""
        template = (self.photographs.template,)
        classes = self.photographs.table.classes
        rows = {
            "teacher": (val, text),
            "teacher_zero_shot": (zero_shot, self.teacher.encode_classes(classes, template)),
            "zero_shot": (student, self.student.encode_classes(classes, template)),
        }
        return {
            f"{reference}_{name}": value
            for reference, (bank, text) in rows.items()
            for name, value in bank_scores(self.study, self.photographs, bank, text).items()
        }
