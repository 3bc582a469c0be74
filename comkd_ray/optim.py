"""SGD with momentum for many arms at once, and the learning-rate schedule of the field."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from comkd_ray.precision import round_, unchanged


def learning_rate(epoch: int, epochs: int, lr: float, warmup_lr: float) -> float:
    """Rate of `epoch` (1 is the first): constant warm-up in the first, then a cosine (PAPER 3.4).

    lr / 2 * (1 + cos(pi * (epoch - 2) / epochs)) for epoch >= 2; the last one never reaches 0.
    """
    if epoch == 1:
        return warmup_lr
    return 0.5 * lr * (1 + math.cos(math.pi * (epoch - 2) / epochs))


class SGD:
    """torch.optim.SGD's rule (momentum, weight decay, no dampening) with rates of each arm.

    Every parameter is `[A, ...]`; momentum, weight_decay and the rate of a step are `[A]`. Those
    named in `in_float16` are stepped as torch steps float16 tensors: every result is rounded.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        momentum: Tensor,
        weight_decay: Tensor,
        in_float16: frozenset[str] = frozenset(),
    ) -> None:
        self.parameters = dict(parameters)
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.in_float16 = in_float16
        self.buffers: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, lr: Tensor) -> None:
        """Update every parameter from its gradient with rates `[A]`, and drop the gradients."""
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            shape = (-1,) + (1,) * (parameter.dim() - 1)
            stored = round_ if name in self.in_float16 else unchanged
            update = stored(stored(parameter.grad) + self.weight_decay.view(shape) * parameter)
            if name in self.buffers:
                update = stored(stored(self.buffers[name].mul_(self.momentum.view(shape))).add_(update))
            self.buffers[name] = update
            stored(parameter.sub_(lr.view(shape) * update))
            parameter.grad = None

    def keep(self, parameters: Mapping[str, Tensor], arms: Tensor) -> None:
        """Go on with the arms of index `arms` only, whose parameters are now `parameters`."""
        self.parameters = dict(parameters)
        self.momentum, self.weight_decay = self.momentum[arms], self.weight_decay[arms]
        self.buffers = {name: buffer[arms] for name, buffer in self.buffers.items()}
