"""One arm as the published code trains it: no bank, no pixel store, no cohort, no Ray.

    python -m comkd_ray.baseline WORK.json

What `bench sweep` compares with, after PromptKD's loop (PAPER 5.1-5.4, 5.18). Every image is decoded
from its file and augmented by PIL in torch's DataLoader, every time; the teacher's image tower runs
on every batch, in evaluation too; its text tower runs over all class names in every step unless
`cached_text` is set. The allocator gives freed memory back, as it does by itself, unless `kept_memory`
is set. The student's modules, losses, optimiser, image order and crop boxes are the product's own,
with one arm, so only the way to pixels and teacher features differs, and the numbers must agree up to
what the bank's float16 and the store's square cost.
Prints one JSON line: scores of the best epoch, and the images that went through the teacher.

Shapes: B images, C classes, D joint width.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from comkd_ray import process
from comkd_ray.bank import CENTER
from comkd_ray.bench_files import FileViews, Item, Order
from comkd_ray.cohort import EVAL_BATCH, Knobs, batch_order, seen_scores
from comkd_ray.config import Study
from comkd_ray.data.datasets import TEST, TRAIN, VAL
from comkd_ray.losses import align_loss, kd_loss, normalize, per_arm
from comkd_ray.material import TunedTeacher, read_card, read_teacher, read_text
from comkd_ray.metrics import accuracies, predict, test_scores
from comkd_ray.models import Clip, autocast, default_device, load_clip
from comkd_ray.optim import SGD, learning_rate
from comkd_ray.photographs import Photographs, open_photographs
from comkd_ray.prepare import view_count
from comkd_ray.prompts import embed_images
from comkd_ray.results import Row
from comkd_ray.stage_one import spoken_by
from comkd_ray.student import StudentCohort
from comkd_ray.study_file import load, resolve
from comkd_ray.teacher import class_features, encode_prompted

PROBED = 6  # steps of a trial of the loader, after the first two


@dataclass
class Published:
    """A student and the teacher that runs beside it."""

    study: Study
    photographs: Photographs
    teacher: Clip
    tuned: TunedTeacher
    clip: Clip
    text: Tensor
    """The teacher's unit text features `[C, D]`, as cached."""
    cached_text: bool
    teacher_images: int = 0
    """Images that went through the teacher's tower so far."""

    def __post_init__(self) -> None:
        train, device = self.study.train, self.clip.device
        self.student = StudentCohort([self.study], self.clip, self.text)
        momentum, decay = per_arm([train.momentum], device), per_arm([train.weight_decay], device)
        self.optimizer = SGD(self.student.tensors, momentum, decay, self.student.in_float16)
        self.knobs = Knobs.of([self.study], device)
        self.visual, _ = spoken_by(self.teacher, self.tuned)
        self.sizes = sorted({self.clip.image_size, self.teacher.image_size})

    @torch.no_grad()
    def teach(self, pixels: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        """The teacher on a batch: image features `[B, D]`, and unit text features `[C, D]`."""
        features = encode_prompted(self.teacher, pixels[self.teacher.image_size], self.visual)
        self.teacher_images += len(features)
        if self.cached_text:
            return features, self.text
        return features, class_features(self.teacher, self.tuned, self.photographs.table.classes)

    def encode(self, pixels: dict[int, Tensor]) -> Tensor:
        """The student's projected features `[1, B, D]`, not normalised."""
        images = self.clip.prepare(pixels[self.clip.image_size])
        with autocast(self.clip.device, self.student.precision):
            if "visual" in self.student.tensors:
                inputs = embed_images(self.clip, images)
            else:
                with torch.no_grad():
                    inputs = self.clip.visual(images)
            return self.student.project(self.student.encode(inputs[None])).float()

    def loss(self, pixels: dict[int, Tensor]) -> Tensor:
        """The loss of a batch of pixels `[B, 3, S, S]` of each size S: the product's terms."""
        taught, text = self.teach(pixels)
        self.student.train()
        raw = self.encode(pixels)
        image, teacher, config = normalize(raw), normalize(taught), self.study.student
        targets = self.student.rounded(self.teacher.logit_scale * teacher @ text.T)
        kd = kd_loss(self.student.logits(image), targets[None], self.knobs.temperature)
        loss = self.knobs.kd_weight * kd
        if self.knobs.any_align:
            pair = (image, teacher) if config.align_features == "normalized" else (raw, taught)
            align = align_loss(pair[0], pair[1][None], config.align_axis, config.align_reduction)
            loss = loss + self.knobs.align_weight * align
        return loss.sum()

    def step(self, pixels: dict[int, Tensor], rate: float) -> float:
        """One update; returns the loss before it."""
        loss = self.loss(pixels)
        loss.backward()
        self.optimizer.step(per_arm([rate], self.clip.device))
        return loss.item()  # the published loop prints it

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Sequence[Tensor]], part: int) -> Row:
        """Scores on the images of a part, validation or test, the teacher's tower beside it (PAPER 5.4)."""
        labels = torch.from_numpy(self.photographs.labels[self.photographs.part(part)])
        groups, guesses = self.photographs.groups, []
        self.student.eval()
        first = 0
        for batch in batches:
            pixels = self.moved(batch)
            taught, text = self.teach(pixels)
            own = self.student.group_logits(normalize(self.encode(pixels)), groups)
            both = torch.cat([own, (normalize(taught) @ text.T)[None]]).cpu()
            guesses.append(predict(both, labels[first : first + both.shape[1]], groups))
            first += both.shape[1]
        student, teacher = torch.cat(guesses, dim=1)
        truth, agreement = (accuracies(student[None], one, labels, groups)[0] for one in (labels, teacher))
        return test_scores(self.study, truth) if part == TEST else seen_scores(self.study, truth, agreement)

    def moved(self, batch: Sequence[Tensor]) -> dict[int, Tensor]:
        """A batch of the loader on the device, by size."""
        device = self.clip.device
        return {size: t.to(device, non_blocking=True) for size, t in zip(self.sizes, batch, strict=True)}

    def loader(self, order: Order, workers: int, batch: int, drop_last: bool) -> DataLoader[Any]:
        """torch's DataLoader as the published code uses it (PAPER 5.18), its workers kept alive."""
        return DataLoader(
            FileViews(self.photographs, self.sizes),
            batch,
            sampler=order,
            num_workers=workers,
            drop_last=drop_last,
            pin_memory=self.clip.device.type == "cuda",
            persistent_workers=workers > 0,
        )


