"""Stage I: the prompted teacher, tuned on a few labelled base images (PAPER 1.9, 2.7-2.9, 3.14).

PromptSRC's loss on open_clip's tower; a convolutional teacher learns text prompts only, and then
from the bank, as its image features never change. Stored once under the hash of what it depends on:

    $COMKD_CACHE/teachers/<key>/teacher.safetensors    visual, text, text_features
    $COMKD_CACHE/teachers/<key>/card.json              accuracies, epoch, configuration
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from comkd_ray.config import Teacher
from comkd_ray.errors import UserError
from comkd_ray.losses import normalize, per_arm, teacher_losses
from comkd_ray.material import TunedTeacher, read_teacher
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

WARMUP_LR = 1e-5  # first epoch (PAPER 3.4)

Encoder = Callable[[NDArray[np.int64], int, Tensor | None], Tensor]
"""(images, view, visual prompts [1, depth, L, W] or None) -> features [len(images), D]."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FewShots:
    """What the teacher may see: labelled base images, and the base part of validation."""

    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    val_images: NDArray[np.int64]
    val_labels: NDArray[np.int64]
    classes: tuple[str, ...]
    base: int
    views: int


def encode_prompted(clip: Clip, pixels: Tensor, visual: Tensor | None) -> Tensor:
    """Features `[B, D]` of pixels in 0..1 under visual prompts `[1, depth, L, W]`, or without."""
    images = clip.prepare(pixels)
    with autocast(clip.device):
        if visual is None:
            with torch.no_grad():
                return clip.visual(images).float()  # type: ignore[no-any-return]
        return encode_embedded(clip, embed_images(clip, images)[None], visual)[0].float()


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
    tensors = {"text_features": teacher.text_features, "visual": teacher.visual}
    save_file(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items() if t is not None},
        unfinished / "teacher.safetensors",
    )
    (unfinished / "card.json").write_text(json.dumps(teacher.card, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def fit_teacher(
    key: str,
    config: Teacher,
    clip: Clip,
    shots: FewShots,
    templates: tuple[str, ...],
    encode: Encoder,
    progress: Progress,
) -> TunedTeacher:
    """Tune the prompts; the epoch with the best accuracy on base validation images is kept.

    With `epochs: 0`, the zero-shot teacher: template-averaged text features, no prompts.
    """
    frozen_text = clip.encode_classes(shots.classes, templates)
    if config.epochs == 0:
        return TunedTeacher(key, None, frozen_text, {"epoch": 0, "val_base_accuracy": None})
    prompt = text_prompt(
        clip, shots.classes, config.context, config.text_prompt_length, config.text_prompt_depth, config.seed
    )
    parameters = {"text": prompt.initial[None].clone().requires_grad_()}
    if clip.is_vit and config.prompt_length > 0:
        tokens = visual_tokens(clip, config.prompt_length, config.prompt_depth, config.seed)
        parameters["visual"] = tokens[None].to(clip.device).requires_grad_()
    optimizer = SGD(
        parameters,
        per_arm([config.momentum], clip.device),
        per_arm([config.weight_decay], clip.device),
    )
    best: tuple[float, int, dict[str, Tensor]] = (-1.0, 0, {})
    for epoch in range(1, config.epochs + 1):
        rate = learning_rate(epoch, config.epochs, config.lr, WARMUP_LR)
        view = 1 + (epoch - 1) % shots.views
        for batch in _batches(shots, config, epoch):
            loss = _loss(config, clip, shots, batch, view, parameters, prompt.tokens, frozen_text, encode)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step(per_arm([rate], clip.device))
        accuracy = _val_accuracy(clip, shots, parameters, prompt.tokens, encode)
        if accuracy > best[0]:
            best = (accuracy, epoch, {name: t.detach().clone() for name, t in parameters.items()})
        progress("teacher", epoch, config.epochs)
    if best[1] == 0:
        raise UserError("teacher: its features are not finite in any epoch; lower teacher.lr or its weights")
    return _finish(key, config, clip, best, prompt.tokens)


def _finish(
    key: str, config: Teacher, clip: Clip, best: tuple[float, int, dict[str, Tensor]], tokens: Tensor
) -> TunedTeacher:
    accuracy, epoch, parameters = best
    with torch.no_grad():
        text = normalize(encode_text_prompted(clip, tokens, parameters["text"][0]).float())
    visual = parameters.get("visual")
    card = {"epoch": epoch, "val_base_accuracy": accuracy, "seed": config.seed, "config": config.model_dump()}
    return TunedTeacher(key, None if visual is None else visual[0], text, card)


def _batches(shots: FewShots, config: Teacher, epoch: int) -> list[NDArray[np.int64]]:
    """Positions into `shots.images`, shuffled; the remainder is dropped (PAPER 5.18)."""
    count = len(shots.images)
    size = min(config.batch_size, count)
    order = torch.randperm(count, generator=generator(config.seed, f"teacher order/{epoch}")).numpy()
    return [order[k : k + size] for k in range(0, count - size + 1, size)]


def _loss(
    config: Teacher,
    clip: Clip,
    shots: FewShots,
    batch: NDArray[np.int64],
    view: int,
    parameters: dict[str, Tensor],
    tokens: Tensor,
    frozen_text: Tensor,
    encode: Encoder,
) -> Tensor:
    images = shots.images[batch]
    frozen = normalize(encode(images, view, None))
    visual = parameters.get("visual")
    image = frozen if visual is None else normalize(encode(images, view, visual))
    text = normalize(encode_text_prompted(clip, tokens[: shots.base], parameters["text"][0]).float())
    labels = torch.from_numpy(shots.labels[batch]).to(clip.device)
    terms = teacher_losses(image, text, labels, frozen, frozen_text[: shots.base], clip.logit_scale)
    return (
        terms["cross_entropy"]
        + config.text_l1_weight * terms["text_l1"]
        + config.image_l1_weight * terms["image_l1"]
        + config.logit_kl_weight * terms["logit_kl"]
    )


@torch.no_grad()
def _val_accuracy(
    clip: Clip, shots: FewShots, parameters: dict[str, Tensor], tokens: Tensor, encode: Encoder
) -> float:
    """Percent of base validation images that the prompted teacher names rightly; -1 if it diverged."""
    text = normalize(encode_text_prompted(clip, tokens[: shots.base], parameters["text"][0]).float())
    image = torch.cat(
        [
            normalize(encode(shots.val_images[k : k + 64], 0, parameters.get("visual")))
            for k in range(0, len(shots.val_images), 64)
        ]
    )
    if not bool(text.isfinite().all() and image.isfinite().all()):
        return -1.0
    labels = torch.from_numpy(shots.val_labels).to(clip.device)
    return 100 * float(((image @ text.T).argmax(-1) == labels).double().mean())
