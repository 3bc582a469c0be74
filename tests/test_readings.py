"""Every reading of the method, written out one number at a time, against the cohort that trains it.

The readings are those of `search_spaces/readings.yaml`, each alone, and all together. Tower and
projector are held by their own tests; from the projector's output on, everything here is plain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from comkd_ray import study_file
from comkd_ray.bank import pixels_of
from comkd_ray.cohort import Arm, Cohort, Knobs
from comkd_ray.config import Study
from comkd_ray.data.datasets import TEST, VAL
from comkd_ray.material import Card, Material
from comkd_ray.prompts import embed_images, encode_embedded

pytestmark = pytest.mark.usefixtures("cpu")

Overrides = dict[str, Any]
MakeStudy = Callable[..., Study]
Prepared = Callable[[Study], tuple[Card, Material]]
MakeCohort = Callable[[Overrides], Cohort]

BASE = 2  # of four classes
ROUNDING = 3e-3  # of two biases whose gradient is 0 on paper: before the batch norm, and of the keys
KNOBS: Overrides = {"loss.kd_weight": 3.0, "loss.align_weight": 20.0, "loss.temperature": 2.0}
READINGS: list[Overrides] = [
    dict(point) for point in study_file.load(study_file.search_spaces() / "readings.yaml").search.first
]
TOGETHER = {key: value for reading in READINGS[:-1] for key, value in reading.items()}


@pytest.fixture
def cohort(prepared: Prepared, make_study: MakeStudy) -> MakeCohort:
    """cohort({...}) -> a cohort of one arm whose alpha is not 0, so that its attention counts."""
    material = prepared(make_study())[1]
    words = torch.randn(material.text.shape, generator=torch.Generator().manual_seed(1))
    material = replace(material, text=F.normalize(words, dim=-1))  # a random teacher's are all alike

    def make(overrides: Overrides) -> Cohort:
        one = Cohort([Arm("one", make_study(KNOBS | overrides))], material)
        alpha = one.student.tensors["alpha"]
        with torch.no_grad():
            alpha.copy_(torch.linspace(0.3, 0.5, alpha.numel()))
        return one

    return make


# The method in plain numbers --------------------------------------------------------------------


def unit(vector: Tensor) -> Tensor:
    return vector / vector.square().sum().sqrt()


def layer(vector: Tensor, own: dict[str, Tensor], name: str) -> Tensor:
    """A fully connected layer on one vector, one output at a time."""
    weight, bias = own[f"{name}.weight"], own[f"{name}.bias"]
    return torch.stack([(row * vector).sum() + b for row, b in zip(weight, bias, strict=True)])


def fused(study: Study, own: dict[str, Tensor], image: Tensor, texts: Tensor) -> Tensor:
    """f_e of one image: PAPER 1.5 and 1.6 with the readings of 1.13 to 1.18."""
    config = study.student
    if not config.edu_attention:
        return image
    shared = config.attention_layers == "shared"
    names = ["attention.shared"] * 3 if shared else [f"attention.{n}" for n in ("query", "key", "value")]
    scale = len(image) ** 0.5 if config.attention_scale == "sqrt_width" else config.attention_scale
    query = layer(image, own, names[0])
    scores = [(query * layer(text, own, names[1])).sum() / scale for text in texts]
    largest = max(score.item() for score in scores)
    total = sum(torch.exp(score - largest) for score in scores)
    attended = torch.zeros_like(image)
    for score, text in zip(scores, texts, strict=True):
        attended = attended + torch.exp(score - largest) / total * layer(text, own, names[2])
    alpha = own["alpha"] if config.alpha == "vector" else own["alpha"][0]
    both = alpha * attended + image
    return unit(both) if config.renormalize else both


def moments(rows: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Mean and biased variance of each row (PAPER 1.3)."""
    means = [row.sum() / len(row) for row in rows]
    variances = [((row - mean) ** 2).sum() / len(row) for row, mean in zip(rows, means, strict=True)]
    return means, variances