def train_arm(arm: Published, workers: int) -> dict[str, Any]:
    """Train to the end; test scores of the epoch with the best objective, the first of equals."""
    study, photographs = arm.study, arm.photographs
    order, val, test = Order(), Order(), Order()
    val.items, test.items = ([(int(i), CENTER) for i in photographs.part(part)] for part in (VAL, TEST))
    train = arm.loader(order, workers, study.train.batch_size, drop_last=True)
    validation = arm.loader(val, workers, EVAL_BATCH, drop_last=False)
    best: dict[str, Any] = {"objective": -1.0}
    for epoch in range(1, study.train.epochs + 1):
        order.items = items(study, photographs, epoch)
        rate = learning_rate(epoch, study.train.epochs, study.train.lr, study.train.warmup_lr)
        losses = [arm.step(arm.moved(batch), rate) for batch in train]
        row = arm.evaluate(validation, VAL)
        if row["objective"] > best["objective"]:
            best, kept = row | {"best_epoch": epoch, "loss": sum(losses) / len(losses)}, arm.student.state(0)
    arm.student.load_state(0, kept)
    best |= arm.evaluate(arm.loader(test, workers, EVAL_BATCH, drop_last=False), TEST)
    return best | {"teacher_images": arm.teacher_images}


def items(study: Study, photographs: Photographs, epoch: int) -> list[Item]:
    """Images and views of an epoch, in the product's order."""
    view = 1 + (epoch - 1) % view_count(study)
    return [(int(image), view) for image in batch_order(photographs.part(TRAIN), study.train.seed, epoch)]


def probe(arm: Published) -> dict[str, Any]:
    """Try numbers of loader workers and torch threads for a few steps each; the fastest is first.

    Workers keep two batches each ready: these are taken before the clock starts.
    """
    cores, batch = os.cpu_count() or 1, arm.study.train.batch_size
    images = items(arm.study, arm.photographs, 1)
    tried = []
    for workers in sorted({0, 1, 2, cores // 2, cores}):
        for threads in sorted({cores, max(1, cores - workers)}):
            torch.set_num_threads(threads)
            order, ahead = Order(), 2 + 2 * workers
            order.items = list(islice(cycle(images), (ahead + PROBED) * batch))
            batches = iter(arm.loader(order, workers, batch, drop_last=True))
            for one in islice(batches, ahead):
                arm.step(arm.moved(one), arm.study.train.warmup_lr)
            start = time.perf_counter()
            for one in batches:
                arm.step(arm.moved(one), arm.study.train.warmup_lr)
            spent = (time.perf_counter() - start) / PROBED
            tried.append({"workers": workers, "threads": threads, "seconds_per_step": spent})
    tried.sort(key=lambda one: one["seconds_per_step"])
    return {**tried[0], "tried": tried}


def open_arm(work: dict[str, Any]) -> Published:
    """Models, images and the tuned teacher of a work order of `bench sweep`."""
    run, cache, device = Path(work["run"]), Path(work["cache"]), default_device()
    study = resolve(load(run / "study.yaml"), work["overrides"])
    photographs = open_photographs(study, cache, lambda *_: None)
    card = read_card(run)
    tuned = read_teacher(cache, card.teacher, device)
    text = read_text(cache, card.teacher, card.text, device)
    teacher, clip = load_clip(study.teacher, device), load_clip(study.student, device)
    return Published(study, photographs, teacher, tuned, clip, text, work["cached_text"])


def main() -> None:
    """Carry out the work order that the command line names."""
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if work["kept_memory"]:
        process.keep_freed_memory()
    arm = open_arm(work)
    if work["workers"] is None:
        print(json.dumps(probe(arm)))
        return
    torch.set_num_threads(work["threads"])
    print(json.dumps(train_arm(arm, work["workers"])))


if __name__ == "__main__":
    main()
