"""A training step never waits for the device: what the host asks a tensor for does not grow with steps.

On a GPU, `.item()`, `.tolist()`, `if tensor`, `.cpu()` and a boolean mask wait until all that was queued is
done, so the next step cannot be prepared meanwhile. `torch.tensor(..., device)` and `.to(device)` without
`non_blocking` wait, too. Whether they are called can be seen on any device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from comkd_ray.cohort import Arm, Cohort
from comkd_ray.config import Study
from comkd_ray.material import Card, Material
from comkd_ray.metrics import predict

pytestmark = pytest.mark.usefixtures("cpu")

ASKING = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__"}
"""Methods of a tensor whose answer is on the host."""
SENDING = {"tensor", "as_tensor"}
"""Functions that make a tensor of numbers of the host, and wait until the device has it."""
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_consecutive"}
"""Operators whose result, or its size, the host has to know."""


class _Asked(TorchFunctionMode):
    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, given = getattr(func, "__name__", ""), kwargs or {}
        device = any(isinstance(one, torch.device | str) for one in (*args[1:], *given.values()))
        blocks = name == "to" and device and not given.get("non_blocking")
        self.seen[name] += name in ASKING or name in SENDING or blocks
        return func(*args, **given)


class _Waited(TorchDispatchMode):
    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        masked = name.startswith("index") and any(
            isinstance(leaf, Tensor) and leaf.dtype in (torch.bool, torch.uint8)
            for leaf in tree_leaves(args[1:2])
        )
        self.seen[name] += name in WAITING or masked
        return func(*args, **(kwargs or {}))


class Watch:
    """Counts what waits for the device."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.modes = (_Asked(self.seen), _Waited(self.seen))

    def __enter__(self) -> Watch:
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(kind, error, trace)

    @property
    def count(self) -> dict[str, int]:
        return {name: count for name, count in self.seen.items() if count}


x = torch.tensor([1.0, 2.0, 0.0])
WAITS: dict[str, Callable[[], object]] = {
    "item": lambda: x[0].item(),
    "tolist": lambda: x.tolist(),
    "float": lambda: float(x[0]),
    "if": lambda: bool(x[0] > 0),
    "cpu": lambda: x.cpu(),
    "numpy": lambda: x.numpy(),
    "mask": lambda: x[x > 0],
    "masked assignment": lambda: x.clone().index_put_((x > 0,), x[0]),
    "nonzero": lambda: x.nonzero(),
    "sending": lambda: x.to(torch.device("cpu")),
    "sending numbers": lambda: torch.tensor([1.0], device="cpu"),
}


@pytest.mark.parametrize("what", WAITS)
def test_what_waits_is_counted(what: str) -> None:
    with Watch() as watch:
        WAITS[what]()
    assert watch.count


def test_what_does_not_wait_is_not_counted() -> None:
    place = torch.tensor([2, 0])
    with Watch() as watch:
        y = (x * 2 + x[place].sum()).where(x > 0, torch.nan).to(torch.float64)
        y.clone().requires_grad_().square().sum().backward()
        torch.from_numpy(np.ones(3)).to("cpu", non_blocking=True)
    assert watch.count == {}


def test_predictions_wait_for_nothing() -> None:
    logits, labels = torch.randn(2, 6, 5), torch.tensor([0, 4, 1, 3, 2, 2])
    with Watch() as watch:
        chosen = predict(logits, labels, (range(3), range(3, 5)))
    assert watch.count == {}
    assert chosen.shape == (2, 6)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"student.prompt_length": 0},
        {"train.precision": "float16"},
        {"student.alpha": "vector", "student.align_features": "raw", "student.align_axis": "width"},
    ],
    ids=["prompted", "banked tower", "float16", "other readings"],
)
def test_no_step_of_an_epoch_waits(
    make_study: Callable[..., Study],
    prepared: Callable[[Study], tuple[Card, Material]],
    overrides: dict[str, Any],
) -> None:
    """Two seeds, all modules; an epoch of 2 steps and one of 8 ask the device equally often."""
    study = make_study(overrides | {"train.batch_size": 4})
    other = study.model_copy(update={"train": study.train.model_copy(update={"seed": 2})})
    material, counts = prepared(study)[1], []
    for steps in (1, 2, 8):  # the first also maps banks and fills what is kept
        cohort = Cohort([Arm("1", study), Arm("2", other)], material)
        cohort.train_images = cohort.train_images[: 4 * steps]
        done: list[int] = []
        with Watch() as watch:
            cohort.train_epoch(1, lambda step, total, done=done: done.append(step))
        assert done[-1] == steps
        counts.append(watch.count)
    assert counts[1] == counts[2]
