"""Stage II: a cohort gives each arm what it gets alone, and both modules off is PromptKD.

Everything runs on real material: a tiny tuned teacher, its banks, a tiny student, small photographs.
"""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from comkd_ray.bank import pixels_of
from comkd_ray.cohort import Arm, Cohort, Knobs, batch_order
from comkd_ray.config import Halving, Study
from comkd_ray.data.datasets import TEST, TRAIN, VAL
from comkd_ray.material import Card, Material, open_material, read_teacher
from comkd_ray.models import Clip
from comkd_ray.prepare import prepare
from comkd_ray.protocols import OBJECTIVE
from comkd_ray.train import EpochReport, Share, fit, rung_epochs, threshold

pytestmark = pytest.mark.usefixtures("cpu")

MakeStudy = Callable[..., Study]
Prepared = Callable[[Study], tuple[Card, Material]]
Row = dict[str, Any]


@pytest.fixture
def material(prepared: Prepared, make_study: MakeStudy) -> Material:
    return prepared(make_study())[1]


@pytest.fixture
def arm(make_study: MakeStudy) -> Callable[..., Arm]:
    """arm("name", {...}) -> an arm of the tiny study with these values."""

    def make(name: str, overrides: dict[str, Any] | None = None, protected: bool = False) -> Arm:
        return Arm(name, make_study(overrides), protected)

    return make


def nothing(done: int, total: int) -> None:
    """A meter that nobody reads."""


def train(arms: list[Arm], material: Material, **how: Any) -> tuple[dict[str, Row], list[Row]]:
    """The rows of `arms` by name and of `epochs`, without what the clock says."""
    reports: list[EpochReport] = []
    fit(arms, material, reports.append, **how)
    return ended(reports)


def ended(reports: list[EpochReport]) -> tuple[dict[str, Row], list[Row]]:
    over = [one for report in reports for one in report.ended]
    clock = ("seconds", "teacher_seconds_saved")
    rows = [{k: v for k, v in row.items() if k not in clock} for one in over for row in one.epochs]
    arms = {one.arm["arm"]: {k: v for k, v in one.arm.items() if k not in clock} for one in over}
    assert len(arms) == len(over), "an arm ended twice"
    return arms, sorted(rows, key=lambda row: (row["arm"], row["epoch"]))


