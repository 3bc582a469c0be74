"""Stage I: the prompted teacher, tuned on a few labelled images (PAPER 1.9, 2.7-2.9, 3.14, 3.15).

PromptSRC's loss on open_clip's towers; a convolutional teacher learns text prompts only. What is
kept are the prompts, which serve any class names. Stored once, under the hash of what they hang on:

    $COMKD_CACHE/teachers/<key>/teacher.safetensors      visual, text
    $COMKD_CACHE/teachers/<key>/card.json                how it was made, its accuracies
    $COMKD_CACHE/teachers/<key>/text-<hash>.safetensors  its text features of one list of classes

Shapes: B images, C classes, L prompt tokens, W width of a tower, D joint width.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from safetensors.torch import save, save_file
from torch import Tensor

from comkd_ray.config import Teacher
from comkd_ray.errors import UserError
from comkd_ray.losses import normalize, per_arm, teacher_losses
from comkd_ray.material import TunedTeacher, read_teacher, read_text, text_path
from comkd_ray.models import Clip, autocast
from comkd_ray.optim import SGD, learning_rate
from comkd_ray.prompts import (
    embed_images,
    encode_embedded,
    encode_text_prompted,
    generator,
    text_prompt,
    visual_tokens,
)
from comkd_ray.results import write_atomic
from comkd_ray.study_file import digest

WARMUP_LR = 1e-5  # first epoch (PAPER 3.4)
TOGETHER = 64  # images or classes encoded at once where nothing is learned

Prompts = dict[str, Tensor]
"""Learnable tensors with a leading 1: `text`, and `visual` where the image tower learns too."""
Encoder = Callable[[NDArray[np.int64], int, Tensor | None], Tensor]
"""(images, view, visual prompts [1, depth, L, W] or None) -> features [len(images), D]."""
Expect = Callable[[Iterable[NDArray[np.int64]]], None]
"""Is told which images the encoder is asked for next, in this order."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FewShots:
    """What the teacher may see: labelled images, and validation images, of the classes it learns."""

    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    val_images: NDArray[np.int64]
    """Empty where the data set has no validation part."""
    val_labels: NDArray[np.int64]
    classes: tuple[str, ...]
    """Names of the classes it learns; a label is a position here."""
    views: int


def _silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""


def encode_prompted(clip: Clip, pixels: Tensor, visual: Tensor | None) -> Tensor:
    """Features `[B, D]` of pixels in 0..1 under visual prompts `[1, depth, L, W]`, or without."""
    images = clip.prepare(pixels)
    with autocast(clip.device):
        if visual is None:
            with torch.no_grad():
                return clip.visual(images).float()  # type: ignore[no-any-return]
        return encode_embedded(clip, embed_images(clip, images)[None], visual)[0].float()


def imagenet_templates() -> tuple[str, ...]:
    """open_clip's 80 ImageNet templates as format strings; PromptSRC averages 60 (PAPER 2.9)."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


# Kept on disk -----------------------------------------------------------------------------------


def build_teacher(
    key: str, fit: Callable[[], TunedTeacher], cache: Path, device: torch.device
) -> TunedTeacher:
    """The stored teacher of `key`; if it is not there, `fit` makes it and it is stored for good."""
    folder = cache / "teachers" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        try:
            return read_teacher(cache, key, device)
        except UserError:  # missing or damaged
            _store(fit(), folder)
    return read_teacher(cache, key, device)


def _store(teacher: TunedTeacher, folder: Path) -> None:
    unfinished = folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    tensors = {"text": teacher.text, "visual": teacher.visual}
    save_file(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items() if t is not None},
        unfinished / "teacher.safetensors",
    )
    (unfinished / "card.json").write_text(json.dumps(teacher.card, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def build_text(
    clip: Clip, tuned: TunedTeacher, classes: tuple[str, ...], cache: Path, progress: Progress = _silent
) -> tuple[str, Tensor]:
    """Name and content of a stored teacher's text features of `classes`; encoded if not there yet."""
    name = digest(*classes)
    try:
        return name, read_text(cache, tuned.key, name, clip.device)
    except UserError:
        features = class_features(clip, tuned, classes, progress)
        stored = save({"features": features.cpu().contiguous()})
        write_atomic(text_path(cache, tuned.key, name), stored)
        return name, features


