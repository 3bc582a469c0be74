"""Loss terms: each equals its equation written out, in value and in gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from comkd_ray.losses import align_loss, kd_loss, normalize, per_arm, teacher_losses


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    return torch.autograd.grad(loss(*leaves).sum(), leaves)


# Distillation -----------------------------------------------------------------------------------


def kd_by_hand(student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
    """PAPER 1.2, one number at a time."""
    arms, batch, classes = student.shape
    values = []
    for a in range(arms):
        t = temperature[a]
        total = torch.zeros((), dtype=student.dtype)
        for b in range(batch):
            p = torch.exp(teacher[a, b] / t) / torch.exp(teacher[a, b] / t).sum()
            q = torch.exp(student[a, b] / t) / torch.exp(student[a, b] / t).sum()
            for c in range(classes):
                total = total + p[c] * torch.log(p[c] / q[c])
        values.append(t**2 * total / batch)
    return torch.stack(values)


TEMPERATURES = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)


def test_kd_is_the_sum_over_classes_and_the_mean_over_images() -> None:
    student, teacher = draw(3, 5, 7), draw(3, 5, 7, seed=1)
    assert_close(kd_loss(student, teacher, TEMPERATURES), kd_by_hand(student, teacher, TEMPERATURES))


def test_gradients_of_kd_are_those_of_the_loop() -> None:
    inputs = draw(3, 5, 7), draw(3, 5, 7, seed=1), TEMPERATURES
    assert_close(gradients(kd_loss, *inputs), gradients(kd_by_hand, *inputs))


def test_one_teacher_serves_all_arms() -> None:
    student, teacher = draw(3, 5, 7), draw(1, 5, 7, seed=1)
    repeated = teacher.expand(3, -1, -1)
    assert_close(kd_loss(student, teacher, TEMPERATURES), kd_loss(student, repeated, TEMPERATURES))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_promptkd_weight_is_ours_times_the_number_of_classes(temperature: float) -> None:
    """W * T^2 * KL_sum / (B * N) = (W / N) * T^2 * KL_batchmean (PAPER 7.6, 5.2)."""
    weight, classes = 1000.0, 7
    student, teacher = draw(1, 5, classes), draw(1, 5, classes, seed=1)
    summed = F.kl_div(
        F.log_softmax(student[0] / temperature, dim=1),
        F.softmax(teacher[0] / temperature, dim=1),
        reduction="sum",
    )
    promptkd = weight * summed * temperature**2 / student[0].numel()
    ours = weight / classes * kd_loss(student, teacher, torch.tensor([temperature], dtype=torch.float64))
    assert_close(ours[0], promptkd)


def test_kd_of_equal_logits_is_zero_and_pulls_nowhere() -> None:
    logits = draw(3, 5, 7)
    assert_close(kd_loss(logits, logits, TEMPERATURES), torch.zeros(3, dtype=torch.float64))
    (pull,) = gradients(lambda x: kd_loss(x, logits, TEMPERATURES), logits)
    assert_close(pull, torch.zeros_like(pull))


def test_kd_ignores_a_constant_added_to_all_logits_of_an_image() -> None:
    student, teacher = draw(3, 5, 7), draw(3, 5, 7, seed=1)
    moved = student + 3 * draw(3, 5, 1, seed=2)
    assert_close(kd_loss(moved, teacher, TEMPERATURES), kd_loss(student, teacher, TEMPERATURES))


def test_kd_of_logits_in_the_hundreds_is_finite() -> None:
    """CLIP's logits reach 100; a teacher sure of one class and a student sure of another."""
    student = torch.tensor([[[100.0, -100.0]]])
    assert_close(kd_loss(student, -student, torch.tensor([0.5])), torch.tensor([0.25 * 400]))


def test_kd_frozen_number() -> None:
    """Teacher 3/4 : 1/4, student 1/2 : 1/2, T = 1."""
    teacher, student = torch.tensor([[[math.log(3), 0.0]]]), torch.zeros(1, 1, 2)
    assert kd_loss(student, teacher, torch.ones(1)).item() == pytest.approx(0.1308120)


def test_no_arm_sees_another() -> None:
    student, teacher = draw(3, 5, 7), draw(3, 5, 7, seed=1)
    broken = student.clone()
    broken[1] = math.nan
    sound, hurt = (kd_loss(each, teacher, TEMPERATURES) for each in (student, broken))
    assert hurt[1].isnan()
    assert_close(hurt[[0, 2]], sound[[0, 2]], rtol=0, atol=0)


# IFAlign ----------------------------------------------------------------------------------------


