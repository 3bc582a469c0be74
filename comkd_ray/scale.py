"""ImageNet on clusters that are not at hand: ViT-L/14 to ViT-B/16, counted and simulated.

    comkd-ray bench scale

Assumed, not measured: each GPU sustains `plan.RATE`; a cohort is alone on its GPU; nodes of 8 GPUs map
banks and pixels from one file server and keep no copy. `docs/scale.md` says what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from comkd_ray import study_file
from comkd_ray.bank_store import Layout
from comkd_ray.config import Study
from comkd_ray.data.datasets import ROWS
from comkd_ray.data.splits import HELD_OUT
from comkd_ray.forecast import counted_pace, forecast
from comkd_ray.lineup import assumed_size
from comkd_ray.plan import Images, Plan, looked_at, plan_of

GPUS = (8, 64, 1000)
CLASSES = 1000
SHOTS = 16
COHORT = 8
"""Arms of a cohort."""
WIDTH = 768
"""D of ViT-L/14, in float16 in the bank."""
LISTED = 1e-4
"""Seconds a file that a process which opens a data set takes to list it, over a network."""
FAILURES_PER_HOUR = 1 / 2000
"""Of one GPU or its node: a cluster of 1,000 loses one every two hours."""


@dataclass(frozen=True)
class Scaled:
    """One study on one cluster."""

    study: str
    slots: int
    arms_per_trial: int
    bank_bytes: int
    shards: int
    pixel_bytes: int
    wall_seconds: float
    prepare_seconds: float
    device_hours: float
    utilisation: float
    tail_seconds: float
    failures: int
    lost: float
    """Arms whose cohort died twice."""
    read_bytes_per_second: float
    """From the file server by all slots while they train: pixels and bank, once an epoch and cohort."""
    reports_per_second: float
    """Reports of cohorts to the driver."""
    notes_per_second: float
    """Values of arms that the driver writes into the journal."""


def imagenet(arms: int = 1000, few: bool = False, arms_per_trial: int = COHORT) -> tuple[Study, Plan]:
    """A search of so many arms on all training images, or on SHOTS a class; its val is the test part."""
    tree: dict[str, Any] = {
        "study": "imagenet-16-shot" if few else "imagenet",
        "protocol": "all_classes",
        "data": {"dataset": "imagenet", "root": "imagenet", "side": 256},
        "teacher": {"model": "ViT-L-14", "pretrained": "openai", "epochs": 20},
        "student": {"model": "ViT-B-16", "pretrained": "openai"},
        "train": {"epochs": 20, "batch_size": 32},
        "search": {
            "arms": arms, "arms_per_trial": arms_per_trial, "halving": {"eta": 3, "min_epochs": 2},
            "space": {"loss.temperature": {"float": [0.5, 4.0]}, "train.lr": {"float": [1e-3, 1e-2]}},
        },
        "compute": {"gpus": 1, "cpus": 8},
    }  # fmt: skip
    study, row = study_file.build(tree, "imagenet"), ROWS["imagenet"]
    assert row.train is not None
    held = HELD_OUT * CLASSES
    train = SHOTS * CLASSES if few else row.train - held
    stored = train + held + row.test
    images = Images(
        parts={"train": train, "val": held, "test": row.test},
        classes=CLASSES,
        learned=SHOTS * CLASSES,
        learned_classes=CLASSES,
        watched=held,
        source=0,
        stored=stored,
        stored_bytes=3 * study.data.side**2 * stored,
    )
    return study, plan_of(study, images)


def on(study: Study, plan: Plan, slots: int) -> Scaled:
    """Simulate it on so many GPUs."""
    pace = replace(counted_pace(study), list_seconds=plan.stored * LISTED)
    found = forecast(study, plan, pace, slots, FAILURES_PER_HOUR)
    search, train = found.search, plan.images["train"]
    used = train + looked_at(study, plan.images)[0]  # an arm's last look at the test images is left out
    rate = search.cohort_epochs / search.seconds
    return Scaled(
        study=study.study,
        slots=slots,
        arms_per_trial=assumed_size(study),
        bank_bytes=plan.bank_bytes,
        shards=Layout.of(train, plan.views).shards,
        pixel_bytes=plan.pixel_bytes,
        wall_seconds=found.seconds,
        prepare_seconds=found.seconds - search.seconds,
        device_hours=found.device_hours,
        utilisation=search.utilisation,
        tail_seconds=search.tail_seconds,
        failures=search.failures,
        lost=search.lost,
        read_bytes_per_second=rate * (used * plan.pixel_bytes / plan.stored + 2 * train * WIDTH),
        reports_per_second=rate,
        notes_per_second=search.arm_epochs / search.seconds,
    )


def all_scales(arms: int, gpus: Sequence[int] = GPUS) -> list[Scaled]:
    """All images and the few shots, on each cluster, in cohorts of COHORT and in those that keep it busy."""
    return [
        on(*imagenet(arms, few, cohort), slots)
        for few in (False, True)
        for slots in gpus
        for cohort in sorted({COHORT, max(1, min(COHORT, arms // slots))}, reverse=True)
    ]


def table(found: Sequence[Scaled]) -> list[str]:
    """All of them, for people."""
    head = (
        "study             GPUs  cohort   bank GB  pixels GB  prepare h    wall h   GPU-hours  used  tail h"
        "  died  lost  read GB/s  reports/s  notes/s"
    )
    return [head, *(_line(one) for one in found)]


def _line(one: Scaled) -> str:
    return (
        f"{one.study:<16}{one.slots:>6}{one.arms_per_trial:>8}{one.bank_bytes / 1e9:>10.1f}"
        f"{one.pixel_bytes / 1e9:>11.1f}{one.prepare_seconds / 3600:>11.2f}{one.wall_seconds / 3600:>10.1f}"
        f"{one.device_hours:>12,.0f}{one.utilisation:>6.0%}{one.tail_seconds / 3600:>8.1f}"
        f"{one.failures:>6}{one.lost:>6.0f}{one.read_bytes_per_second / 1e9:>11.2f}"
        f"{one.reports_per_second:>11.3f}{one.notes_per_second:>9.3f}"
    )
