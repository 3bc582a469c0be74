"""The state of arms that train in lockstep: one batch, one step, one evaluation for all of them.

Arms of one seed share their images, so pixels, tokens and teacher features come once per distinct
seed `[S, B, ...]` and are spread over the arms at the last moment.

Shapes: A arms, S distinct seeds, B images, M evaluated images, C classes, D joint width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comkd_ray.bank import CENTER, pixels_of
from comkd_ray.config import Study
from comkd_ray.data.datasets import TEST, TRAIN, VAL
from comkd_ray.losses import align_loss, kd_loss, normalize, per_arm
from comkd_ray.material import Material
from comkd_ray.metrics import accuracies, predict, scores, test_scores
from comkd_ray.models import autocast
from comkd_ray.optim import SGD, learning_rate
from comkd_ray.prompts import embed_images, generator
from comkd_ray.protocols import OBJECTIVE, objective_of, protocol_of
from comkd_ray.results import Row
from comkd_ray.student import StudentCohort, trainable_parameters

EVAL_BATCH = 64
SCORE_PREFIXES = ("objective", "val_", "test_")

Images = NDArray[np.int64]
Shares = tuple[float, ...]
"""Percent of each group of classes."""
Meter = Callable[[int, int], None]
"""(steps done, of how many), called every step."""


@dataclass(frozen=True)
class Arm:
    """One student configuration with one seed."""

    arm: str
    study: Study
    """The study with this arm's values in place."""
    protected: bool = False
    """Never leaves at a rung."""


@dataclass(frozen=True)
class Knobs:
    """The scalars of the loss, `[A]` each; align_weight is 0 where IFAlign is off."""

    temperature: Tensor
    kd_weight: Tensor
    align_weight: Tensor
    any_align: bool

    @staticmethod
    def of(studies: Sequence[Study], device: torch.device) -> Knobs:
        """The knobs of these arms."""
        align = [s.loss.align_weight * s.student.ifalign for s in studies]
        return Knobs(
            per_arm([s.loss.temperature for s in studies], device),
            per_arm([s.loss.kd_weight for s in studies], device),
            per_arm(align, device),
            any(s.student.ifalign for s in studies),
        )


def batch_order(images: Images, seed: int, epoch: int) -> Images:
    """The training images in the order of one epoch of one seed."""
    order = torch.randperm(len(images), generator=generator(seed, f"order/{epoch}"))
    return images[order.numpy()]


