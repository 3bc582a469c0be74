"""The student of many arms: each arm is the plain torch modules that the paper names."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from comkd_ray.config import Study
from comkd_ray.losses import normalize
from comkd_ray.models import Clip
from comkd_ray.student import StudentCohort, initial_parameters, trainable_parameters

WIDTH, CLASSES = 24, 5
MakeStudy = Callable[..., Study]
TinyClip = Callable[[str], Clip]
Cohort = Callable[..., StudentCohort]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def students(make_study: MakeStudy, tiny_clip: TinyClip) -> Cohort:
    """students({...}, {...}) -> one arm for each dict of overrides, alpha and biases not at zero."""

    def make(*arms: dict[str, Any], text: Tensor | None = None) -> StudentCohort:
        text = normalize(draw(CLASSES, WIDTH, seed=9)) if text is None else text
        cohort = StudentCohort([make_study(arm) for arm in arms], tiny_clip("student"), text)
        with torch.no_grad():
            cohort.tensors["alpha"].copy_(draw(*cohort.tensors["alpha"].shape, seed=5))
            for name, tensor in cohort.tensors.items():
                if "bn_" in name:
                    tensor.add_(draw(*tensor.shape, seed=6) / 2)
        return cohort

    return make


# Projector --------------------------------------------------------------------------------------


def promptkd_projector(student: StudentCohort, arm: int, layers: int) -> nn.Sequential:
    """PAPER 2.4 as PromptKD writes it, with one arm's numbers in it."""
    modules: list[nn.Module] = []
    for layer in range(layers):
        weight = student.tensors[f"projector.{layer}.weight"][arm]
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], kernel_size=1)
        conv.weight.data = weight.detach()[:, :, None, None].clone()
        conv.bias.data = student.tensors[f"projector.{layer}.bias"][arm].detach().clone()  # type: ignore[union-attr]
        modules.append(conv)
        if layer < layers - 1:
            norm = nn.BatchNorm2d(weight.shape[0])
            norm.weight.data = student.tensors[f"projector.{layer}.bn_weight"][arm].detach().clone()
            norm.bias.data = student.tensors[f"projector.{layer}.bn_bias"][arm].detach().clone()
            modules += [norm, nn.ReLU()]
    return nn.Sequential(*modules)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_projector_is_that_of_promptkd(students: Cohort, layers: int) -> None:
    """In training, in its gradients, in its running statistics, and then in evaluation."""
    config = {"student.projector_layers": layers}
    student = students({"train.seed": 1, **config}, {"train.seed": 2, **config})
    plain = [promptkd_projector(student, arm, layers) for arm in range(2)]
    for step in range(3):
        features = draw(2, 6, 16, seed=step) * 3 + 1
        ours = student.project(features)
        for arm in range(2):
            assert_close(ours[arm], plain[arm](features[arm, :, :, None, None])[:, :, 0, 0])
    ours.square().sum().backward()
    for arm in range(2):
        plain[arm](features[arm, :, :, None, None]).square().sum().backward()
        first = plain[arm][0]
        assert isinstance(first, nn.Conv2d)
        gradient = student.tensors["projector.0.weight"].grad
        assert gradient is not None
        assert first.weight.grad is not None
        assert_close(gradient[arm], first.weight.grad[:, :, 0, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [2, 3])
def test_batch_norm_keeps_the_statistics_of_torch_for_each_arm(students: Cohort, layers: int) -> None:
    student = students(*({"train.seed": seed, "student.projector_layers": layers} for seed in (1, 2)))
    plain = [promptkd_projector(student, arm, layers) for arm in range(2)]
    for step in range(3):
        features = draw(1, 6, 16, seed=step) * 3 + 1
        student.project(features)
        for sequence in plain:
            sequence(features[0, :, :, None, None])
    for arm, sequence in enumerate(plain):
        for layer in range(layers - 1):
            norm = sequence[3 * layer + 1]
            assert isinstance(norm, nn.BatchNorm2d)
            assert_close(student.running[f"{layer}.mean"][arm], norm.running_mean)
            assert_close(student.running[f"{layer}.var"][arm], norm.running_var)
    student.eval()
    unseen = draw(1, 4, 16, seed=7)
    for arm, sequence in enumerate(plain):
        expected = sequence.eval()(unseen[0, :, :, None, None])[:, :, 0, 0]
        assert_close(student.project(unseen)[arm], expected)


def test_evaluation_does_not_depend_on_the_batch_and_changes_no_statistics(students: Cohort) -> None:
    student = students({})
    student.project(draw(1, 6, 16) * 2)
    student.eval()
    before = {name: t.clone() for name, t in student.running.items()}
    images = draw(1, 6, 16, seed=1)
    assert_close(student.project(images)[:, :1], student.project(images[:, :1]))
    assert_close(student.running, before, rtol=0, atol=0)


# EduAttention and fusion ------------------------------------------------------------------------


class EduAttention(nn.Module):
    """PAPER 1.5 and 1.6 for one student, with plain linear layers."""

    def __init__(self, student: StudentCohort, arm: int, scale: float) -> None:
        super().__init__()
        shared = "attention.shared.weight" in student.tensors
        names = ["shared"] * 3 if shared else ["query", "key", "value"]
        made: dict[str, nn.Linear] = {}
        for name in names:
            made.setdefault(name, nn.Linear(WIDTH, WIDTH))
            made[name].weight.data = student.tensors[f"attention.{name}.weight"][arm].detach().clone()
            made[name].bias.data = student.tensors[f"attention.{name}.bias"][arm].detach().clone()
        self.query, self.key, self.value = (made[name] for name in names)
        self.alpha = nn.Parameter(student.tensors["alpha"][arm].detach().clone())
        self.scale = scale

    def forward(self, image: Tensor, text: Tensor, renormalize: bool = True) -> Tensor:
        scores = self.query(image) @ self.key(text).T / self.scale
        fused = self.alpha * (F.softmax(scores, dim=1) @ self.value(text)) + image
        return F.normalize(fused, dim=1) if renormalize else fused


@pytest.mark.parametrize("layers", ["separate", "shared"])
@pytest.mark.parametrize("alpha", ["scalar", "vector"])
@pytest.mark.parametrize("renormalize", [True, False])
def test_fusion_is_attention_over_the_class_texts(
    students: Cohort, layers: str, alpha: str, renormalize: bool
) -> None:
    """Each arm with its own C; value and all gradients."""
    switches = {
        "student.attention_layers": layers,
        "student.alpha": alpha,
        "student.renormalize": renormalize,
    }
    scales = [0.05, 2.0]
    arms = [switches | {"student.attention_scale": c, "train.seed": i} for i, c in enumerate(scales)]
    student = students(*arms)
    image = normalize(draw(2, 6, WIDTH, seed=1)).requires_grad_()
    pull = draw(2, 6, WIDTH, seed=2)
    fused = student.fuse(image, student.text)
    (fused * pull).sum().backward()
    for arm, scale in enumerate(scales):
        plain = EduAttention(student, arm, scale)
        leaf = image.detach()[arm].clone().requires_grad_()
        expected = plain(leaf, student.text, renormalize)
        (expected * pull[arm]).sum().backward()
        assert_close(fused[arm], expected)
        assert image.grad is not None
        assert_close(image.grad[arm], leaf.grad)
        alpha_gradient = student.tensors["alpha"].grad
        assert alpha_gradient is not None
        assert_close(alpha_gradient[arm], plain.alpha.grad)
        key = "shared" if layers == "shared" else "key"
        weight_gradient = student.tensors[f"attention.{key}.weight"].grad
        assert weight_gradient is not None
        assert_close(weight_gradient[arm], plain.key.weight.grad, rtol=1e-4, atol=1e-6)


def test_the_scale_may_be_the_root_of_the_width(students: Cohort) -> None:
    """PAPER 1.15."""
    student = students({"student.attention_scale": "sqrt_width"}, {"student.attention_scale": 1.0})
    image = normalize(draw(1, 6, WIDTH, seed=1)).expand(2, -1, -1)
    expected = EduAttention(student, 0, math.sqrt(WIDTH))(image[0], student.text)
    assert_close(student.fuse(image, student.text)[0], expected)


def test_alpha_0_gives_exactly_the_logits_of_promptkd(students: Cohort) -> None:
    """PAPER 7.2; to the last bit without renormalisation, and to rounding with it."""
    image = normalize(draw(1, 6, WIDTH, seed=1))
    off = students({"student.edu_attention": False})
    expected = off.clip.logit_scale * image @ off.text.T
    assert_close(off.logits(image), expected, rtol=0, atol=0)
    for renormalize, tolerance in ((False, 0.0), (True, 1e-6)):
        on = students({"student.renormalize": renormalize})
        with torch.no_grad():
            on.tensors["alpha"].zero_()
        assert_close(on.logits(image), expected, rtol=tolerance, atol=10 * tolerance)


def test_alpha_starts_at_zero_and_only_it_learns_at_first(make_study: MakeStudy, tiny_clip: TinyClip) -> None:
    """PAPER 1.6 and 1.18: the layers of the attention get no gradient in the first step."""
    student = StudentCohort([make_study()], tiny_clip("student"), normalize(draw(CLASSES, WIDTH)))
    assert student.tensors["alpha"].tolist() == [[0.0]]
    logits = student.logits(normalize(draw(1, 6, WIDTH, seed=1)))
    (logits * draw(*logits.shape, seed=2)).sum().backward()
    gradients = {name: t.grad for name, t in student.tensors.items() if t.grad is not None}
    assert gradients.pop("alpha").abs().item() > 0
    assert {name for name in gradients if name.startswith("attention")} == set(gradients)
    assert all(gradient.abs().max() == 0 for gradient in gradients.values())


def test_an_arm_without_attention_keeps_its_features_beside_one_with_it(students: Cohort) -> None:
    student = students({"student.edu_attention": False}, {"student.edu_attention": True})
    image = normalize(draw(1, 6, WIDTH, seed=1)).expand(2, -1, -1).clone().requires_grad_()
    fused = student.fuse(image, student.text)
    assert_close(fused[0], image[0], rtol=0, atol=0)
    assert (fused[1] - image[1]).abs().max() > 0.01
    fused.sum().backward()
    for name in ("alpha", "attention.key.weight"):
        gradient = student.tensors[name].grad
        assert gradient is not None
        assert gradient[0].abs().max() == 0
        assert gradient[1].abs().max() > 0


def test_logits_carry_the_scale_of_the_student_itself(students: Cohort, tiny_clip: TinyClip) -> None:
    """PAPER 5.1: each model's own exp(logit_scale)."""
    student = students({"student.edu_attention": False})
    image = normalize(draw(1, 6, WIDTH, seed=1))
    scale = math.exp(tiny_clip("student").model.logit_scale.item())  # type: ignore[operator]
    assert_close(student.logits(image) / scale, image @ student.text.T)


GROUPS = (range(3), range(3, 6))


def test_keys_are_all_classes_or_the_evaluated_group(students: Cohort) -> None:
    """PAPER 1.16: the logits of a half, with its own texts as keys and values only."""
    image = normalize(draw(1, 6, WIDTH, seed=1))
    everything = students({"student.attention_keys": "all"})
    assert_close(everything.group_logits(image, GROUPS), everything.logits(image), rtol=0, atol=0)
    halves = students({"student.attention_keys": "evaluated"})
    plain, text, scale = EduAttention(halves, 0, 1.0), halves.text, halves.clip.logit_scale
    base = scale * plain(image[0], text[:3]) @ text[:3].T
    novel = scale * plain(image[0], text[3:]) @ text[3:].T
    assert_close(halves.group_logits(image, GROUPS)[0], torch.cat([base, novel], dim=1))
    assert (halves.group_logits(image, GROUPS) - halves.logits(image)).abs().max() > 0.01


# Parameters -------------------------------------------------------------------------------------


def test_trainable_parameters_are_those_of_the_paper(make_study: MakeStudy) -> None:
    """PAPER 7.3, ViT-B/16 to ViT-L/14, from the shapes alone: no weight is in memory."""
    from open_clip.transformer import VisionTransformer

    with torch.device("meta"):
        tower = VisionTransformer(224, 16, width=768, layers=12, heads=12, mlp_ratio=4, output_dim=512)
    model: Any = nn.Module()
    model.visual = tower
    clip = Clip("B/16", model, SimpleNamespace, 224, (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    shape = {"student.prompt_length": 4, "student.prompt_depth": 9}
    without = make_study(shape | {"student.edu_attention": False})
    assert clip.width == 512
    assert clip.image_parameters == 86_192_640  # PAPER 2.2
    assert trainable_parameters(without, clip, 768) == 1_013_760
    assert trainable_parameters(make_study(shape), clip, 768) == 2_785_537


def test_parameters_that_are_counted_are_those_that_get_a_gradient(
    students: Cohort, make_study: MakeStudy
) -> None:
    for attention in (True, False):
        arm = {"student.edu_attention": attention}
        student = students(arm)
        embedded = draw(1, 4, 17, 32)
        student.logits(normalize(student.project(student.encode(embedded)))).square().sum().backward()
        moved = sum(t.numel() for t in student.tensors.values() if t.grad is not None)
        assert moved == trainable_parameters(make_study(arm), student.clip, WIDTH)


def test_a_seed_draws_the_same_prompts_and_projector_whatever_is_switched_on(
    make_study: MakeStudy, tiny_clip: TinyClip
) -> None:
    """So that a pair of arms of one seed differs in nothing but the switch."""
    clip = tiny_clip("student")
    plain = initial_parameters(make_study({"student.edu_attention": False}), clip, WIDTH)
    shared = initial_parameters(make_study({"student.attention_layers": "shared"}), clip, WIDTH)
    same = [name for name in plain if name.startswith(("visual", "projector"))]
    assert len(same) == 7
    assert_close({name: shared[name] for name in same}, {name: plain[name] for name in same}, rtol=0, atol=0)
    other = initial_parameters(make_study({"train.seed": 2}), clip, WIDTH)
    assert (other["visual"] - plain["visual"]).abs().min() > 0


def test_linear_layers_start_in_the_range_of_torch(make_study: MakeStudy, tiny_clip: TinyClip) -> None:
    tensors = initial_parameters(make_study(), tiny_clip("student"), WIDTH)
    for name, inputs in (("projector.0", 16), ("projector.1", WIDTH), ("attention.key", WIDTH)):
        for part in ("weight", "bias"):
            largest = tensors[f"{name}.{part}"].abs().max().item()
            assert 0.8 / math.sqrt(inputs) < largest < 1 / math.sqrt(inputs)


def test_arms_that_stay_keep_their_numbers(students: Cohort) -> None:
    arms = [{"train.seed": i, "student.attention_scale": 0.1 + i} for i in range(3)]
    student = students(*arms)
    student.project(draw(3, 6, 16))
    student.eval()
    features = draw(1, 4, 16, seed=3)
    before = student.logits(normalize(student.project(features)))
    student.keep(torch.tensor([2, 0]))
    after = student.logits(normalize(student.project(features)))
    assert_close(after, before[[2, 0]])
    assert all(t.requires_grad and t.is_leaf for t in student.tensors.values())


def test_a_student_without_prompts_or_without_a_vit_takes_features_as_they_are(
    make_study: MakeStudy, tiny_clip: TinyClip
) -> None:
    features = draw(1, 4, 16)
    none = make_study({"student.prompt_length": 0})
    for study, kind in ((none, "student"), (make_study(), "conv")):
        student = StudentCohort([study], tiny_clip(kind), normalize(draw(CLASSES, WIDTH)))
        assert "visual" not in student.tensors
        assert student.encode(features) is features