def assert_same_rows(ours: list[Row], theirs: list[Row]) -> None:
    """Numbers to 1e-4, everything else exactly."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        numbers = {key for key, value in other.items() if isinstance(value, float)}
        assert {k: v for k, v in one.items() if k not in numbers} == {
            k: v for k, v in other.items() if k not in numbers
        }
        assert [one[k] for k in numbers] == pytest.approx([other[k] for k in numbers], rel=1e-4, abs=1e-6)


def assert_same_records(ours: dict[str, Row], theirs: dict[str, Row]) -> None:
    assert set(ours) == set(theirs)
    assert_same_rows([ours[name] for name in theirs], list(theirs.values()))


# Both modules off is PromptKD -------------------------------------------------------------------


class PromptKD(nn.Module):
    """PromptKD's student, written out from PAPER 2.4, 2.5 and 5.1 over open_clip's own layers."""

    def __init__(self, clip: Clip, start: dict[str, Tensor]) -> None:
        super().__init__()
        self.tower: Any = clip.visual
        self.logit_scale = clip.logit_scale
        self.prompts = nn.ParameterList([nn.Parameter(layer.clone()) for layer in start["visual"]])
        hidden, inputs = start["projector.0.weight"].shape
        self.projector = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(), nn.Conv2d(hidden, hidden, 1)
        )
        for place, name in ((0, "projector.0"), (3, "projector.1")):
            conv: Any = self.projector[place]
            conv.weight.data = start[f"{name}.weight"][:, :, None, None].clone()
            conv.bias.data = start[f"{name}.bias"].clone()

    @property
    def learned(self) -> list[nn.Parameter]:
        """Prompts, first convolution, batch norm, second convolution; the tower is frozen."""
        return [*self.prompts, *self.projector.parameters()]

    def features(self, images: Tensor) -> Tensor:
        tower, batch = self.tower, len(images)
        x = tower.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([tower.class_embedding.expand(batch, 1, -1), x], dim=1) + tower.positional_embedding
        tokens = x.shape[1]
        x = tower.ln_pre(torch.cat([x, self.prompts[0].expand(batch, -1, -1)], dim=1))
        for layer, block in enumerate(tower.transformer.resblocks):
            if 0 < layer < len(self.prompts):
                x = torch.cat([x[:, :tokens], self.prompts[layer].expand(batch, -1, -1)], dim=1)
            x = block(x)
        return tower.ln_post(x[:, 0]) @ tower.proj  # type: ignore[no-any-return]

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        image = self.projector(self.features(images)[:, :, None, None])[:, :, 0, 0]
        return self.logit_scale * F.normalize(image, dim=1) @ text.T  # type: ignore[no-any-return]


def promptkd_loss(student: Tensor, teacher: Tensor, temperature: float, weight: float) -> Tensor:
    """PAPER 5.2."""
    return weight * (
        F.kl_div(
            F.log_softmax(student / temperature, dim=1),
            F.softmax(teacher / temperature, dim=1),
            reduction="sum",
        )
        * (temperature * temperature)
        / student.numel()
    )


BOTH_OFF = {"student.ifalign": False, "student.edu_attention": False}


def test_both_modules_off_is_promptkd(material: Material, arm: Callable[..., Arm]) -> None:
    """PAPER 7.2: logits, loss, gradients and the parameters after a step of SGD."""
    weight, classes, temperature = 40.0, 4, 2.0
    off = arm("off", BOTH_OFF | {"loss.kd_weight": weight / classes, "loss.temperature": temperature})
    cohort = Cohort([off], material)
    start = {name: t[0].detach().clone() for name, t in cohort.student.tensors.items()}
    plain = PromptKD(material.student, start)
    sgd = torch.optim.SGD(plain.learned, lr=0.005, momentum=0.9, weight_decay=5e-4)
    places, device = torch.tensor([0]), torch.device("cpu")
    for step in range(3):
        batch = batch_order(cohort.train_images, 1, 1)[step * 8 : step * 8 + 8]
        images = pixels_of(material.photographs.store, batch, 1, 32, device)
        taught = F.normalize(material.train_bank.take(0, batch, device), dim=1)
        teacher_logits = material.card.teacher_scale * taught @ material.text.T
        logits = plain(material.student.prepare(images), material.text)
        loss = promptkd_loss(logits, teacher_logits, temperature, weight)
        sgd.zero_grad()
        loss.backward()
        terms = cohort.losses(batch[None], 1, places, Knobs.of([off.study], device))
        assert_close(terms["loss"], loss[None])
        terms["loss"].sum().backward()
        ours = [tensor for name, tensor in cohort.student.tensors.items() if name in TRAINED]
        gradients = [tensor.grad for tensor in ours if tensor.grad is not None]
        assert len(gradients) == len(TRAINED)
        assert distance(gradients, [p.grad for p in plain.learned if p.grad is not None]) < 1e-4
        sgd.step()
        cohort.optimizer.step(torch.tensor([0.005]))
        assert distance(ours, plain.learned) < 1e-5
    moved = distance(ours, PromptKD(material.student, start).learned)
    assert moved > 1e-3, "nothing was learned"


TRAINED = ("visual", *(f"projector.0.{p}" for p in ("weight", "bias", "bn_weight", "bn_bias")))
TRAINED += ("projector.1.weight", "projector.1.bias")


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Of all numbers together, in parts of their length."""
    one, other = (torch.cat([t.detach().flatten() for t in tensors]) for tensors in (ours, theirs))
    return float((one - other).norm() / other.norm())


def test_switching_on_at_the_start_adds_only_the_alignment(
    material: Material, arm: Callable[..., Arm]
) -> None:
    """At alpha 0 the distillation term is PromptKD's; IFAlign comes on top with its weight."""
    weights = {"loss.kd_weight": 3.0, "loss.align_weight": 7.0}
    arms = [arm("off", weights | BOTH_OFF), arm("on", weights)]
    cohort = Cohort(arms, material)
    batch = cohort.train_images[None, :8]
    terms = cohort.losses(batch, 1, torch.tensor([0, 0]), Knobs.of([a.study for a in arms], cohort.device))
    assert_close(terms["loss_kd"][1], terms["loss_kd"][0])
    assert_close(terms["loss"][0], 3 * terms["loss_kd"][0])
    assert terms["loss_align"][1] > 0
    assert_close(terms["loss"][1], 3 * terms["loss_kd"][1] + 7 * terms["loss_align"][1])


@pytest.mark.parametrize("features", ["normalized", "raw"])
def test_align_sees_features_after_or_before_normalisation(
    material: Material, arm: Callable[..., Arm], features: str
) -> None:
    """PAPER 1.12."""
    one = arm("one", {"student.align_features": features, "student.align_reduction": "sum"})
    cohort = Cohort([one], material)
    batch = cohort.train_images[None, :8]
    terms = cohort.losses(batch, 1, torch.tensor([0]), Knobs.of([one.study], cohort.device))
    tokens = cohort._embed(batch[0], 1)[None]
    student = cohort.student.project(cohort.student.encode(tokens))[0]
    teacher = material.train_bank.take(0, batch[0], cohort.device)
    if features == "normalized":
        student, teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    means = (student.mean(0) - teacher.mean(0)).abs().sum()
    variances = (student.var(0, correction=0) - teacher.var(0, correction=0)).abs().sum()
    assert_close(terms["loss_align"][0], means + variances)