class Cohort:
    """A arms of one structure (same student shape, batch size and epochs) on shared material."""

    def __init__(self, arms: Sequence[Arm], material: Material) -> None:
        self.arms = list(arms)
        self.material = material
        self.device = material.text.device
        self.student = StudentCohort([arm.study for arm in arms], material.student, material.text)
        self.optimizer = SGD(
            self.student.tensors,
            per_arm([arm.study.train.momentum for arm in arms], self.device),
            per_arm([arm.study.train.weight_decay for arm in arms], self.device),
            self.student.in_float16,
        )
        self.history: dict[str, list[Row]] = {arm.arm: [] for arm in arms}
        self.best: dict[str, dict[str, Tensor]] = {}
        """State of each arm at its best epoch by the objective."""
        self.tested: dict[str, float] = {}
        """Seconds that each arm's look at the test images took."""
        photographs = material.photographs
        self.train_images = photographs.part(TRAIN)
        self.groups = photographs.groups
        self.selects_on_test = self.arms[0].study.selection == "promptkd"

    # -- training ------------------------------------------------------------------------------

    def train_epoch(self, epoch: int, meter: Meter) -> dict[str, Tensor]:
        """One pass over the training images; the mean over steps of each loss term, `[A]`."""
        if not self.arms:
            return {}
        studies = [arm.study for arm in self.arms]
        train = studies[0].train
        seeds = sorted({study.train.seed for study in studies})
        place = torch.tensor([seeds.index(study.train.seed) for study in studies], device=self.device)
        orders = np.stack([batch_order(self.train_images, seed, epoch) for seed in seeds])
        steps = orders.shape[1] // train.batch_size  # the remainder is dropped (PAPER 5.18)
        rates = [learning_rate(epoch, train.epochs, s.train.lr, s.train.warmup_lr) for s in studies]
        lr, knobs = per_arm(rates, self.device), Knobs.of(studies, self.device)
        sums: dict[str, Tensor] = {}
        size = train.batch_size
        self._expect(orders[:, k : k + size].ravel() for k in range(0, steps * size, size))
        for step in range(steps):
            batch = orders[:, step * size : (step + 1) * size]
            terms = self.losses(batch, epoch, place, knobs)
            terms["loss"].sum().backward()  # type: ignore[no-untyped-call]
            self.optimizer.step(lr)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach()
            meter((epoch - 1) * steps + step + 1, train.epochs * steps)
        means = {name: value / steps for name, value in sums.items()}
        means["loss"] = means["loss"].where(self._sound(), torch.nan)
        return means

    def _sound(self) -> Tensor:
        """Whether all parameters of an arm are finite, `[A]`: the last step may have broken them."""
        checks = [t.detach().flatten(1).isfinite().all(1) for t in self.student.tensors.values()]
        return torch.stack(checks).all(0)

    def losses(self, batch: Images, epoch: int, place: Tensor, knobs: Knobs) -> dict[str, Tensor]:
        """Loss terms `[A]` on image indices `[S, B]`; `place` `[A]` says which of S an arm takes."""
        slot = (epoch - 1) % self.material.train_bank.views
        self.student.train()
        with autocast(self.device, self.student.precision):
            raw = self.student.project(self.student.encode(_spread(self._train_inputs(batch, slot), place)))
        raw = raw.float()
        image = normalize(raw)
        taught = self.material.train_bank.take(slot, batch.ravel(), self.device).unflatten(0, batch.shape)
        teacher = normalize(taught)
        teacher_logits = self.student.rounded(
            self.material.card.teacher_scale * teacher @ self.material.text.T
        )
        kd = kd_loss(self.student.logits(image), _spread(teacher_logits, place), knobs.temperature)
        terms = {"loss": knobs.kd_weight * kd, "loss_kd": kd}
        if knobs.any_align:
            config = self.student.config
            pair = (image, teacher) if config.align_features == "normalized" else (raw, taught)
            align = align_loss(pair[0], _spread(pair[1], place), config.align_axis, config.align_reduction)
            terms["loss_align"] = align
            terms["loss"] = terms["loss"] + knobs.align_weight * align
        return terms

    def _train_inputs(self, batch: Images, slot: int) -> Tensor:
        """What the student's tower starts from, `[S, B, ...]`: tokens, or features never to change."""
        banks = self.material.student_banks
        if banks is not None and "visual" not in self.student.tensors:
            return banks[0].take(slot, batch.ravel(), self.device).unflatten(0, batch.shape)
        return self._embed(batch.ravel(), slot + 1).unflatten(0, batch.shape)

    def _expect(self, batches: Iterable[Images]) -> None:
        """Images whose pixels are needed next: a stream decodes them meanwhile."""
        if self.material.student_banks is None or "visual" in self.student.tensors:
            self.material.photographs.store.expect(batches)

    def _embed(self, images: Images, view: int) -> Tensor:
        clip = self.material.student
        pixels = pixels_of(self.material.photographs.store, images, view, clip.image_size, self.device)
        return embed_images(clip, clip.prepare(pixels))

    # -- evaluation ----------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> list[Row]:
        """Scores of every arm that the search may see, and the one of them that it does see.

        Test images are not looked at, but where the selection does that.
        """
        if not self.arms:
            return []
        photographs = self.material.photographs
        images = photographs.evaluated if self.selects_on_test else photographs.part(VAL)
        labels, parts = (torch.from_numpy(a[images]) for a in (photographs.labels, photographs.table.parts))
        predicted, taught = self._predict(self.student, images, labels), self._teacher_says(images, labels)
        val = parts == VAL
        truth = accuracies(predicted[:, val], labels[val], labels[val], self.groups)
        agreement = accuracies(predicted[:, val], taught[val], labels[val], self.groups)
        tested = accuracies(predicted[:, ~val], labels[~val], labels[~val], self.groups)
        study = self.arms[0].study
        return [seen_scores(study, *of_arm) for of_arm in zip(truth, agreement, tested, strict=True)]

    @torch.no_grad()
    def test(self, names: Collection[str]) -> None:
        """Look at the test images once, with each arm's student of its best epoch; its row has the scores."""
        arms = [arm for arm in self.arms if arm.arm in names and arm.arm in self.best]
        if not arms or self.selects_on_test:
            return
        start, images = time.perf_counter(), self.material.photographs.part(TEST)
        student = StudentCohort([arm.study for arm in arms], self.material.student, self.material.text)
        for index, arm in enumerate(arms):
            student.load_state(index, self.best[arm.arm])
        labels = torch.from_numpy(self.material.photographs.labels[images])
        tested = accuracies(self._predict(student, images, labels), labels, labels, self.groups)
        for arm, shares in zip(arms, tested, strict=True):
            best = best_row(self.history[arm.arm])
            assert best is not None
            best |= test_scores(arm.study, shares)
        spent = (time.perf_counter() - start) / len(arms)
        self.tested |= {arm.arm: spent for arm in arms}

    def _predict(self, student: StudentCohort, images: Images, labels: Tensor) -> Tensor:
        """Predicted classes `[A, M]` of a student's arms, each image within its group."""
        student.eval()
        chosen = []
        self._expect(images[k : k + EVAL_BATCH] for k in range(0, len(images), EVAL_BATCH))
        for first in range(0, len(images), EVAL_BATCH):
            part = slice(first, first + EVAL_BATCH)
            with autocast(self.device, student.precision):
                raw = student.project(student.encode(self._eval_inputs(images[part])))
            logits = student.group_logits(normalize(raw.float()), self.groups)
            chosen.append(predict(logits, labels[part], self.groups))
        return torch.cat(chosen, dim=1).cpu()  # the only wait of an evaluation

    def _eval_inputs(self, images: Images) -> Tensor:
        banks = self.material.student_banks
        if banks is not None and "visual" not in self.student.tensors:
            return banks[1].take(0, images, self.device)[None]
        return self._embed(images, CENTER)[None]

    def _teacher_says(self, images: Images, labels: Tensor) -> Tensor:
        """The teacher's own predictions `[M]`."""
        features = normalize(self.material.val_bank.take(0, images, self.device))
        logits = features @ self.material.text.T
        return predict(logits[None], labels, self.groups)[0].cpu()

    # -- rows and leaving ----------------------------------------------------------------------

    def epoch_rows(self, epoch: int, means: dict[str, Tensor], scores: list[Row]) -> list[Row]:
        """Rows of `epochs`; the loss is None where it is not finite, and so the arm has failed."""
        terms = {name: value.tolist() for name, value in means.items()}
        alphas = self.student.tensors["alpha"].detach().abs().mean(1).tolist()
        rows = []
        for index, (arm, score) in enumerate(zip(self.arms, scores, strict=True)):
            study = arm.study
            row: Row = {"arm": arm.arm, "epoch": epoch}
            row["lr"] = learning_rate(epoch, study.train.epochs, study.train.lr, study.train.warmup_lr)
            row |= {name: _finite(value[index]) for name, value in terms.items()}
            if not study.student.ifalign:
                row["loss_align"] = None
            row["alpha"] = _finite(alphas[index]) if study.student.edu_attention else 0.0
            rows.append(row | score)
        return rows

    def charge(self, rows: list[Row], seconds: float) -> None:
        """Share the wall time of an epoch among the arms that ran it; keep their rows and best states."""
        for index, row in enumerate(rows):
            row["seconds"] = seconds / len(rows)
            earlier = [one[OBJECTIVE] for one in self.history[row["arm"]]]
            if row["loss"] is not None and row[OBJECTIVE] > max(earlier, default=-1.0):
                self.best[row["arm"]] = self.student.state(index)
            self.history[row["arm"]].append(row)

    def weaker(self, values: dict[str, float], enough: float) -> list[str]:
        """Arms below the value that is enough to stay, those that may not leave excepted."""
        protected = {arm.arm for arm in self.arms if arm.protected}
        return [arm for arm, value in values.items() if value < enough and arm not in protected]

    def record(self, name: str, status: str) -> tuple[Row, list[Row]]:
        """The arm's row of `arms` at its best epoch by the objective, and its rows of `epochs`."""
        arm = next(one for one in self.arms if one.arm == name)
        rows, clip, card = self.history[name], self.material.student, self.material.card
        best = best_row(rows)
        trainable = trainable_parameters(arm.study, clip, self.material.text.shape[1])
        steps = len(self.train_images) // arm.study.train.batch_size
        spared = len(rows) * steps * arm.study.train.batch_size
        reached = {key: value for key, value in (best or {}).items() if key.startswith(SCORE_PREFIXES)}
        row: Row = {
            "arm": name,
            "protocol": arm.study.protocol,
            "selection": arm.study.selection,
            "status": status,
            "error": f"loss is not finite in epoch {len(rows)}" if status == "failed" else None,
            "seed": arm.study.train.seed,
            "epochs_done": len(rows),
            "best_epoch": best["epoch"] if best else None,
            **reached,
            **card.references,
            "seconds": sum(row["seconds"] for row in rows) + self.tested.get(name, 0.0),
            "teacher_seconds_saved": spared * self.material.train_bank.seconds_per_image,
            "trainable_parameters": trainable,
            "total_parameters": clip.image_parameters + trainable,
            "teacher_parameters": card.teacher_parameters,
        }
        return row, rows

    def leave(self, arms: dict[str, str] | Sequence[str]) -> None:
        """Take arms out of the batch; their compute is saved from the next step on."""
        if not arms:
            return
        stay = [index for index, arm in enumerate(self.arms) if arm.arm not in arms]
        self.arms = [self.arms[index] for index in stay]
        index = torch.tensor(stay, dtype=torch.long, device=self.device)
        self.student.keep(index)
        self.optimizer.keep(self.student.tensors, index)


def best_row(rows: Sequence[Row]) -> Row | None:
    """The epoch that is kept: the highest objective, the first of equals, of those with a finite loss."""
    sound = [row for row in rows if row["loss"] is not None]
    return max(sound, key=lambda row: (row[OBJECTIVE], -row["epoch"]), default=None)


def seen_scores(study: Study, truth: Shares, agreement: Shares, tested: Shares = ()) -> Row:
    """What the search may see of one arm, and its `objective`.

    Shares of the groups right and as the teacher on validation images, and right on test images. A strict
    selection sees the labels that its protocol grants, and no test image.
    """
    protocol = protocol_of(study)
    labelled = {"base": 1, "all": len(truth), "none": 0}[protocol.labels]
    seen = scores((*truth[:labelled], *agreement[labelled:]))
    row: Row = {name: _finite(value) for name, value in zip(protocol.validation, seen, strict=True)}
    if study.selection == "promptkd":
        row |= test_scores(study, tested)
    return {OBJECTIVE: row[objective_of(study)]} | row


def _spread(shared: Tensor, place: Tensor) -> Tensor:
    """`[S, B, ...]` to `[A, B, ...]`, or to `[1, B, ...]` where all arms share one."""
    return shared if shared.shape[0] == 1 else shared[place]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