def align_by_hand(student: Tensor, teacher: Tensor, axis: str, reduction: str) -> Tensor:
    """PAPER 1.3 and 1.4 with the readings of 1.10 and 1.11, one arm and one vector at a time."""
    values = []
    for u, t in zip(student, teacher, strict=True):
        if axis == "batch":
            u, t = u.T, t.T  # one row a dimension, else one row an image
        terms = []
        for row_u, row_t in zip(u, t, strict=True):
            mean_u, mean_t = row_u.sum() / len(row_u), row_t.sum() / len(row_t)
            var_u = ((row_u - mean_u) ** 2).sum() / len(row_u)
            var_t = ((row_t - mean_t) ** 2).sum() / len(row_t)
            terms.append((mean_u - mean_t).abs() + (var_u - var_t).abs())
        total = sum(terms, torch.zeros((), dtype=student.dtype))
        values.append(total if axis == "batch" and reduction == "sum" else total / len(terms))
    return torch.stack(values)


READINGS = [("batch", "mean"), ("batch", "sum"), ("width", "mean"), ("width", "sum")]


@pytest.mark.parametrize(("axis", "reduction"), READINGS)
def test_align_is_the_distance_of_means_and_of_variances(axis: str, reduction: str) -> None:
    student, teacher = draw(2, 5, 6), draw(2, 5, 6, seed=1)
    expected = align_by_hand(student, teacher, axis, reduction)
    assert_close(align_loss(student, teacher, axis, reduction), expected)


@pytest.mark.parametrize(("axis", "reduction"), READINGS)
def test_gradients_of_align_are_those_of_the_loop(axis: str, reduction: str) -> None:
    inputs = draw(2, 5, 6), draw(2, 5, 6, seed=1)
    ours = gradients(lambda s, t: align_loss(s, t, axis, reduction), *inputs)
    by_hand = gradients(lambda s, t: align_by_hand(s, t, axis, reduction), *inputs)
    assert_close(ours, by_hand)


def test_align_by_default_is_over_the_batch_and_a_mean() -> None:
    student, teacher = draw(2, 5, 6), draw(2, 5, 6, seed=1)
    assert_close(align_loss(student, teacher), align_loss(student, teacher, "batch", "mean"))


def test_the_sum_is_the_mean_times_the_width() -> None:
    student, teacher = draw(2, 5, 6), draw(2, 5, 6, seed=1)
    mean = align_loss(student, teacher, "batch", "mean")
    assert_close(align_loss(student, teacher, "batch", "sum"), 6 * mean)


@pytest.mark.parametrize(("axis", "reduction"), READINGS)
def test_align_of_equal_features_is_zero(axis: str, reduction: str) -> None:
    """PAPER 7.2."""
    features = draw(2, 5, 6)
    assert align_loss(features, features.clone(), axis, reduction).tolist() == [0, 0]


def test_align_is_zero_where_only_the_order_of_the_images_differs() -> None:
    features = draw(2, 5, 6)
    assert_close(align_loss(features, features.flip(1)), torch.zeros(2, dtype=torch.float64))


def test_align_of_one_image_is_the_distance_of_the_features() -> None:
    """One image has no variance: the biased one is 0, not 0 / 0."""
    student, teacher = draw(2, 1, 6), draw(1, 1, 6, seed=1)
    assert_close(align_loss(student, teacher), (student - teacher).abs().mean((1, 2)))
    (pull,) = gradients(lambda s: align_loss(s, teacher), student)
    assert pull.isfinite().all()


def test_align_of_constant_features_is_the_distance_of_the_constants() -> None:
    student, teacher = torch.full((1, 4, 6), 0.5), torch.full((1, 4, 6), 0.25)
    for axis in ("batch", "width"):
        assert_close(align_loss(student, teacher, axis), torch.tensor([0.25]))


def test_align_frozen_number() -> None:
    """Two images, one dimension: mean 2 against 0, variance 1 against 9."""
    student, teacher = torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[-3.0], [3.0]]])
    assert align_loss(student, teacher).item() == 10


def test_one_teacher_serves_all_arms_in_align() -> None:
    student, teacher = draw(3, 5, 6), draw(1, 5, 6, seed=1)
    assert_close(align_loss(student, teacher), align_loss(student, teacher.expand(3, -1, -1)))


# Stage I ----------------------------------------------------------------------------------------


