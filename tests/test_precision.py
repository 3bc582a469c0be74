"""`train.precision`: float16 is what numpy and torch call float16, and `mixed` has none of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from comkd_ray import results, study_file
from comkd_ray.cohort import Arm, Cohort, Knobs
from comkd_ray.config import Study
from comkd_ray.losses import normalize
from comkd_ray.material import Card, Material, write_card
from comkd_ray.models import Clip
from comkd_ray.optim import SGD
from comkd_ray.precision import as_float16, round_, rounding, stored_in_float16
from comkd_ray.student import StudentCohort
from comkd_ray.train import Ended, EpochReport, fit

pytestmark = pytest.mark.usefixtures("cpu")

MakeStudy = Callable[..., Study]
MakeArm = Callable[..., Arm]
Prepared = Callable[[Study], tuple[Card, Material]]
FLOAT16 = {"train.precision": "float16"}
OFF = {"student.ifalign": False, "student.edu_attention": False}
PAGE = Path(__file__).parents[1] / "docs" / "stability.md"


@pytest.fixture
def material(prepared: Prepared, make_study: MakeStudy) -> Material:
    return prepared(make_study())[1]


@pytest.fixture
def arm(make_study: MakeStudy) -> MakeArm:
    """arm("name", {...}) -> an arm of the tiny study with these values."""

    def make(name: str, overrides: dict[str, Any]) -> Arm:
        return Arm(name, make_study(overrides))

    return make


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def on_grid(x: Tensor) -> bool:
    """Whether every number is a float16."""
    return torch.equal(x, x.half().float())


# Rounding ---------------------------------------------------------------------------------------


def magnitudes() -> Tensor:
    """From far below float16's smallest number to far above its largest."""
    return draw(4000) * torch.logspace(-10, 8, 4000)


def test_value_and_gradient_are_numpys_float16() -> None:
    x, gradient = magnitudes().requires_grad_(), magnitudes().flip(0)
    y = as_float16(x)
    y.backward(gradient)  # type: ignore[no-untyped-call]
    assert x.grad is not None
    with np.errstate(over="ignore"):
        for ours, exact in ((y, x), (x.grad, gradient)):
            expected = exact.detach().numpy().astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(ours.detach().numpy(), expected)
    assert y.isinf().any()
    assert (y == 0).any()


@pytest.mark.parametrize(
    ("exact", "stored"),
    [(2e-8, 0.0), (4e-8, 2.0**-24), (1e-5, 1.0013580322265625e-05), (65519.0, 65504.0), (65520.0, math.inf)],
)
def test_small_gradients_are_lost_and_large_ones_infinite(exact: float, stored: float) -> None:
    """No loss scaling: subnormal down to 2^-24, and nothing below half of that."""
    x = torch.ones(1, requires_grad=True)
    (as_float16(x) * exact).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.item() == stored


def test_mixed_hands_back_the_very_tensor() -> None:
    x = draw(3)
    assert rounding("mixed")(x) is x
    assert rounding("float16")(x) is not x
    assert stored_in_float16("mixed", ["projector.0.weight"]) == frozenset()


# Optimiser --------------------------------------------------------------------------------------

RATES, MOMENTUM, DECAY = [2**-3, 2**-6], [0.75, 0.5], [2**-11, 2**-3]
"""Float16 themselves: torch on a CPU rounds a rate to float16 too; on a GPU it does not, and nor do we."""


def test_a_step_in_float16_is_torchs_step_of_float16_tensors() -> None:
    """Momentum, decay and rate of each arm, to the last bit."""
    start = round_(draw(2, 5000) / 10)
    ours = {"weight": start.clone().requires_grad_()}
    vectors = (torch.tensor(v) for v in (MOMENTUM, DECAY))
    optimizer = SGD(ours, *vectors, frozenset(ours))
    theirs = [start[arm].half().requires_grad_() for arm in range(2)]
    plain = [
        torch.optim.SGD([theirs[arm]], lr=RATES[arm], momentum=MOMENTUM[arm], weight_decay=DECAY[arm])
        for arm in range(2)
    ]
    for step in range(3):
        gradient = draw(2, 5000, seed=step) / 100
        ours["weight"].grad = gradient.clone()
        optimizer.step(torch.tensor(RATES))
        for arm in range(2):
            theirs[arm].grad = gradient[arm].half()
            plain[arm].step()
    expected = torch.stack(theirs).detach().float()
    assert torch.equal(ours["weight"].detach(), expected)
    assert (expected - start).abs().max() > 0.01


def one_step(value: float, gradient: float, rate: float, *, in_float16: bool, steps: int = 1) -> float:
    """A single weight after steps of plain SGD."""
    weight = torch.tensor([[value]], requires_grad=True)
    names = frozenset({"weight"}) if in_float16 else frozenset()
    optimizer = SGD({"weight": weight}, torch.zeros(1), torch.zeros(1), names)
    for _ in range(steps):
        weight.grad = torch.full((1, 1), gradient)
        optimizer.step(torch.tensor([rate]))
    return weight.item()