# A cohort is its arms alone ---------------------------------------------------------------------

MIXED: dict[str, dict[str, Any]] = {
    "full": {"loss.temperature": 2.0, "train.lr": 0.2, "student.attention_scale": 0.1},
    "off": BOTH_OFF | {"loss.kd_weight": 3.0, "train.weight_decay": 0.01},
    "align": {"student.edu_attention": False, "loss.align_weight": 20.0, "train.seed": 2},
    "edu": {"student.ifalign": False, "train.momentum": 0.5, "train.seed": 2, "train.warmup_lr": 0.1},
}


def used(cohort: Cohort, place: int) -> dict[str, Tensor]:
    """What an arm's numbers hang on: without EduAttention, its layers are of no effect."""
    off = not cohort.arms[place].study.student.edu_attention
    tensors = {name: t[place] for name, t in cohort.student.tensors.items()}
    return {k: t.detach() for k, t in tensors.items() if not (off and k.startswith("attention"))}


def test_arms_of_a_cohort_get_the_parameters_that_they_get_alone(
    material: Material, arm: Callable[..., Arm]
) -> None:
    arms = [arm(name, overrides) for name, overrides in MIXED.items()]
    together = Cohort(arms, material)
    alone = [Cohort([one], material) for one in arms]
    for cohort in (together, *alone):
        for epoch in (1, 2):
            cohort.train_epoch(epoch, nothing)
    start = Cohort(arms, material)
    for place, cohort in enumerate(alone):
        ours, theirs, before = used(together, place), used(cohort, 0), used(start, place)
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert (ours["visual"] - before["visual"]).abs().max() > 1e-3, "nothing was learned"
        for name, running in together.student.running.items():
            assert_close(running[place], cohort.student.running[name][0], rtol=1e-4, atol=1e-5)


def test_arms_of_a_cohort_get_the_rows_that_they_get_alone(
    material: Material, arm: Callable[..., Arm]
) -> None:
    arms = [arm(name, overrides) for name, overrides in MIXED.items()]
    together, epochs = train(arms, material)
    assert list(together) == list(MIXED)
    for one in arms:
        alone, rows = train([one], material)
        assert_same_records({one.arm: together[one.arm]}, alone)
        assert_same_rows([row for row in epochs if row["arm"] == one.arm], rows)


def test_rows_say_what_was_on(material: Material, arm: Callable[..., Arm]) -> None:
    arms = [arm(name, overrides) for name, overrides in MIXED.items()]
    _, rows = train(arms, material)
    of_epoch_2 = {row["arm"]: row for row in rows if row["epoch"] == 2}
    assert {name for name, row in of_epoch_2.items() if row["loss_align"] is None} == {"off", "edu"}
    assert {name for name, row in of_epoch_2.items() if row["alpha"] == 0} == {"off", "align"}
    assert {row["lr"] for row in rows if row["epoch"] == 1} == {0.01, 0.1}
    assert [of_epoch_2[name]["lr"] for name in MIXED] == [0.2, 0.05, 0.05, 0.05]


def test_alignment_of_weight_0_is_measured_and_has_no_effect(
    material: Material, arm: Callable[..., Arm]
) -> None:
    silent, off = arm("silent", {"loss.align_weight": 0.0}), arm("off", {"student.ifalign": False})
    rows, off_rows = (train([one], material)[1] for one in (silent, off))
    assert all(row["loss_align"] > 0 for row in rows)
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in off_rows], rel=1e-5)


def test_one_batch_is_seen_by_all_arms_of_a_seed_and_all_images_in_an_epoch() -> None:
    images = np.arange(10, 50)
    first = batch_order(images, 1, 1)
    assert sorted(first.tolist()) == images.tolist()
    assert first.tolist() == batch_order(images, 1, 1).tolist()
    assert first.tolist() != batch_order(images, 1, 2).tolist()
    assert first.tolist() != batch_order(images, 2, 1).tolist()


