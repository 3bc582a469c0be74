"""Cohorts to be timed: real photographs and towers, random numbers in the place of the teacher's features.

Time does not depend on values, so no tuned teacher is needed. What `bench step` and `tune --dry-run
--probe` measure is made here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comkd_ray.bank import Bank, build_bank, pixels_of
from comkd_ray.cohort import Arm, Cohort, Knobs
from comkd_ray.config import Study
from comkd_ray.data.datasets import TRAIN
from comkd_ray.data.folders import silent
from comkd_ray.losses import normalize, per_arm
from comkd_ray.material import Card, Material
from comkd_ray.models import Clip
from comkd_ray.photographs import Photographs
from comkd_ray.prompts import embed_images, visual_tokens
from comkd_ray.search_space import Overrides
from comkd_ray.study_file import resolve

CARD = Card("", "", "", "", "", "", None, 100.0, 0, {}, {}, "")

Images = NDArray[np.int64]


def first_prompts(study: Study, teacher: Clip) -> Tensor | None:
    """Visual prompts `[1, depth, L, W]` that the teacher begins with; None where it learns none."""
    config = study.teacher
    if not (teacher.is_vit and config.epochs > 0 and config.prompt_length > 0):
        return None
    tokens = visual_tokens(teacher, config.prompt_length, config.prompt_depth, config.seed)
    return tokens[None].to(teacher.device)


def random_material(photographs: Photographs, student: Clip, width: int) -> Material:
    """What arms train on, with random numbers in the place of the teacher's features. width: D."""
    rng, device = np.random.default_rng(0), student.device

    def bank(images: Images, columns: int) -> Bank:
        def say(some: Images, _view: int) -> Tensor:
            return torch.from_numpy(rng.standard_normal((len(some), columns)))

        with tempfile.TemporaryDirectory() as folder:
            made = build_bank(("random",), say, images, [1], Path(folder), silent)
            for shard in range(len(made.card.shards)):
                made.shard(shard)  # mapped: its file may go
        return made

    train, evaluated = photographs.part(TRAIN), photographs.evaluated
    text = torch.from_numpy(rng.standard_normal((len(photographs.table.classes), width)))
    text = normalize(text.float()).to(device)
    banks = bank(train, width), bank(evaluated, width)
    own = bank(train, student.width), bank(evaluated, student.width)
    return Material(CARD, photographs, student, text, *banks, own)


def cohort_of(study: Study, material: Material, arms: int) -> tuple[Cohort, Callable[[], None]]:
    """A cohort of arms of one seed, half of them with both modules, and its training step."""
    modules: list[Overrides] = [
        {"student.ifalign": k % 2 == 0, "student.edu_attention": k % 2 == 0} for k in range(arms)
    ]
    cohort = Cohort([Arm(str(k), resolve(study, one)) for k, one in enumerate(modules)], material)
    batch = cohort.train_images[None, : study.train.batch_size]
    knobs = Knobs.of([arm.study for arm in cohort.arms], cohort.device)
    rates = per_arm([study.train.warmup_lr] * arms, cohort.device)
    place = torch.zeros(arms, dtype=torch.long, device=cohort.device)

    def step() -> None:
        cohort.losses(batch, 1, place, knobs)["loss"].sum().backward()
        cohort.optimizer.step(rates)

    return cohort, step


def inputs_of(cohort: Cohort, batch: Images) -> Callable[[], object]:
    """What arms of one seed share in a step: pixels and patch embedding of a batch; else nothing."""
    clip, store = cohort.material.student, cohort.material.photographs.store

    def inputs() -> object:
        if "visual" not in cohort.student.tensors:
            return None
        return embed_images(clip, clip.prepare(pixels_of(store, batch, 1, clip.image_size, cohort.device)))

    return inputs
