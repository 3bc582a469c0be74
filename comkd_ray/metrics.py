"""Accuracy on base and novel classes as CoOp counts it (PAPER 5.11, 5.15, 4.13), in percent.

Shapes: A arms, M images, C classes.
"""

from __future__ import annotations

from torch import Tensor


def harmonic_mean(base: float, novel: float) -> float:
    """2BN / (B + N); 0 where either is 0 (PAPER 4.13)."""
    return 2 * base * novel / (base + novel) if base > 0 and novel > 0 else 0.0


def predict(logits: Tensor, labels: Tensor, base: int) -> Tensor:
    """Predicted classes `[A, M]` of logits `[A, M, C]`, each image within its own half.

    labels `[M]` say the half: the first `base` classes, or the rest (PAPER 5.11).
    """
    chosen_base = logits[..., :base].argmax(-1)
    chosen_novel = logits[..., base:].argmax(-1) + base
    return chosen_base.where(labels < base, chosen_novel)


def accuracies(predicted: Tensor, target: Tensor, labels: Tensor, base: int) -> list[tuple[float, float]]:
    """Percent of `predicted` `[A, M]` equal to `target` `[M]`, on base and on novel images, an arm."""
    hits = (predicted == target).double()
    halves = (labels < base, labels >= base)
    means = [hits[:, half].mean(-1).mul(100).tolist() for half in halves]
    return list(zip(*means, strict=True))


def val_scores(base_accuracy: float, novel_agreement: float) -> dict[str, float]:
    """What the search may see: base labels, and agreement with the teacher on novel images."""
    return {
        "val_base_accuracy": base_accuracy,
        "val_novel_agreement": novel_agreement,
        "val_harmonic_mean": harmonic_mean(base_accuracy, novel_agreement),
    }


def test_scores(base_accuracy: float, novel_accuracy: float) -> dict[str, float]:
    """What the report tells and the search never sees."""
    return {
        "test_base_accuracy": base_accuracy,
        "test_novel_accuracy": novel_accuracy,
        "test_harmonic_mean": harmonic_mean(base_accuracy, novel_accuracy),
    }