def test_an_update_below_half_a_step_of_the_grid_is_lost_however_often_it_comes() -> None:
    """Next to 1.0 the grid's step is 2^-10: a hundred updates of 1e-4 are 0.01, or nothing."""
    assert one_step(1.0, -0.1, 1e-3, in_float16=True, steps=100) == 1.0
    assert one_step(1.0, -0.1, 1e-3, in_float16=False, steps=100) == pytest.approx(1.01, abs=1e-5)
    assert one_step(1.0, -1.0, 1e-3, in_float16=True) == 1 + 2**-10


def test_a_step_of_an_overflowed_gradient_leaves_no_number() -> None:
    assert one_step(1.0, 7e4, 1e-6, in_float16=True) == -math.inf
    assert one_step(1.0, 7e4, 1e-6, in_float16=False) == pytest.approx(0.93)


# Student ----------------------------------------------------------------------------------------

LAYERS = {f"projector.{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias")}
LAYERS |= {f"attention.{name}.{part}" for name in ("query", "key", "value") for part in ("weight", "bias")}
IN_FLOAT32 = {"visual", "projector.0.bn_weight", "projector.0.bn_bias", "alpha"}


def test_layers_are_stored_in_float16_and_prompts_and_batch_norm_are_not(
    material: Material, arm: MakeArm
) -> None:
    """PAPER 3.8, at the start and after training."""
    cohort = Cohort([arm("one", FLOAT16)], material)
    for epoch in (1, 2):
        tensors = {name: t.detach().clone() for name, t in cohort.student.tensors.items()}
        assert {name for name, t in tensors.items() if on_grid(t)} >= LAYERS
        cohort.train_epoch(epoch, lambda done, total: None)
    trained = cohort.student.tensors
    assert set(trained) == LAYERS | IN_FLOAT32
    assert {name for name, t in trained.items() if on_grid(t.detach())} == LAYERS
    learns = [name for name in trained if not name.startswith("attention")]
    assert all((trained[name] != tensors[name]).any() for name in learns)


class Float16Student(nn.Module):
    """PromptKD's projector and logits in torch's own float16, one arm's numbers in it (PAPER 2.4, 5.1)."""

    def __init__(self, student: StudentCohort) -> None:
        super().__init__()
        first, second = (student.tensors[f"projector.{layer}.weight"][0].detach() for layer in (0, 1))
        self.layers = nn.Sequential(
            nn.Linear(first.shape[1], len(first)), nn.BatchNorm1d(len(first)), nn.ReLU(),
            nn.Linear(second.shape[1], len(second)),
        )  # fmt: skip
        for place, layer in ((0, 0), (3, 1)):
            linear: Any = self.layers[place]
            linear.weight.data = student.tensors[f"projector.{layer}.weight"][0].detach().half()
            linear.bias.data = student.tensors[f"projector.{layer}.bias"][0].detach().half()
        self.text, self.scale = student.text.half(), student.clip.logit_scale

    def forward(self, features: Tensor) -> Tensor:
        linear, norm, relu, last = self.layers
        x = linear(features)
        image = last(relu(norm(x.float()).half()))  # cuDNN's BatchNorm computes float16 in float32
        image = image / image.norm(dim=-1, keepdim=True)
        return (self.scale * image) @ self.text.T  # type: ignore[no-any-return]


def test_projector_and_logits_are_those_of_torchs_float16(
    make_study: MakeStudy, tiny_clip: Callable[[str], Clip]
) -> None:
    """Value and gradients of real float16 tensors: some numbers round to a neighbour, the sums differ."""
    text = normalize(draw(5, 24, seed=9))
    student = StudentCohort([make_study(FLOAT16 | OFF)], tiny_clip("student"), text)
    plain, features = Float16Student(student), draw(1, 32, 16)
    logits, expected = student.logits(normalize(student.project(features))), plain(features[0].half())
    assert expected.dtype == torch.float16
    assert on_grid(logits.detach())
    assert_close(logits[0], expected.float(), rtol=5e-3, atol=5e-2)
    pull = draw(32, 5, seed=2) / 100
    (logits[0] * pull).sum().backward()
    (expected * pull.half()).sum().backward()
    for place, layer in ((0, 0), (3, 1)):
        linear: Any = plain.layers[place]
        ours = student.tensors[f"projector.{layer}.weight"].grad
        assert ours is not None
        exact = linear.weight.grad.float()
        assert (ours[0] - exact).norm() < 5e-3 * exact.norm()