def ifalign(study: Study, student: Tensor, teacher: Tensor) -> Tensor:
    """PAPER 1.4 with the readings of 1.10 and 1.11 on features `[B, D]`."""
    config = study.student
    over_batch = config.align_axis == "batch"
    rows = [list(u.T) if over_batch else list(u) for u in (student, teacher)]
    (student_mean, student_var), (teacher_mean, teacher_var) = (moments(each) for each in rows)
    distances = [
        (sm - tm).abs() + (sv - tv).abs()
        for sm, tm, sv, tv in zip(student_mean, teacher_mean, student_var, teacher_var, strict=True)
    ]
    total = torch.stack(distances).sum()
    return total if over_batch and config.align_reduction == "sum" else total / len(distances)


def distilled(student: list[Tensor], teacher: list[Tensor], temperature: float) -> Tensor:
    """T^2 * KL(teacher || student), mean over images (PAPER 1.2), one class at a time."""
    total = torch.zeros(())
    for ours, theirs in zip(student, teacher, strict=True):
        q, p = ours / temperature, theirs / temperature
        log_q, log_p = q - torch.logsumexp(q, 0), p - torch.logsumexp(p, 0)
        for c in range(len(p)):
            total = total + torch.exp(log_p[c]) * (log_p[c] - log_q[c])
    return temperature**2 * total / len(student)


def projected(own: dict[str, Tensor], features: Tensor, running: dict[str, Tensor] | None) -> Tensor:
    """The projector of PAPER 2.4 on tower features `[B, D_s]`; without statistics, those of the batch."""
    x = F.linear(features, own["projector.0.weight"], own["projector.0.bias"])
    mean, var = (None, None) if running is None else (running["0.mean"][0], running["0.var"][0])
    scale, shift = own["projector.0.bn_weight"], own["projector.0.bn_bias"]
    x = F.batch_norm(x, mean, var, scale, shift, training=running is None).relu()
    return F.linear(x, own["projector.1.weight"], own["projector.1.bias"])


def plain_loss(one: Cohort, own: dict[str, Tensor], batch: np.ndarray[Any, Any]) -> Tensor:
    """E9 of one arm: its KD term and its alignment, with their weights."""
    material, study = one.material, one.arms[0].study
    clip, text = material.student, material.text
    pixels = pixels_of(material.photographs.store, batch, 1, clip.image_size, one.device)
    tokens = embed_images(clip, clip.prepare(pixels))[None]
    raw = projected(own, encode_embedded(clip, tokens, own["visual"][None])[0], None)
    image = torch.stack([unit(row) for row in raw])
    taught_raw = material.train_bank.take(0, batch, one.device)
    taught = torch.stack([unit(row) for row in taught_raw])
    student_logits = [
        torch.stack([clip.logit_scale * (fused(study, own, u, text) * w).sum() for w in text]) for u in image
    ]
    teacher_logits = [
        torch.stack([material.card.teacher_scale * (u * w).sum() for w in text]) for u in taught
    ]
    loss = study.loss.kd_weight * distilled(student_logits, teacher_logits, study.loss.temperature)
    if study.student.ifalign:
        pair = (image, taught) if study.student.align_features == "normalized" else (raw, taught_raw)
        loss = loss + study.loss.align_weight * ifalign(study, *pair)
    return loss


def named(reading: Overrides) -> str:
    return ",".join(f"{key.partition('.')[2]}={value}" for key, value in reading.items()) or "default"


EVERY = pytest.mark.parametrize("reading", [*READINGS, TOGETHER], ids=named)


@EVERY
def test_a_reading_has_the_loss_and_the_gradients_of_its_equations(
    cohort: MakeCohort, reading: Overrides
) -> None:
    one = cohort(reading)
    batch = one.train_images[:6]
    own = {name: t.detach()[0].clone().requires_grad_() for name, t in one.student.tensors.items()}
    expected = plain_loss(one, own, batch)
    expected.backward()
    knobs = Knobs.of([one.arms[0].study], one.device)
    loss = one.losses(batch[None], 1, torch.tensor([0]), knobs)["loss"]
    loss.sum().backward()
    assert_close(loss[0], expected, rtol=1e-4, atol=1e-5)
    gradients = {name: t.grad for name, t in own.items() if t.grad is not None}
    assert any(name.startswith("attention") for name in gradients) == one.student.config.edu_attention
    for name, gradient in gradients.items():
        ours = one.student.tensors[name].grad
        assert ours is not None, name
        assert (ours[0] - gradient).norm() < 1e-3 * gradient.norm() + ROUNDING, name


