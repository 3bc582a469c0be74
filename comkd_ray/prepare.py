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
from comkd_ray.bank import CENTER, Bank, build_bank, pixels_of
from comkd_ray.config import Study
from comkd_ray.data.datasets import TEST, TRAIN, VAL
from comkd_ray.data.pixels import Progress
from comkd_ray.data.splits import few_shot
from comkd_ray.errors import UserError
from comkd_ray.losses import normalize
from comkd_ray.material import METHOD, Card, Photographs, TunedTeacher, open_photographs
from comkd_ray.metrics import accuracies, predict, scores
from comkd_ray.models import Clip, default_device, load_clip
from comkd_ray.prompts import check_text_depth, check_visual_depth
from comkd_ray.protocols import protocol_of
from comkd_ray.student import has_visual_prompts
from comkd_ray.study_file import digest
from comkd_ray.teacher import FewShots, build_teacher, encode_prompted, fit_teacher

Images = NDArray[np.int64]


def view_count(study: Study) -> int:
    """Views an image: as the study says, or one for every epoch of the longest arm."""
    if isinstance(study.data.views, int):
        return study.data.views
    space = study.search.space.get("train.epochs")
    searched = [] if space is None else [*(space.bounds or ()), *(space.choice or ())]
    points = [point["train.epochs"] for point in study.search.first if "train.epochs" in point]
    return max([study.train.epochs, *(int(value) for value in (*searched, *points))])


