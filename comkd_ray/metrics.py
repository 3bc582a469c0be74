"""Accuracy as CoOp counts it: groups of classes, each evaluated alone (PAPER 5.11, 5.15, 4.13), in percent.

A protocol with halves has two groups, base and novel classes; any other has one, all classes.

Shapes: A arms, M images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from comkd_ray.config import Study
from comkd_ray.protocols import protocol_of

Groups = Sequence[range]
"""Labels of the classes that are told apart from each other; together all classes, in order."""


def harmonic_mean(base: float, novel: float) -> float:
    """2BN / (B + N); 0 where either is 0 (PAPER 4.13)."""
    return 2 * base * novel / (base + novel) if base > 0 and novel > 0 else 0.0


def scores(shares: Sequence[float]) -> tuple[float, ...]:
    """Base and novel with their harmonic mean; a single share as it is."""
    return (*shares, harmonic_mean(*shares)) if len(shares) == 2 else tuple(shares)


def predict(logits: Tensor, labels: Tensor, groups: Groups) -> Tensor:
    """Predicted classes `[A, M]` of logits `[A, M, C]`, each image within the group of its label `[M]`.

    On the device of the logits, which nobody waits for: no mask selects images.
    """
    labels = labels.to(logits.device, non_blocking=True)
    chosen = torch.zeros(logits.shape[:2], dtype=torch.long, device=logits.device)
    for group in groups:
        best = logits[..., group.start : group.stop].argmax(-1) + group.start
        chosen = best.where(in_group(labels, group), chosen)
    return chosen


def accuracies(predicted: Tensor, target: Tensor, labels: Tensor, groups: Groups) -> list[tuple[float, ...]]:
    """Percent of `predicted` `[A, M]` equal to `target` `[M]`: a tuple an arm, a number a group.

    A group without images has NaN.
    """
    hits = (predicted == target).double()
    means = [hits[:, in_group(labels, group)].mean(-1).mul(100).tolist() for group in groups]
    return list(zip(*means, strict=True))


def in_group(labels: Tensor, group: range) -> Tensor:
    """Which of `labels` `[M]` belong to a group."""
    return (labels >= group.start) & (labels < group.stop)


def test_scores(study: Study, shares: Sequence[float]) -> dict[str, float]:
    """Shares of the groups on test images, in percent, as the study's protocol names them."""
    names = protocol_of(study).scores
    return {f"test_{name}": value for name, value in zip(names, scores(shares), strict=True)}