CHANGE_TRAINING = [reading for reading in READINGS[1:-1] if "student.attention_keys" not in reading]


@pytest.mark.parametrize("reading", CHANGE_TRAINING, ids=named)
def test_a_reading_is_not_the_default(cohort: MakeCohort, reading: Overrides) -> None:
    """Else the test above would prove nothing. The keys of evaluation have their own, below."""
    losses = []
    for overrides in ({}, reading):
        one = cohort(overrides)
        knobs = Knobs.of([one.arms[0].study], one.device)
        losses.append(one.losses(one.train_images[None, :6], 1, torch.tensor([0]), knobs)["loss"].item())
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


# Evaluation -------------------------------------------------------------------------------------


def evaluated(one: Cohort) -> np.ndarray[Any, Any]:
    photographs = one.material.photographs
    return np.concatenate([photographs.part(VAL), photographs.part(TEST)])


def predicted(one: Cohort) -> list[int]:
    images = evaluated(one)
    with torch.no_grad():
        return one._predict(one.student, images, torch.from_numpy(one.material.photographs.labels[images]))[
            0
        ].tolist()


def group_scores(one: Cohort, image: int, keys: str) -> dict[int, float]:
    """Cosine of f_e with each class of the image's half, on the running statistics (PAPER 5.11)."""
    study, material = one.arms[0].study, one.material
    clip, text = material.student, material.text
    own = {name: t.detach()[0] for name, t in one.student.tensors.items()}
    pixels = pixels_of(material.photographs.store, np.array([image]), 0, clip.image_size, one.device)
    tokens = embed_images(clip, clip.prepare(pixels))[None]
    features = encode_embedded(clip, tokens, own["visual"][None])[0]
    is_base = material.photographs.labels[image] < BASE
    half = range(BASE) if is_base else range(BASE, len(text))
    seen = text if keys == "all" else text[half.start : half.stop]
    f_e = fused(study, own, unit(projected(own, features, one.student.running)[0]), seen)
    return {c: (f_e * text[c]).sum().item() for c in half}


def test_an_image_is_told_apart_among_the_classes_of_its_half(cohort: MakeCohort) -> None:
    """PAPER 1.16: with all classes as keys, or those of the half, one image and one class at a time."""
    chosen = []
    for keys in ("all", "evaluated"):
        one = cohort({"student.attention_keys": keys, "student.attention_scale": 0.1})
        one.train_epoch(1, lambda *_: None)
        chosen.append(predicted(one))
        for image, label in zip(evaluated(one), chosen[-1], strict=True):
            scores = group_scores(one, image, keys)
            assert scores[label] > max(scores.values()) - 1e-5
        assert len(set(chosen[-1])) > 2
    assert chosen[0] != chosen[1]


# What is no switch ------------------------------------------------------------------------------


def test_an_image_does_not_hang_on_its_batch_mates(cohort: MakeCohort) -> None:
    """PAPER 1.13: the softmax runs over the classes."""
    student = cohort({}).student
    image = F.normalize(torch.randn(1, 5, student.text.shape[1]), dim=-1)
    assert_close(student.fuse(image, student.text)[:, :1], student.fuse(image[:, :1], student.text))


def test_the_teachers_text_features_never_change(cohort: MakeCohort) -> None:
    """PAPER 1.20."""
    one = cohort({})
    before = one.material.text.clone()
    one.train_epoch(1, lambda *_: None)
    assert not one.student.text.requires_grad
    assert_close(one.student.text, before, rtol=0, atol=0)