def operations(root: Tensor) -> set[str]:
    """Names of every operation that a tensor came from."""
    found, waiting = set(), [root.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [before for before, _ in node.next_functions]
    return {type(node).__name__ for node in found}


@pytest.mark.parametrize(("precision", "rounds"), [("mixed", False), ("float16", True)])
def test_mixed_has_no_rounding_anywhere_between_loss_and_parameters(
    material: Material, arm: MakeArm, precision: str, rounds: bool
) -> None:
    one = arm("one", {"train.precision": precision})
    cohort = Cohort([one], material)
    knobs = Knobs.of([one.study], cohort.device)
    terms = cohort.losses(cohort.train_images[None, :8], 1, torch.tensor([0]), knobs)
    assert ("_Float16Backward" in operations(terms["loss"])) == rounds
    assert bool(cohort.optimizer.in_float16) == rounds


# Training ---------------------------------------------------------------------------------------

TOO_LARGE = OFF | {"loss.kd_weight": 1e8, "train.lr": 1e-9, "train.warmup_lr": 1e-9}
TOO_SMALL = OFF | {"loss.kd_weight": 1e-7, "train.lr": 1e6, "train.warmup_lr": 1e6, "train.weight_decay": 0.0}


def train(arms: list[Arm], material: Material) -> dict[str, Ended]:
    reports: list[EpochReport] = []
    fit(arms, material, reports.append)
    return {one.arm["arm"]: one for report in reports for one in report.ended}


def scores(ended: Ended) -> list[tuple[Any, ...]]:
    return [(row["loss"], row["objective"]) for row in ended.epochs]


def test_an_arm_whose_gradients_overflow_fails_alone(material: Material, arm: MakeArm) -> None:
    """Weight times rate is the same 0.1 for both, so only the gradients' size can be the reason."""
    large, sound = arm("large", FLOAT16 | TOO_LARGE), arm("sound", FLOAT16 | OFF)
    ended = train([large, sound], material)
    assert {name: one.arm["status"] for name, one in ended.items()} == {
        "large": "failed",
        "sound": "complete",
    }
    assert ended["large"].arm["error"] == "loss is not finite in epoch 1"
    assert ended["large"].epochs[0]["loss"] is None
    np.testing.assert_allclose(scores(ended["sound"]), scores(train([sound], material)["sound"]), rtol=1e-4)
    assert train([arm("large", TOO_LARGE)], material)["large"].arm["status"] == "complete"


def moved(overrides: dict[str, Any], material: Material, arm: MakeArm) -> float:
    """How far the trained tensors went in the first epoch, at most."""
    one, start = (Cohort([arm("one", overrides)], material) for _ in range(2))
    one.train_epoch(1, lambda done, total: None)
    pairs = [(t, start.student.tensors[name]) for name, t in one.student.tensors.items()]
    return max(float((t - before).detach().abs().max()) for t, before in pairs)


def test_gradients_that_underflow_teach_nothing(material: Material, arm: MakeArm) -> None:
    assert moved(FLOAT16 | TOO_SMALL, material, arm) == 0
    assert moved(TOO_SMALL, material, arm) > 1e-3


# The page ---------------------------------------------------------------------------------------


def write_run(run: Path) -> None:
    """Arms of six seeds, two precisions and two weights; float16 spreads three times as wide."""
    for number in range(24):
        precision, weight, seed = (
            ("mixed", "float16")[number // 12],
            (1.0, 10.0)[number // 6 % 2],
            number % 6 + 1,
        )
        value = 20 + (seed - 3.5) * (3 if precision == "float16" else 1)
        values = {"train.precision": precision, "loss.kd_weight": weight, "train.seed": seed}
        scores = {f"test_{name}": value for name in ("base_accuracy", "novel_accuracy", "harmonic_mean")}
        row = {"arm": f"arm{number:02}", "number": number, "status": "complete", "best_epoch": 3, **values}
        epochs = [{"arm": row["arm"], "epoch": e, "loss": 4.0 - e, **scores} for e in (1, 2, 3)]
        results.write_record(run, row | scores, epochs)
    results.compact(run)


def say(block: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one of the page's two Python blocks where `reports/stability` is."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    monkeypatch.chdir(folder)
    exec(compile(blocks[block], str(PAGE), "exec"), {})


def test_the_page_prints_spread_and_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "reports" / "stability")
    say(0, tmp_path, monkeypatch)
    said = capsys.readouterr().out
    for weight in ("1.0", "10.0"):
        assert f"| {weight} | mixed | test_harmonic_mean | 6 | 20.00 | 1.87 | 17.50 | 22.50 | 5.00 |" in said
        assert (
            f"| {weight} | float16 | test_harmonic_mean | 6 | 20.00 | 5.61 | 12.50 | 27.50 | 15.00 |" in said
        )
        assert f"| {weight} | test_novel_accuracy | +0.00 | -5.00 | +5.00 | 0.027 |" in said
        assert f"| {weight} | float16 | 2 | 2.0000 | 0.0000 |" in said


def test_the_page_counts_what_float16_loses(
    prepared: Prepared,
    make_study: MakeStudy,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study, run = make_study(OFF), tmp_path / "reports" / "stability"
    run.mkdir(parents=True)
    study_file.dump(study, run / "study.yaml")
    write_card(run, prepared(study)[0])
    monkeypatch.setenv("COMKD_CACHE", str(cache))
    say(1, tmp_path, monkeypatch)
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[1:3] for line in lines] == 2 * [
        [p, r] for p in ("mixed", "float16") for r in ("0.01", "0.05")
    ]
    still = [float(line[4].split()[0]) for line in lines]
    assert still[2] > still[0]