def test_the_last_batch_is_dropped_where_it_is_not_full(material: Material, arm: Callable[..., Arm]) -> None:
    """PAPER 5.18: 32 images in batches of 12 are 2 steps."""
    seen: list[tuple[int, int]] = []
    fit([arm("one")], material, lambda _: None, meter=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_loss_of_a_batch_falls_under_its_own_gradient(
    material: Material, arm: Callable[..., Arm]
) -> None:
    arms = [arm(name, overrides) for name, overrides in MIXED.items()]
    cohort = Cohort(arms, material)
    knobs, batch = Knobs.of([one.study for one in arms], cohort.device), cohort.train_images[None, :12]
    losses = []
    for _ in range(20):
        loss = cohort.losses(batch, 1, torch.zeros(4, dtype=torch.long), knobs)["loss"]
        losses.append(loss.tolist())
        loss.sum().backward()
        cohort.optimizer.step(torch.full((4,), 1e-3))
    assert all(last < 0.8 * first for first, last in zip(losses[0], losses[-1], strict=True)), losses


def test_the_record_is_that_of_the_best_epoch_by_validation(
    material: Material, arm: Callable[..., Arm]
) -> None:
    arms = [
        arm(f"seed {seed}", {"train.seed": seed, "train.epochs": 6, "train.lr": 0.5}) for seed in range(4)
    ]
    records, rows = train(arms, material)
    not_last = 0
    for one in arms:
        own = [row for row in rows if row["arm"] == one.arm]
        best = max(row[OBJECTIVE] for row in own)
        first = next(row for row in own if row[OBJECTIVE] == best)
        record = records[one.arm]
        assert record["best_epoch"] == first["epoch"]
        assert record["epochs_done"] == 6
        for key, value in first.items():
            if key.startswith(("val_", "test_")):
                assert record[key] == value
        assert [row["epoch"] for row in own if "test_base_accuracy" in row] == [first["epoch"]]
        not_last += record["best_epoch"] != 6
    assert not_last, "every arm was best at its end: this test shows nothing"


@pytest.mark.parametrize("selection", ["strict", "promptkd"])
def test_the_last_look_at_test_images_is_the_arms_time_and_no_epochs(
    make_study: MakeStudy, prepared: Prepared, selection: str
) -> None:
    """Else what an arm that left after one epoch would have taken for all of them is too much."""
    study = make_study({"selection": selection})
    reports: list[EpochReport] = []
    fit([Arm("a", study)], prepared(study)[1], reports.append)
    (over,) = reports[-1].ended
    epochs = sum(row["seconds"] for row in over.epochs)
    assert (over.arm["seconds"] > epochs) == (selection == "strict")


# Evaluation -------------------------------------------------------------------------------------


def test_scores_are_those_of_one_image_at_a_time(material: Material, arm: Callable[..., Arm]) -> None:
    arms = [arm(name, overrides) for name, overrides in MIXED.items()]
    cohort = Cohort(arms, material)
    cohort.train_epoch(1, nothing)
    cohort.train_epoch(2, nothing)
    student, photographs, store = cohort.student, material.photographs, material.photographs.store
    scores = cohort.evaluate()
    cohort.charge(
        [{"arm": name, "epoch": 2, "loss": 1.0} | row for name, row in zip(MIXED, scores, strict=True)], 1
    )
    cohort.test(list(MIXED))
    scores = [cohort.history[name][0] for name in MIXED]
    assert not student.training
    counted: list[dict[str, list[bool]]] = [{} for _ in arms]
    with torch.no_grad():
        for image in [*photographs.part(VAL), *photographs.part(TEST)]:
            label = int(photographs.labels[image])
            half = slice(0, 2) if label < 2 else slice(2, 4)
            part = "val" if photographs.table.parts[image] == VAL else "test"
            pixels = pixels_of(store, np.array([image]), 0, 32, cohort.device)
            tokens = material.student.visual._embeds(material.student.prepare(pixels))  # type: ignore[operator]
            logits = student.logits(F.normalize(student.project(student.encode(tokens[None])), dim=-1))
            taught = material.val_bank.take(0, np.array([image]), cohort.device) @ material.text.T
            teacher_says = int(taught[0, half].argmax()) + half.start
            for place in range(len(arms)):
                said = int(logits[place, 0, half].argmax()) + half.start
                target = teacher_says if part == "val" and label >= 2 else label
                key = f"{part} {'base' if label < 2 else 'novel'}"
                counted[place].setdefault(key, []).append(said == target)
    for score, hits in zip(scores, counted, strict=True):
        percent = {key: 100 * sum(values) / len(values) for key, values in hits.items()}
        assert score["val_base_accuracy"] == pytest.approx(percent["val base"])
        assert score["val_novel_agreement"] == pytest.approx(percent["val novel"])
        assert score["test_base_accuracy"] == pytest.approx(percent["test base"])
        assert score["test_novel_accuracy"] == pytest.approx(percent["test novel"])


def relabelled(material: Material, part: int, base: bool) -> Material:
    """The material with every label of one half of a part replaced by another of that half."""
    photographs = material.photographs
    labels = photographs.labels.copy()
    half = labels < 2 if base else labels >= 2
    chosen = half & (photographs.table.parts == part)
    labels[chosen] = labels[chosen] ^ 1  # 0 and 1 are base, 2 and 3 novel
    assert (labels != photographs.labels).sum() == chosen.sum() > 0
    return replace(
        material, photographs=replace(photographs, table=replace(photographs.table, labels=labels))
    )


def test_novel_labels_of_validation_are_never_used(material: Material, arm: Callable[..., Arm]) -> None:
    arms = racers(arm, halved=False)
    assert train(arms, relabelled(material, VAL, base=False)) == train(arms, material)


def test_base_labels_of_validation_do_count(material: Material, arm: Callable[..., Arm]) -> None:
    """Two base classes: wrong becomes right. So the tests beside this one can fail."""
    arms = racers(arm, halved=False)
    rows, other_rows = (train(arms, each)[1] for each in (material, relabelled(material, VAL, base=True)))
    scores, others = ([row["val_base_accuracy"] for row in each] for each in (rows, other_rows))
    assert others == pytest.approx([100 - score for score in scores])
    assert set(scores) != {50}


def test_labels_of_training_images_are_never_used(material: Material, arm: Callable[..., Arm]) -> None:
    """PAPER 2.10, 5.5: stage II is unlabelled."""
    arms = racers(arm, halved=False)
    hidden = relabelled(relabelled(material, TRAIN, base=False), TRAIN, base=True)
    assert train(arms, hidden) == train(arms, material)


def test_test_labels_change_test_scores_and_nothing_else(material: Material, arm: Callable[..., Arm]) -> None:
    arms = racers(arm, halved=False)
    other = relabelled(relabelled(material, TEST, base=False), TEST, base=True)
    records, rows = train(arms, material)
    changed, changed_rows = train(arms, other)

    assert [seen(row) for row in changed_rows] == [seen(row) for row in rows]
    assert {n: seen(r) for n, r in changed.items()} == {n: seen(r) for n, r in records.items()}
    for name, record in records.items():  # two classes a half: wrong becomes right
        assert changed[name]["test_base_accuracy"] == pytest.approx(100 - record["test_base_accuracy"])


# Halving ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eta", "min_epochs", "epochs", "rungs"),
    [(3, 2, 20, [2, 6, 18]), (2, 1, 8, [1, 2, 4]), (2, 3, 3, []), (3, 1, 3, [1])],
)
def test_rungs_are_powers_below_the_full_budget(
    eta: int, min_epochs: int, epochs: int, rungs: list[int]
) -> None:
    assert rung_epochs(Halving(eta=eta, min_epochs=min_epochs), epochs) == rungs