def promptsrc(
    image: Tensor, text: Tensor, labels: Tensor, frozen_image: Tensor, frozen_text: Tensor, scale: float
) -> Tensor:
    """PAPER 2.9 number by number: CE + 25 * L1(text) + 10 * L1(image) + KL(zero-shot || prompted)."""
    images, classes, width = len(image), len(text), image.shape[1]
    cross_entropy = kl = text_gap = image_gap = torch.zeros((), dtype=image.dtype)
    for b in range(images):
        odds = [torch.exp(scale * (image[b] * text[c]).sum()) for c in range(classes)]
        frozen_odds = [torch.exp(scale * (frozen_image[b] * frozen_text[c]).sum()) for c in range(classes)]
        cross_entropy = cross_entropy - torch.log(odds[labels[b]] / sum(odds)) / images
        for c in range(classes):
            p, q = frozen_odds[c] / sum(frozen_odds), odds[c] / sum(odds)
            kl = kl + p * (p / q).log() / (images * classes)
        for d in range(width):
            image_gap = image_gap + (image[b, d] - frozen_image[b, d]).abs() / (images * width)
    for c in range(classes):
        for d in range(width):
            text_gap = text_gap + (text[c, d] - frozen_text[c, d]).abs() / (classes * width)
    return cross_entropy + 25 * text_gap + 10 * image_gap + 1 * kl


PROMPTSRC = {"text_l1": 25.0, "image_l1": 10.0, "logit_kl": 1.0}
"""Weights of PAPER 2.9."""


def teacher_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    unit = [normalize(draw(*shape, seed=i)) for i, shape in enumerate([(5, 6), (3, 6), (5, 6), (3, 6)])]
    return unit[0], unit[1], torch.tensor([0, 2, 1, 1, 0]), unit[2], unit[3]


def ours_weighted(image: Tensor, text: Tensor) -> Tensor:
    _, _, labels, frozen_image, frozen_text = teacher_inputs()
    terms = teacher_losses(image, text, labels, 20.0, PROMPTSRC, frozen_image, frozen_text)
    return torch.stack(list(terms.values())).sum()


def test_teacher_terms_add_up_to_promptsrc() -> None:
    image, text, *rest = teacher_inputs()
    assert_close(ours_weighted(image, text), promptsrc(image, text, *rest, 20.0))


def test_gradients_of_the_teacher_terms_are_those_of_promptsrc() -> None:
    image, text, *rest = teacher_inputs()
    theirs = gradients(lambda i, t: promptsrc(i, t, *rest, 20.0), image, text)
    assert_close(gradients(ours_weighted, image, text), theirs)


def test_a_teacher_that_has_not_moved_pays_only_cross_entropy() -> None:
    image, text, labels, _, _ = teacher_inputs()
    terms = teacher_losses(image, text, labels, 20.0, PROMPTSRC, image, text)
    cross_entropy = terms.pop("cross_entropy")
    assert cross_entropy > 0
    assert set(terms) == set(PROMPTSRC)
    assert all(abs(term.item()) < 1e-12 for term in terms.values())


@pytest.mark.parametrize("off", [("text_l1",), ("image_l1",), ("logit_kl",), ("text_l1", "image_l1")])
def test_a_teacher_term_of_weight_0_is_not_computed(off: tuple[str, ...]) -> None:
    image, text, labels, frozen_image, frozen_text = teacher_inputs()
    whole = teacher_losses(image, text, labels, 20.0, PROMPTSRC, frozen_image, frozen_text)
    weights = PROMPTSRC | dict.fromkeys(off, 0.0)
    terms = teacher_losses(image, text, labels, 20.0, weights, frozen_image, frozen_text)
    assert terms == {name: term for name, term in whole.items() if name not in off}


def test_without_regularisers_the_teachers_loss_is_cross_entropy_and_needs_nothing_frozen() -> None:
    image, text, labels, _, _ = teacher_inputs()
    weights = dict.fromkeys(PROMPTSRC, 0.0)

    def plain(image: Tensor, text: Tensor) -> Tensor:
        odds = torch.exp(20 * image @ text.T)
        return -(odds[torch.arange(5), labels] / odds.sum(1)).log().mean()

    def ours(image: Tensor, text: Tensor) -> Tensor:
        (term,) = teacher_losses(image, text, labels, 20.0, weights, None, None).values()
        return term

    assert_close(ours(image, text), plain(image, text))
    assert_close(gradients(ours, image, text), gradients(plain, image, text))


# Small things -----------------------------------------------------------------------------------


def test_unit_vectors_and_a_zero_that_stays_zero() -> None:
    features = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert_close(normalize(features), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_one_scalar_an_arm() -> None:
    values = per_arm([1, 2.5], torch.device("cpu"))
    assert values.dtype == torch.float32
    assert values.tolist() == [1, 2.5]