def check(study: Study, cache: Path, progress: Progress) -> list[str]:
    """Refuse what can be refused before anything is trained; returns remarks a person should see.

    Decodes the photographs into their store, so a broken one is found here.
    """
    preparation = _open(study, cache, progress, torch.device("cpu"))
    preparation.few_shots(view_count(study))
    return [
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
        photographs = open_photographs(study, cache, progress)
    teacher, student = load_clip(study.teacher, device), load_clip(study.student, device)
    _check_shapes(study, teacher, student, len(photographs.part(TRAIN)))
    return _Preparation(study, cache, progress, photographs, teacher, student, stages)


class _timed:
    """Adds the seconds of a block to `stages[name]`."""

    def __init__(self, stages: dict[str, float], name: str) -> None:
        self.stages, self.name = stages, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self.start
        self.stages[self.name] = self.stages.get(self.name, 0.0) + spent


def _check_shapes(study: Study, teacher: Clip, student: Clip, images: int) -> None:
    """Refuse prompts deeper than their tower, and batches that cannot be filled, of any arm."""
    for variant in study_file.variants(study):
        if variant.train.batch_size > images:
            raise UserError(f"train.batch_size: {variant.train.batch_size}, but {images} training images")
        if has_visual_prompts(variant.student, student):
            check_visual_depth(student, variant.student.prompt_depth, "student")
    if study.teacher.epochs > 0:
        check_text_depth(teacher, study.teacher.text_prompt_depth)
    if teacher.is_vit and study.teacher.prompt_length > 0:
        check_visual_depth(teacher, study.teacher.prompt_depth, "teacher")


@dataclass
class _Preparation:
    study: Study
    cache: Path
    progress: Progress
    photographs: Photographs
    teacher: Clip
    student: Clip
    stages: dict[str, float] = field(default_factory=dict)

    def run(self) -> Card:
        photographs, views = self.photographs, list(range(1, view_count(self.study) + 1))
        train, evaluated = photographs.part(TRAIN), photographs.evaluated
        zero_shot = self.bank(self.teacher, None, self.teacher.digest, evaluated, [CENTER])
        student_center = self.bank(self.student, None, self.student.digest, evaluated, [CENTER])
        if self.teacher_learns_images():
            tuned = self.tune(views, None, zero_shot)
            visual = None if tuned.visual is None else tuned.visual[None]
            identity = digest(self.teacher.digest, tuned.digest)
            train_bank = self.bank(self.teacher, visual, identity, train, views)
            val_bank = self.bank(self.teacher, visual, identity, evaluated, [CENTER])
        else:  # only words are learned: image features never change, so learn from the bank
            train_bank = self.bank(self.teacher, None, self.teacher.digest, train, views)
            val_bank = zero_shot
            tuned = self.tune(views, train_bank, zero_shot)
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
            train_bank.key,
            val_bank.key,
            own,
            self.teacher.logit_scale,
            self.teacher.image_parameters,
            self.references(tuned, val_bank, zero_shot, student_center),
            self.stages,
        )

    def teacher_learns_images(self) -> bool:
        """Whether tuning changes the teacher's image features."""
        config = self.study.teacher
        return config.epochs > 0 and config.prompt_length > 0 and self.teacher.is_vit

    def bank(
        self, clip: Clip, visual: Tensor | None, identity: str, images: Images, views: list[int]
    ) -> Bank:
        @torch.no_grad()
        def encode(batch: Images, view: int) -> Tensor:
            return self.encode(clip, batch, view, visual)

        parts = (identity, clip.image_size, self.photographs.store.digest)
        with _timed(self.stages, "bank"):
            return build_bank(parts, encode, images, views, self.cache, self.progress)

    def encode(self, clip: Clip, images: Images, view: int, visual: Tensor | None) -> Tensor:
        """Features `[len(images), D]` of one view, not normalised."""
        pixels = pixels_of(self.photographs.store, images, view, clip.image_size, clip.device)
        return encode_prompted(clip, pixels, visual)

    def tune(self, views: list[int], frozen: Bank | None, center: Bank) -> TunedTeacher:
        """Stage I. frozen: the bank to learn from where image features never change."""
        config, shots = self.study.teacher, self.few_shots(len(views))

        def encode(images: Images, view: int, visual: Tensor | None) -> Tensor:
            if frozen is None:
                return self.encode(self.teacher, images, view, visual)
            bank = center if view == CENTER else frozen
            return bank.take(0 if view == CENTER else view - 1, images, self.teacher.device)

        seen = [config.model_dump(exclude={"model", "pretrained"}), shots.images.tolist()]
        seen.append(min(len(views), config.epochs))  # it sees no further view
        key = digest(METHOD, self.teacher.digest, self.photographs.digest, *seen)
        templates = imagenet_templates()

        def fit() -> TunedTeacher:
            return fit_teacher(key, config, self.teacher, shots, templates, encode, self.progress)

        with _timed(self.stages, "teacher"):
            return build_teacher(key, fit, self.cache, self.teacher.device)

    def few_shots(self, views: int) -> FewShots:
        """The teacher's labelled base images, and the base images of validation."""
        photographs, data = self.photographs, self.study.data
        labels, base, classes = photographs.labels, photographs.base, photographs.table.classes
        train, val = photographs.part(TRAIN), photographs.part(VAL)
        train, val = train[labels[train] < base], val[labels[val] < base]
        images = few_shot(labels, train, data.shots, data.split_seed, classes)
        return FewShots(images, labels[images], val, labels[val], classes, base, views)

    def references(self, tuned: TunedTeacher, val: Bank, zero_shot: Bank, student: Bank) -> dict[str, float]:
        """Test accuracies of the tuned teacher and of both zero-shot models."""
        template = (self.photographs.template,)
        classes = self.photographs.table.classes
        rows = {
            "teacher": (val, tuned.text_features),
            "teacher_zero_shot": (zero_shot, self.teacher.encode_classes(classes, template)),
            "zero_shot": (student, self.student.encode_classes(classes, template)),
        }
        names = protocol_of(self.study).scores
        return {
            f"{reference}_test_{name}": value
            for reference, (bank, text) in rows.items()
            for name, value in zip(names, scores(self.accuracy(bank, text)), strict=True)
        }

    def accuracy(self, bank: Bank, text: Tensor) -> tuple[float, ...]:
        """Percent on the test images of each group of classes."""
        images, groups = self.photographs.part(TEST), self.photographs.groups
        labels = torch.from_numpy(self.photographs.labels[images])
        logits = normalize(bank.take(0, images, text.device)) @ text.T
        return accuracies(predict(logits[None].cpu(), labels, groups), labels, labels, groups)[0]


def imagenet_templates() -> tuple[str, ...]:
    """open_clip's 80 ImageNet templates as format strings; PromptSRC averages 60 (PAPER 2.9)."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