@torch.no_grad()
def class_features(
    clip: Clip, tuned: TunedTeacher, classes: tuple[str, ...], progress: Progress = _silent
) -> Tensor:
    """Unit text features `[C, D]` of any class names under the learned prompts (PAPER 1.20, 5.3).

    So a teacher of one data set speaks about another (PAPER 5.13). A zero-shot teacher averages
    templates.
    """
    if tuned.text is None:
        return _zero_shot(clip, classes, progress)
    depth, length, _ = tuned.text.shape
    prompt = text_prompt(clip, classes, tuned.card["config"]["context"], length, depth, seed=0)
    rows: list[Tensor] = []
    for tokens in prompt.tokens.split(TOGETHER):
        rows.append(encode_text_prompted(clip, tokens, tuned.text))
        progress("text", sum(map(len, rows)), len(classes))
    return normalize(torch.cat(rows).float())


def _zero_shot(clip: Clip, classes: tuple[str, ...], progress: Progress) -> Tensor:
    """Unit text features `[C, D]` without prompts, averaged over templates (PAPER 2.9)."""
    templates = imagenet_templates()
    rows: list[Tensor] = []
    for name in classes:
        rows.append(clip.encode_classes((name,), templates))
        progress("text", len(rows), len(classes))
    return torch.cat(rows)


# Learned ----------------------------------------------------------------------------------------


def average_weights(epochs: int, mean: float, std: float) -> list[float]:
    """Weight of each of epochs 1 to `epochs`: a Gaussian pdf, scaled to sum 1 (PAPER 2.9, 3.15).

    A std near 0 leaves the epoch nearest to the mean.
    """
    squares = [(epoch - mean) ** 2 for epoch in range(1, epochs + 1)]
    nearest = min(squares)  # measured from there, the largest weight is 1: a small std leaves no 0 / 0
    weights = [math.exp(-(square - nearest) / 2 / std / std) for square in squares]
    return [weight / sum(weights) for weight in weights]


def fit_teacher(
    key: str,
    config: Teacher,
    clip: Clip,
    shots: FewShots,
    encode: Encoder,
    progress: Progress,
    expect: Expect = lambda batches: None,
) -> TunedTeacher:
    """Tune the prompts; `teacher.keep` says which become final. UserError where they diverge.

    With `epochs: 0`, the zero-shot teacher: template-averaged text features, no prompts. The card
    holds `epoch` (None where epochs are averaged), `val_accuracy` in percent and `config`.
    """
    if config.epochs == 0:
        zero_shot = _zero_shot(clip, shots.classes, progress)
        return TunedTeacher(key, None, None, _facts(config, 0, _accuracy(zero_shot, None, shots, encode)))
    lesson = _lesson(config, clip, shots, encode, progress)
    prompts = lesson.initial()
    optimizer = SGD(
        prompts, per_arm([config.momentum], clip.device), per_arm([config.weight_decay], clip.device)
    )
    kept = _Kept(config)
    for epoch in range(1, config.epochs + 1):
        rate = per_arm([learning_rate(epoch, config.epochs, config.lr, WARMUP_LR)], clip.device)
        view = 1 + (epoch - 1) % shots.views
        batches = _batches(shots, config, epoch)
        expect(shots.images[batch] for batch in batches)
        for step, batch in enumerate(batches, 1):
            lesson.loss(batch, view, prompts).backward()
            optimizer.step(rate)
            progress("teacher", (epoch - 1) * len(batches) + step, config.epochs * len(batches))
        kept.add(epoch, prompts, lesson.accuracy)
    final = {name: tensor[0] for name, tensor in kept.prompts.items()}
    accuracy = lesson.accuracy(kept.prompts) if kept.prompts else math.nan
    if accuracy is not None and math.isnan(accuracy):
        raise UserError("teacher: its features are not finite; lower teacher.lr or its weights")
    return TunedTeacher(key, final.get("visual"), final["text"], _facts(config, kept.epoch, accuracy))


def _facts(config: Teacher, epoch: int | None, accuracy: float | None) -> dict[str, Any]:
    return {"epoch": epoch, "val_accuracy": accuracy, "config": config.model_dump()}


class _Kept:
    """The final prompts, gathered from epoch to epoch as `teacher.keep` says."""

    def __init__(self, config: Teacher) -> None:
        self.config, self.best = config, -math.inf
        self.epoch: int | None = None
        self.prompts: Prompts = {}

    def add(self, epoch: int, prompts: Prompts, accuracy: Callable[[Prompts], float | None]) -> None:
        """One epoch is over. Accuracies are asked for only where they choose; NaN is never best."""
        now = {name: tensor.detach().clone() for name, tensor in prompts.items()}
        if self.config.keep == "average":
            mean, std = self.config.average_mean, self.config.average_std
            weight = average_weights(self.config.epochs, mean, std)[epoch - 1]
            if weight > 0:
                self.prompts = {name: self.prompts.get(name, 0) + weight * now[name] for name in now}
        elif self.config.keep == "last":
            self.prompts, self.epoch = now, epoch
        elif (value := accuracy(now)) is not None and value > self.best:  # the first of the best
            self.prompts, self.epoch, self.best = now, epoch, value