def test_without_halving_there_is_no_rung_and_everything_is_enough() -> None:
    assert rung_epochs(None, 20) == []
    assert threshold([1.0, 2.0], [], None) == -math.inf


@pytest.mark.parametrize(
    ("values", "earlier", "eta", "enough"),
    [
        ([50.0, 40.0, 30.0, 20.0], [], 2, 40.0),  # the better two of four
        ([50.0, 40.0, 30.0, 20.0, 10.0], [], 2, 30.0),  # three of five: rounded up
        ([50.0, 40.0, 30.0], [], 3, 50.0),
        ([7.0], [], 3, 7.0),  # the first arm that arrives stays
        ([50.0, 40.0], [90.0, 80.0, 10.0], 2, 50.0),  # the third of five
        ([50.0, 40.0], [90.0, 80.0, 70.0, 60.0], 2, 70.0),  # nobody here is good enough
        ([], [30.0, 20.0], 2, 30.0),
        ([], [], 2, -math.inf),
        ([40.0, 40.0, 40.0, 40.0], [], 2, 40.0),  # equals stay together
    ],
)
def test_the_best_of_all_that_reached_the_rung_stay(
    values: list[float], earlier: list[float], eta: int, enough: float
) -> None:
    assert threshold(values, earlier, Halving(eta=eta)) == enough


HALVED = {"search.halving": {"eta": 3, "min_epochs": 1}, "train.epochs": 4}


def racers(arm: Callable[..., Arm], halved: bool) -> list[Arm]:
    shared = HALVED if halved else {"train.epochs": 4}
    rates = [0.3, 1e-6, 0.1, 1e-6, 0.02, 1e-6, 0.05, 1e-6, 0.01, 1e-6]
    return [
        arm(f"racer {i}", shared | {"train.lr": lr, "train.warmup_lr": lr, "train.seed": i})
        for i, lr in enumerate(rates)
    ]


