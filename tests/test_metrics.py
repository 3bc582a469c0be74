"""Accuracies as CoOp counts them: each image among the classes of its own half."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from comkd_ray.metrics import accuracies, harmonic_mean, predict, scores

BASE, CLASSES = 3, 5
HALVES = (range(BASE), range(BASE, CLASSES))
ALL = (range(CLASSES),)


def images() -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    return torch.randn(2, 40, CLASSES, generator=stream), torch.randint(CLASSES, (40,), generator=stream)


def predicted_by_hand(logits: list[float], label: int) -> int:
    allowed = range(BASE) if label < BASE else range(BASE, CLASSES)
    return max(allowed, key=lambda c: logits[c])


def test_promptkd_average_of_the_paper() -> None:
    """PAPER 7.4."""
    assert harmonic_mean(86.963, 80.733) == pytest.approx(83.732, abs=5e-4)


@pytest.mark.parametrize(("base", "novel"), [(0, 0), (0, 80), (80, 0)])
def test_harmonic_mean_of_a_zero_is_zero(base: float, novel: float) -> None:
    assert harmonic_mean(base, novel) == 0


def test_an_image_is_told_apart_within_its_half_only() -> None:
    logits, labels = images()
    expected = [
        [predicted_by_hand(row, label) for row, label in zip(arm, labels.tolist(), strict=True)]
        for arm in logits.tolist()
    ]
    assert predict(logits, labels, HALVES).tolist() == expected


def test_accuracies_are_counted_on_each_half() -> None:
    logits, labels = images()
    predicted = predict(logits, labels, HALVES)
    target = (labels + torch.arange(40) % 2) % CLASSES  # not the labels: agreement has another target
    expected = []
    for arm in predicted.tolist():
        halves = []
        for inside in (range(BASE), range(BASE, CLASSES)):
            of_half = [i for i, label in enumerate(labels.tolist()) if label in inside]
            hits = sum(arm[i] == target.tolist()[i] for i in of_half)
            halves.append(100 * hits / len(of_half))
        expected.append(tuple(halves))
    counted = accuracies(predicted, target, labels, HALVES)
    assert counted == [pytest.approx(arm) for arm in expected]
    assert counted[0] != counted[1]


def test_perfect_and_hopeless() -> None:
    _, labels = images()
    right, wrong = labels, (labels + 1) % CLASSES
    assert accuracies(torch.stack([right, wrong]), labels, labels, HALVES) == [(100, 100), (0, 0)]


def test_scores_carry_their_harmonic_mean() -> None:
    assert scores((60.0, 30.0)) == (60.0, 30.0, 40.0)


def test_without_halves_an_image_is_told_apart_from_all_classes() -> None:
    logits, labels = images()
    predicted = predict(logits, labels, ALL)
    assert predicted.tolist() == logits.argmax(-1).tolist()
    expected = [100 * float((arm == labels).double().mean()) for arm in predicted]
    assert [pytest.approx(share) for (share,) in accuracies(predicted, labels, labels, ALL)] == expected
    assert scores((12.5,)) == (12.5,)


def test_a_group_without_images_has_no_accuracy() -> None:
    logits, labels = images()
    of_base = labels < BASE
    predicted = predict(logits[:, of_base], labels[of_base], HALVES)
    base, novel = accuracies(predicted, labels[of_base], labels[of_base], HALVES)[0]
    assert base > 0
    assert math.isnan(novel)