def _lesson(config: Teacher, clip: Clip, shots: FewShots, encode: Encoder, progress: Progress) -> _Lesson:
    weights = {
        "text_l1": config.text_l1_weight,
        "image_l1": config.image_l1_weight,
        "logit_kl": config.logit_kl_weight,
    }
    needs_text = weights["text_l1"] > 0 or weights["logit_kl"] > 0
    frozen = _zero_shot(clip, shots.classes, progress) if needs_text else None
    length, depth = config.text_prompt_length, config.text_prompt_depth
    prompt = text_prompt(clip, shots.classes, config.context, length, depth, config.seed)
    return _Lesson(config, clip, shots, encode, weights, frozen, prompt.tokens, prompt.initial)


@dataclass(frozen=True)
class _Lesson:
    """What stays the same through all steps of stage I."""

    config: Teacher
    clip: Clip
    shots: FewShots
    encode: Encoder
    weights: dict[str, float]
    frozen_text: Tensor | None
    tokens: Tensor
    context: Tensor

    def initial(self) -> Prompts:
        """Learnable prompts as they begin (PAPER 2.7)."""
        config, clip = self.config, self.clip
        prompts = {"text": self.context[None].clone().requires_grad_()}
        if clip.is_vit and config.prompt_length > 0:
            tokens = visual_tokens(clip, config.prompt_length, config.prompt_depth, config.seed)
            prompts["visual"] = tokens[None].to(clip.device).requires_grad_()
        return prompts

    def text(self, prompts: Prompts) -> Tensor:
        """Prompted unit text features `[C, D]`."""
        return normalize(encode_text_prompted(self.clip, self.tokens, prompts["text"][0]).float())

    def loss(self, batch: NDArray[np.int64], view: int, prompts: Prompts) -> Tensor:
        """Loss of the few-shot images at positions `batch`."""
        images, visual = self.shots.images[batch], prompts.get("visual")
        regularised = self.weights["image_l1"] > 0 or self.weights["logit_kl"] > 0
        frozen = normalize(self.encode(images, view, None)) if regularised or visual is None else None
        image = frozen if visual is None else normalize(self.encode(images, view, visual))
        assert image is not None
        labels = torch.from_numpy(self.shots.labels[batch]).to(self.clip.device, non_blocking=True)
        scale, weights = self.clip.logit_scale, self.weights
        terms = teacher_losses(image, self.text(prompts), labels, scale, weights, frozen, self.frozen_text)
        return torch.stack(list(terms.values())).sum()

    @torch.no_grad()
    def accuracy(self, prompts: Prompts) -> float | None:
        """Percent of validation images named rightly; NaN for prompts that diverged."""
        return _accuracy(self.text(prompts), prompts.get("visual"), self.shots, self.encode)


@torch.no_grad()
def _accuracy(text: Tensor, visual: Tensor | None, shots: FewShots, encode: Encoder) -> float | None:
    """Percent of validation images whose nearest text is their class's; None where there are none."""
    if not bool(text.isfinite().all()):
        return math.nan
    hits = torch.zeros((), dtype=torch.float64, device=text.device)
    sound = torch.ones((), dtype=torch.bool, device=text.device)
    for start in range(0, len(shots.val_images), TOGETHER):
        image = normalize(encode(shots.val_images[start : start + TOGETHER], 0, visual))
        labels = torch.from_numpy(shots.val_labels[start : start + TOGETHER])
        labels = labels.to(image.device, non_blocking=True)
        hits += ((image @ text.T).argmax(-1) == labels).double().sum()
        sound &= image.isfinite().all()
    if not len(shots.val_images):
        return None
    return 100 * float(hits) / len(shots.val_images) if bool(sound) else math.nan


def _batches(shots: FewShots, config: Teacher, epoch: int) -> list[NDArray[np.int64]]:
    """Positions into `shots.images`, shuffled; the remainder is dropped (PAPER 5.18)."""
    count = len(shots.images)
    size = min(config.batch_size, count)
    order = torch.randperm(count, generator=generator(config.seed, f"teacher order/{epoch}")).numpy()
    return [order[k : k + size] for k in range(0, count - size + 1, size)]
