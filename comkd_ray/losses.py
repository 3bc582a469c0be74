"""Loss terms of ComKD-CLIP and of its teacher, as plain functions. Weights come from the study.

PAPER rows name the source; the paper's body was not at hand, so ComKD's own equations are
reconstructions (PAPER 0.2) and each open reading is a switch (PAPER 1.10-1.20).

Shapes: A arms, B images, C classes, D joint width. A leading `A or 1` may be broadcast.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor) -> Tensor:
    """T^2 * KL(softmax(q_t / T) || softmax(q_s / T)), mean over the batch (PAPER 1.2, 1.7, 3.7).

    student_logits `[A, B, C]`, teacher_logits `[A or 1, B, C]`, temperature `[A]` -> `[A]` nats.
    PromptKD's W divides the sum by B * C: its W equals our kd_weight times C.
    """
    temperature = temperature[:, None, None]
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    divergence = (teacher.exp() * (teacher - student)).sum(-1).mean(-1)
    return temperature[:, 0, 0].square() * divergence


def align_loss(student: Tensor, teacher: Tensor, axis: str = "batch", reduction: str = "mean") -> Tensor:
    """IFAlign: |mean_s - mean_t|_1 + |var_s - var_t|_1, biased variance (PAPER 1.3, 1.4).

    student `[A, B, D]`, teacher `[A or 1, B, D]` -> `[A]`. `axis` "batch" takes the statistics over
    the images, one value a dimension (reading a of 1.10); "width" over D, one value an image, then
    the mean over images (b). `reduction` of the L1 norm over D is "sum" or "mean" (1.11).
    """
    dim = {"batch": 1, "width": 2}[axis]
    terms = [
        (moment(student) - moment(teacher)).abs()
        for moment in (lambda u: u.mean(dim), lambda u: u.var(dim, correction=0))
    ]
    total = terms[0] + terms[1]
    return total.sum(-1) if axis == "batch" and reduction == "sum" else total.mean(-1)


def teacher_losses(
    image: Tensor,
    text: Tensor,
    labels: Tensor,
    logit_scale: float,
    weights: Mapping[str, float],
    frozen_image: Tensor | None,
    frozen_text: Tensor | None,
) -> dict[str, Tensor]:
    """Stage I: cross-entropy and PromptSRC's terms, weighted; their sum is the loss (PAPER 1.9, 2.9).

    image, frozen_image `[B, D]`: with and without prompts. text `[C, D]`: prompted; frozen_text
    `[C, D]`: mean over templates, also the classifier of the zero-shot logits. All are unit vectors.
    labels `[B]`. Scalars come back; KL is the sum over classes and images over B * C, zero-shot
    logits as target, T = 1. weights: of `text_l1`, `image_l1`, `logit_kl`; a term of weight 0 is not
    computed, and frozen features that no term needs may be None.
    """
    logits = logit_scale * image @ text.T
    terms = {"cross_entropy": F.cross_entropy(logits, labels)}
    if weights["text_l1"] > 0:
        assert frozen_text is not None
        terms["text_l1"] = weights["text_l1"] * F.l1_loss(text, frozen_text)
    if weights["image_l1"] > 0:
        assert frozen_image is not None
        terms["image_l1"] = weights["image_l1"] * F.l1_loss(image, frozen_image)
    if weights["logit_kl"] > 0:
        assert frozen_image is not None
        assert frozen_text is not None
        target = F.log_softmax(logit_scale * frozen_image @ frozen_text.T, dim=-1)
        kl = F.kl_div(F.log_softmax(logits, dim=-1), target, log_target=True, reduction="sum")
        terms["logit_kl"] = weights["logit_kl"] * kl / logits.numel()
    return terms


def normalize(features: Tensor) -> Tensor:
    """Unit vectors along the last dimension; zero stays zero."""
    return F.normalize(features, dim=-1)


def per_arm(values: list[float], device: torch.device) -> Tensor:
    """One scalar an arm as a float32 tensor `[A]`."""
    return torch.tensor(values, dtype=torch.float32, device=device)
