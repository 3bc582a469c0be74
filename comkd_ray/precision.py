"""PromptKD's float16 without loss scaling, emulated in float32 (PAPER 3.8): values on float16's grid.

A product of float16 matrices is summed in float32 and then rounded, so rounding what goes in and what
comes out gives its numbers up to the order of the sum, on any device. What is rounded: see `Train.precision`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Rounding = Callable[[Tensor], Tensor]


class _Float16(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.half().float()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.half().float()


def as_float16(x: Tensor) -> Tensor:
    """The nearest float16 of x, as float32 of the same shape; its gradient is rounded on the way back too.

    Nothing scales the loss: below 2^-25 (3e-8) a number becomes 0, from 65,520 on infinity.
    """
    return _Float16.apply(x)  # type: ignore[no-any-return,no-untyped-call]


def rounding(precision: str) -> Rounding:
    """What `train.precision` does to a tensor between two operations; `mixed` returns the tensor itself."""
    return as_float16 if precision == "float16" else unchanged


def unchanged(x: Tensor) -> Tensor:
    """The tensor itself."""
    return x


def stored_in_float16(precision: str, names: Iterable[str]) -> frozenset[str]:
    """Names of a student's tensors that live in float16: convolutions and linear layers.

    Prompts, BatchNorm and alpha stay in float32, as PromptKD's `convert_weights` leaves them.
    """
    if precision != "float16":
        return frozenset()
    layers = (name for name in names if name.startswith(("projector.", "attention.")))
    return frozenset(name for name in layers if not name.endswith((".bn_weight", ".bn_bias")))


@torch.no_grad()
def round_(x: Tensor) -> Tensor:
    """Put a stored tensor on float16's grid, in place."""
    return x.copy_(x.half())