def survivors_by_hand(full: dict[str, list[float]], history: dict[int, list[float]]) -> dict[str, int]:
    """Epochs that each arm runs, from the values that it has in each epoch when nothing is halved."""
    running, done = list(full), dict.fromkeys(full, 4)
    for rung in (1, 3):
        values = sorted([full[name][rung - 1] for name in running] + history.get(rung, []), reverse=True)
        enough = values[math.ceil(len(values) / 3) - 1]
        for name in list(running):
            if full[name][rung - 1] < enough:
                running.remove(name)
                done[name] = rung
    return done


def seen(row: Row) -> Row:
    """A row without test scores: an arm is tested at the best of the epochs that it ran."""
    return {key: value for key, value in row.items() if not key.startswith("test_")}


@pytest.mark.parametrize("history", [{}, {1: [100.0] * 3 + [0.0] * 2}])
def test_the_weakest_leave_at_the_rungs_and_the_others_never_notice(
    material: Material, arm: Callable[..., Arm], history: dict[int, list[float]]
) -> None:
    _, unhalved = train(racers(arm, halved=False), material)
    full: dict[str, list[float]] = {}
    for row in unhalved:
        full.setdefault(row["arm"], []).append(row[OBJECTIVE])
    expected = survivors_by_hand(full, history)
    records, rows = train(racers(arm, halved=True), material, history=history)
    assert epochs_done(records) == expected
    for name, record in records.items():
        assert record["status"] == ("complete" if expected[name] == 4 else "pruned")
    reached = [row for row in unhalved if row["epoch"] <= expected[row["arm"]]]
    assert_same_rows([seen(row) for row in rows], [seen(row) for row in reached])
    assert {1, 4} <= set(expected.values()), "nobody left, or nobody stayed: this test shows nothing"


def test_protected_arms_never_leave_and_still_count(material: Material, arm: Callable[..., Arm]) -> None:
    arms = racers(arm, halved=True)
    protected = [replace(one, protected=True) for one in arms]
    records, _ = train(arms, material)
    weak = [name for name, record in records.items() if record["status"] == "pruned"]
    assert weak
    guarded = [replace(one, protected=one.arm == weak[0]) for one in arms]
    spared, _ = train(guarded, material)
    assert spared[weak[0]]["status"] == "complete"
    others = [name for name in weak if records[name]["epochs_done"] == 1 and name != weak[0]]
    assert others
    assert all(spared[name]["status"] == "pruned" for name in others)
    assert all(record["status"] == "complete" for record in train(protected, material)[0].values())


# Arms that break --------------------------------------------------------------------------------


def test_an_arm_that_diverges_fails_and_harms_no_other(material: Material, arm: Callable[..., Arm]) -> None:
    sound = [arm(name, overrides) for name, overrides in MIXED.items()]
    mad = arm("mad", {"train.lr": 1e38, "train.warmup_lr": 1e38})
    records, rows = train([*sound[:2], mad, *sound[2:]], material)
    assert records["mad"]["status"] == "failed"
    assert "not finite" in records["mad"]["error"]
    numbers = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert all(map(math.isfinite, numbers)), "a record with NaN cannot be stored"
    assert [row["loss"] for row in rows if row["arm"] == "mad"][-1] is None
    alone, alone_rows = train(sound, material)
    assert_same_records({name: record for name, record in records.items() if name != "mad"}, alone)
    assert_same_rows([row for row in rows if row["arm"] != "mad"], alone_rows)


def test_an_arm_that_diverges_later_keeps_its_sound_epochs(
    material: Material, arm: Callable[..., Arm]
) -> None:
    records, rows = train([arm("late", {"train.lr": 1e38})], material)
    assert records["late"]["status"] == "failed"
    assert records["late"]["best_epoch"] == 1
    assert [row["loss"] is None for row in rows] == [False, True]


def test_an_arm_that_its_last_step_broke_has_failed(material: Material, arm: Callable[..., Arm]) -> None:
    """Every loss was finite, the student is not: it must not end as complete."""
    one_step = {"train.epochs": 1, "train.batch_size": 32, "train.warmup_lr": 3e38, "loss.kd_weight": 1e3}
    broken, sound = arm("broken", one_step), arm("sound", one_step | {"train.warmup_lr": 1e-3})
    records, _ = train([broken, sound], material)
    assert {name: record["status"] for name, record in records.items()} == {
        "broken": "failed",
        "sound": "complete",
    }


