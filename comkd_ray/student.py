"""The trainable student of many arms: prompts, projector, EduAttention and fusion weight.

Every tensor leads with the arm dimension, and no operation mixes arms: an arm gets the numbers that
it gets alone. What arms may differ in is a scalar, a flag or a seed.

Shapes: A arms, B images, C classes, D_s student width, D teacher width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from comkd_ray.config import Student, Study
from comkd_ray.losses import normalize, per_arm
from comkd_ray.models import Clip
from comkd_ray.precision import round_, rounding, stored_in_float16
from comkd_ray.prompts import check_visual_depth, encode_embedded, generator, visual_tokens

BN_MOMENTUM, BN_EPS = 0.1, 1e-5  # torch's own


def linear_init(seed: int, name: str, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Weight `[outputs, inputs]` and bias `[outputs]` as torch draws a Linear or 1x1 Conv."""
    stream = generator(seed, name)
    bound = 1 / math.sqrt(inputs)
    weight, bias = torch.rand(outputs, inputs, generator=stream), torch.rand(outputs, generator=stream)
    return (2 * weight - 1) * bound, (2 * bias - 1) * bound


def initial_parameters(study: Study, clip: Clip, width: int) -> dict[str, Tensor]:
    """All trainable tensors of one arm, from its seed; `width` is D."""
    config, seed = study.student, study.train.seed
    tensors: dict[str, Tensor] = {}
    if has_visual_prompts(config, clip):
        tensors["visual"] = visual_tokens(clip, config.prompt_length, config.prompt_depth, seed)
    inputs = clip.width
    for layer in range(config.projector_layers):
        name = f"projector.{layer}"
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = linear_init(seed, name, width, inputs)
        if layer < config.projector_layers - 1:
            tensors[f"{name}.bn_weight"], tensors[f"{name}.bn_bias"] = torch.ones(width), torch.zeros(width)
        inputs = width
    for name in attention_names(config):
        key = f"attention.{name}"
        tensors[f"{key}.weight"], tensors[f"{key}.bias"] = linear_init(seed, key, width, width)
    tensors["alpha"] = torch.zeros(width if config.alpha == "vector" else 1)
    return tensors


def attention_names(config: Student) -> tuple[str, ...]:
    """Fully connected layers of EduAttention: three, or one shared (PAPER 1.14)."""
    return ("query", "key", "value") if config.attention_layers == "separate" else ("shared",)


def has_visual_prompts(config: Student, clip: Clip) -> bool:
    """Whether this student has visual prompts; without them its tower never changes."""
    return clip.is_vit and config.prompt_length > 0


def check_depths(clip: Clip, configs: Sequence[Student]) -> None:
    """UserError where an arm may prompt more layers than the student's tower has.

    configs: one for every value of a searched key. Length and depth come together in any way.
    """
    if any(has_visual_prompts(config, clip) for config in configs):
        check_visual_depth(clip, max(config.prompt_depth for config in configs), "student")


def trainable_parameters(study: Study, clip: Clip, width: int) -> int:
    """What this arm trains: without EduAttention, its layers and alpha do not count (PAPER 7.3)."""
    tensors = initial_parameters(study, clip, width)
    unused = () if study.student.edu_attention else ("attention.", "alpha")
    return sum(t.numel() for name, t in tensors.items() if not (unused and name.startswith(unused)))


