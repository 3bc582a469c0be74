"""SGD of many arms is torch's SGD of each; the schedule is the one that PromptKD logs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from comkd_ray.optim import SGD, learning_rate

LOGGED = [
    *(5.0000e-03, 4.9692e-03, 4.8776e-03, 4.7275e-03, 4.5225e-03, 4.2678e-03, 3.9695e-03),
    *(3.6350e-03, 3.2725e-03, 2.8911e-03, 2.5000e-03, 2.1089e-03, 1.7275e-03, 1.3650e-03),
    *(1.0305e-03, 7.3223e-04, 4.7746e-04, 2.7248e-04, 1.2236e-04),
]
MOMENTUM = [0.9, 0.0, 0.5]
DECAY = [5e-4, 0.1, 0.0]
RATES = [0.1, 0.01, 1.0]
STEPS = 5


def start() -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(3, *shape, generator=stream, dtype=torch.float64).requires_grad_()
        for name, shape in {"matrix": (4, 2), "vector": (5,), "scalar": (1,)}.items()
    }


def loss(parameters: dict[str, Tensor]) -> Tensor:
    """Of every arm on its own, `[A]`."""
    return sum(t.sin().flatten(1).square().sum(1) for t in parameters.values())  # type: ignore[return-value]


def rates(step: int) -> Tensor:
    """Also the rate changes from step to step, as it does from epoch to epoch."""
    return torch.tensor(RATES, dtype=torch.float64) / (1 + step)


def ours(parameters: dict[str, Tensor]) -> SGD:
    momentum, decay = (torch.tensor(v, dtype=torch.float64) for v in (MOMENTUM, DECAY))
    return SGD(parameters, momentum, decay)


def torch_alone(arm: int, steps: int) -> dict[str, Tensor]:
    parameters = {name: t[arm : arm + 1].detach().clone().requires_grad_() for name, t in start().items()}
    sgd = torch.optim.SGD(parameters.values(), lr=RATES[arm], momentum=MOMENTUM[arm], weight_decay=DECAY[arm])
    for step in range(steps):
        sgd.param_groups[0]["lr"] = rates(step)[arm].item()
        sgd.zero_grad()
        loss(parameters).sum().backward()
        sgd.step()
    return parameters


def test_every_arm_moves_as_torch_moves_it_alone() -> None:
    parameters = start()
    optimizer = ours(parameters)
    for step in range(STEPS):
        loss(parameters).sum().backward()
        optimizer.step(rates(step))
    for arm in range(3):
        alone = torch_alone(arm, STEPS)
        assert_close({name: t[arm : arm + 1] for name, t in parameters.items()}, alone)


def test_arms_that_stay_go_on_with_their_own_momentum() -> None:
    parameters = start()
    optimizer = ours(parameters)
    for step in range(2):
        loss(parameters).sum().backward()
        optimizer.step(rates(step))
    stay = torch.tensor([2, 0])
    parameters = {name: t.detach()[stay].requires_grad_() for name, t in parameters.items()}
    optimizer.keep(parameters, stay)
    for step in range(2, STEPS):
        loss(parameters).sum().backward()
        optimizer.step(rates(step)[stay])
    for place, arm in enumerate(stay.tolist()):
        alone = torch_alone(arm, STEPS)
        assert_close({name: t[place : place + 1] for name, t in parameters.items()}, alone)


def test_a_step_drops_the_gradients() -> None:
    parameters = start()
    loss(parameters).sum().backward()
    ours(parameters).step(rates(0))
    assert all(t.grad is None for t in parameters.values())


def test_a_parameter_without_gradient_does_not_move_and_does_not_decay() -> None:
    parameters = start()
    before = parameters["vector"].detach().clone()
    loss({name: t for name, t in parameters.items() if name != "vector"}).sum().backward()
    ours(parameters).step(rates(0))
    assert_close(parameters["vector"].detach(), before, rtol=0, atol=0)


def test_an_arm_whose_gradient_is_nan_takes_no_other_with_it() -> None:
    sound, hurt = start(), start()
    for parameters, broken in ((sound, False), (hurt, True)):
        loss(parameters).sum().backward()
        for t in parameters.values():
            assert t.grad is not None
            if broken:
                t.grad[1] = torch.nan
        ours(parameters).step(rates(0))
    for name, t in hurt.items():
        assert t[1].isnan().all()
        assert_close(t[[0, 2]], sound[name][[0, 2]], rtol=0, atol=0)


def test_schedule_is_the_one_that_promptkd_logs() -> None:
    """PAPER 7.1: epochs 2 to 20."""
    computed = [learning_rate(epoch, 20, 0.005, 1e-5) for epoch in range(2, 21)]
    assert computed == pytest.approx(LOGGED, rel=5e-5)


def test_first_epoch_warms_up_at_a_constant_rate() -> None:
    assert learning_rate(1, 20, 0.005, 1e-5) == 1e-5


def test_schedule_scales_with_the_rate_and_never_ends_at_zero() -> None:
    assert learning_rate(2, 8, 0.02, 1e-5) == 0.02
    assert learning_rate(8, 8, 0.02, 1e-5) == pytest.approx(0.02 * learning_rate(8, 8, 1.0, 1e-5))
    assert learning_rate(8, 8, 0.02, 1e-5) > 0