def test_a_failed_arm_takes_no_place_at_a_rung(material: Material, arm: Callable[..., Arm]) -> None:
    arms = racers(arm, halved=True)
    mad = arm("mad", HALVED | {"train.lr": 1e38, "train.warmup_lr": 1e38})
    with_mad, _ = train([*arms, mad], material)
    assert with_mad.pop("mad")["status"] == "failed"
    without, _ = train(arms, material)
    assert epochs_done(with_mad) == epochs_done(without)


def epochs_done(records: dict[str, Row]) -> dict[str, int]:
    return {name: record["epochs_done"] for name, record in records.items()}


def test_a_cohort_that_fails_whole_ends_without_error(material: Material, arm: Callable[..., Arm]) -> None:
    mad = {"train.lr": 1e38, "train.warmup_lr": 1e38, "train.epochs": 3}
    records, rows = train([arm("a", mad), arm("b", mad | {"train.seed": 2})], material)
    assert {record["status"] for record in records.values()} == {"failed"}
    assert {row["epoch"] for row in rows} == {1}


# Groups of processes ----------------------------------------------------------------------------


class Meeting:
    """gather of two processes, here threads: each waits for the other, and a missing one is an error."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.parts: list[dict[str, Any]] = [{} for _ in range(size)]

    def of(self, rank: int) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
        def gather(own: dict[str, Any]) -> list[dict[str, Any]]:
            self.parts[rank] = own
            self.barrier.wait()
            everyone = list(self.parts)
            self.barrier.wait()
            return everyone

        return gather


def train_group(arms: list[Arm], material: Material, size: int) -> tuple[list[list[EpochReport]], list[Any]]:
    meeting = Meeting(size)
    reports: list[list[EpochReport]] = [[] for _ in range(size)]
    errors: list[BaseException] = []

    def process(rank: int) -> None:
        try:
            fit(arms, material, reports[rank].append, share=Share(rank, size, meeting.of(rank)))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return reports, errors


def test_two_processes_give_the_rows_of_one(material: Material, arm: Callable[..., Arm]) -> None:
    """Halving decides over both: a weak arm leaves though it is the best of its own process."""
    arms = racers(arm, halved=True)
    reports, errors = train_group(arms, material, 2)
    assert not errors
    assert [len(own) for own in reports] == [4, 4]
    records, rows = ended([report for own in reports for report in own])
    alone, alone_rows = train(arms, material)
    assert_same_records(records, alone)
    assert_same_rows(rows, alone_rows)
    by_rank = [{row["arm"] for report in own for row in report.rows} for own in reports]
    assert by_rank == [{f"racer {i}" for i in range(rank, 10, 2)} for rank in (0, 1)]


def test_a_process_without_arms_stays_in_step(material: Material, arm: Callable[..., Arm]) -> None:
    reports, errors = train_group([arm("only", HALVED)], material, 2)
    assert not errors
    assert [len(own) for own in reports] == [4, 4]
    records, _ = ended([report for own in reports for report in own])
    assert records["only"]["status"] == "complete"


# The teacher speaks once ------------------------------------------------------------------------


def test_training_needs_no_teacher(
    make_study: MakeStudy, save_clip: Callable[..., Path], cache: Path, tmp_path: Path, prepared: Prepared
) -> None:
    """After prepare() its weights may be gone: material opens and arms train on what it said."""
    folder = save_clip("teacher", folder=tmp_path)  # the same weights, so the same banks
    study = make_study({"teacher.model": f"local-dir:{folder}"})
    prepared(make_study())
    card = prepare(study, cache, lambda *_: None)
    shutil.rmtree(folder)
    records, _ = train([Arm("one", study)], open_material(study, card, cache))
    assert records["one"]["status"] == "complete"


def test_the_bank_gives_the_loss_of_the_teacher_itself(
    material: Material, arm: Callable[..., Arm], cache: Path, tiny_clip: Callable[[str], Clip]
) -> None:
    """The same step with the teacher run on the same view, its prompts in place: fp16 apart."""
    one = arm("one", {"student.align_features": "raw"})
    cohort = Cohort([one], material)
    teacher, tuned = tiny_clip("teacher"), read_teacher(cache, material.card.teacher, cohort.device)
    assert tuned.visual is not None
    speaker = PromptKD(teacher, {"visual": tuned.visual, **{k: torch.zeros(24, 24) for k in LAYERS}})
    for view in (1, 2):
        batch = batch_order(cohort.train_images, 1, view)[:12]
        pixels = pixels_of(material.photographs.store, batch, view, 32, cohort.device)
        with torch.no_grad():
            said = speaker.features(teacher.prepare(pixels))
        banked = material.train_bank.take(view - 1, batch, cohort.device)
        assert_close(banked, said, rtol=1e-3, atol=1e-4)
        online = replace(material, train_bank=Online(said, batch))  # type: ignore[arg-type]
        knobs = Knobs.of([one.study], cohort.device)
        terms, live = (
            Cohort([one], each).losses(batch[None], view, torch.tensor([0]), knobs)
            for each in (material, online)
        )
        assert_close(terms, live, rtol=2e-3, atol=1e-5)


LAYERS = ("projector.0.weight", "projector.0.bias", "projector.1.weight", "projector.1.bias")


class Online:
    """A bank of two views that holds what was said just now."""

    def __init__(self, said: Tensor, batch: Any) -> None:
        self.said, self.batch, self.views = said, batch, 2

    def take(self, view: int, images: Any, device: torch.device) -> Tensor:
        assert (images == self.batch).all()
        return self.said


def test_views_take_turns_with_the_epochs(material: Material, arm: Callable[..., Arm]) -> None:
    """With two views, epoch 3 shows what epoch 1 showed, to teacher and student alike."""
    one = arm("one")
    cohort = Cohort([one], material)
    knobs, batch = Knobs.of([one.study], cohort.device), cohort.train_images[None, :12]
    losses = [cohort.losses(batch, epoch, torch.tensor([0]), knobs)["loss"].item() for epoch in (1, 2, 3, 4)]
    assert losses[0] == losses[2]
    assert losses[1] == losses[3]
    assert losses[0] != losses[1]


# Towers that never change -----------------------------------------------------------------------


@pytest.fixture(params=["convolutional", "no prompts"])
def frozen_student(request: pytest.FixtureRequest, clip_folders: dict[str, Path]) -> dict[str, Any]:
    if request.param == "no prompts":
        return {"student.prompt_length": 0}
    return {"student.model": f"local-dir:{clip_folders['conv']}"}


def test_a_tower_that_never_changes_is_banked_and_trains_as_on_pixels(
    frozen_student: dict[str, Any], make_study: MakeStudy, prepared: Prepared
) -> None:
    study = make_study(frozen_student | BOTH_OFF)
    _, material = prepared(study)
    assert material.student_banks is not None
    cohort = Cohort([Arm("one", study)], material)
    clip, device, tensors = material.student, torch.device("cpu"), cohort.student.tensors
    start = {name: t[0].detach() for name, t in tensors.items()}
    plain = PromptKD(clip, {"visual": torch.empty(0, 1, 1)} | start)
    sgd = torch.optim.SGD(plain.learned, lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in (1, 2):
        batch = batch_order(cohort.train_images, 1, epoch)[:12]
        with torch.no_grad():
            pixels = pixels_of(material.photographs.store, batch, epoch, 32, device)
            features = clip.visual(clip.prepare(pixels))
        image = plain.projector(features[:, :, None, None])[:, :, 0, 0]
        taught = F.normalize(material.train_bank.take(epoch - 1, batch, device), dim=1)
        teacher_logits = material.card.teacher_scale * taught @ material.text.T
        logits = clip.logit_scale * F.normalize(image, dim=1) @ material.text.T
        loss = promptkd_loss(logits, teacher_logits, 1.0, 4.0)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        terms = cohort.losses(batch[None], epoch, torch.tensor([0]), Knobs.of([study], device))
        assert_close(terms["loss"], loss[None], rtol=2e-3, atol=1e-5)
        terms["loss"].sum().backward()
        cohort.optimizer.step(torch.tensor([0.05]))
    ours = [t for name, t in tensors.items() if name in TRAINED]
    assert distance(ours, plain.learned) < 1e-3


def test_a_student_that_never_changes_trains_without_pixels(
    frozen_student: dict[str, Any], make_study: MakeStudy, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(frozen_student)
    _, material = prepared(study)
    store = replace(material.photographs.store, pixels=np.empty((0, 3, 1, 1), np.uint8))
    blind = replace(material, photographs=replace(material.photographs, store=store))
    arms = [Arm("one", study), Arm("two", make_study(frozen_student | BOTH_OFF | {"train.seed": 2}))]
    assert train(arms, blind) == train(arms, material)


def test_arms_with_prompts_train_on_pixels_beside_banked_ones(
    make_study: MakeStudy, prepared: Prepared, material: Material
) -> None:
    """A study that searches the prompt length: its material has banks, for arms without prompts only."""
    _, both = prepared(make_study({"student.prompt_length": 0}))
    assert both.student_banks is not None
    arms = [Arm("prompted", make_study())]
    assert train(arms, both) == train(arms, material)