class StudentCohort(nn.Module):
    """The students of A arms of one structure on one frozen tower."""

    def __init__(self, arms: Sequence[Study], clip: Clip, text: Tensor) -> None:
        """arms: resolved studies of one structure; text: the teacher's unit features `[C, D]`."""
        super().__init__()
        self.config = arms[0].student
        self.clip = clip
        self.precision = arms[0].train.precision
        self.rounded = rounding(self.precision)
        self.text = self.rounded(text)
        device, width = text.device, text.shape[1]
        initial = [initial_parameters(arm, clip, width) for arm in arms]
        self.tensors = {
            name: torch.stack([one[name] for one in initial]).to(device).requires_grad_()
            for name in initial[0]
        }
        self.in_float16 = stored_in_float16(self.precision, self.tensors)
        for name in self.in_float16:
            round_(self.tensors[name])
        self.running = {
            f"{layer}.{moment}": torch.full((len(arms), width), float(moment == "var"), device=device)
            for layer in range(self.config.projector_layers - 1)
            for moment in ("mean", "var")
        }
        self.edu_attention = torch.tensor([arm.student.edu_attention for arm in arms], device=device)
        self.any_attention = any(arm.student.edu_attention for arm in arms)
        self.scale = per_arm([attention_scale(arm.student, width) for arm in arms], device)

    @torch.no_grad()
    def keep(self, arms: Tensor) -> None:
        """Go on with the arms of index `arms` `[A']` only."""
        self.tensors = {name: t[arms].clone().requires_grad_() for name, t in self.tensors.items()}
        self.running = {name: t[arms].clone() for name, t in self.running.items()}
        self.edu_attention, self.scale = self.edu_attention[arms], self.scale[arms]
        self.any_attention = bool(self.edu_attention.any())

    def state(self, index: int) -> dict[str, Tensor]:
        """A copy of one arm's tensors, where they are; the teacher's text features `[C, D]` with them."""
        every = {**self.tensors, **{f"running.{name}": t for name, t in self.running.items()}}
        return {name: t[index].detach().clone() for name, t in every.items()} | {"text": self.text}

    @torch.no_grad()
    def load_state(self, index: int, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave, the text features apart; a missing tensor is a KeyError."""
        every = {**self.tensors, **{f"running.{name}": t for name, t in self.running.items()}}
        for name, tensor in every.items():
            tensor[index] = state[name]

    def encode(self, inputs: Tensor) -> Tensor:
        """Tower features `[A or 1, B, D_s]`, not normalised.

        inputs: embedded tokens `[A or 1, B, T, W]` of a prompted ViT, else the tower's own features
        `[A or 1, B, D_s]`.
        """
        visual = self.tensors.get("visual")
        return inputs if visual is None else encode_embedded(self.clip, inputs, self.rounded(visual))

    def project(self, features: Tensor) -> Tensor:
        """The projector, a 1x1 convolution on vectors (PAPER 2.4): `[A or 1, B, D_s]` -> `[A, B, D]`."""
        x = self.rounded(features).expand(self.scale.shape[0], -1, -1)
        for layer in range(self.config.projector_layers):
            name = f"projector.{layer}"
            x = self.rounded(affine(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]))
            if layer < self.config.projector_layers - 1:
                x = self.rounded(self._batch_norm(x, layer)).relu()
        return x

    def _batch_norm(self, x: Tensor, layer: int) -> Tensor:
        name = f"projector.{layer}"
        mean, var = self.running[f"{layer}.mean"], self.running[f"{layer}.var"]
        if self.training:
            batch_mean, batch_var = x.float().mean(1), x.float().var(1, correction=0)
            count = x.shape[1]
            with torch.no_grad():
                mean.lerp_(batch_mean, BN_MOMENTUM)
                var.lerp_(batch_var * (count / (count - 1)), BN_MOMENTUM)
            mean, var = batch_mean, batch_var
        scale = self.tensors[f"{name}.bn_weight"] * (var + BN_EPS).rsqrt()
        return (x - mean[:, None]) * scale[:, None] + self.tensors[f"{name}.bn_bias"][:, None]

    def fuse(self, image: Tensor, text: Tensor) -> Tensor:
        """f_e = alpha * softmax(Q K^T / C) V + u (PAPER 1.5, 1.6); arms without EduAttention keep u.

        image: unit features u `[A, B, D]`; text: keys and values `[C', D]`. Returns `[A, B, D]`.
        """
        if not self.any_attention:
            return image
        query, key, value = self._attend(image, text)
        weights = self.rounded(self.rounded(query @ key.mT / self.scale[:, None, None]).softmax(-1))
        fused = self.rounded(self.tensors["alpha"][:, None] * self.rounded(weights @ value) + image)
        if self.config.renormalize:
            fused = self.rounded(normalize(fused))
        return fused.where(self.edu_attention[:, None, None], image)

    def _attend(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shared = self.config.attention_layers == "shared"
        names = ("shared",) * 3 if shared else ("query", "key", "value")
        inputs = (image, text[None].expand(image.shape[0], -1, -1), text[None].expand(image.shape[0], -1, -1))
        query, key, value = (
            self.rounded(
                affine(x, self.tensors[f"attention.{name}.weight"], self.tensors[f"attention.{name}.bias"])
            )
            for x, name in zip(inputs, names, strict=True)
        )
        return query, key, value

    def logits(self, image: Tensor) -> Tensor:
        """Logits `[A, B, C]` of unit features `[A, B, D]` over all classes (PAPER 1.7, 5.1)."""
        return self._classify(image, self.text)

    def group_logits(self, image: Tensor, groups: Sequence[range]) -> Tensor:
        """Logits `[A, B, C]` where each group of classes is evaluated alone (PAPER 1.16).

        With `attention_keys: evaluated` the attention sees only the group's classes too.
        """
        if self.config.attention_keys == "all" or not self.any_attention:
            return self.logits(image)
        texts = [self.text[group.start : group.stop] for group in groups]
        return torch.cat([self._classify(image, text) for text in texts], dim=-1)

    def _classify(self, image: Tensor, text: Tensor) -> Tensor:
        fused = self.fuse(self.rounded(image), text)
        return self.rounded(self.rounded(self.clip.logit_scale * fused) @ text.T)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer of each arm: x `[A, B, I]`, weight `[A, O, I]`, bias `[A, O]` -> `[A, B, O]`."""
    return torch.baddbmm(bias[:, None], x, weight.mT)


def attention_scale(config: Student, width: int) -> float:
    """C as a number; `sqrt_width` is the root of D (PAPER 1.15)."""
    return math.sqrt(width) if config.attention_scale == "sqrt_width" else float(config.attention_scale)
