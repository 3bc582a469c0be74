"""Stage II: `fit` trains a cohort of students in lockstep on the teacher's bank.

Torch only. What happens leaves through callbacks, so a test runs `fit(..., report=rows.append)`
and Ray passes its own. The teacher is never called: its features come from the bank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from comkd_ray.cohort import Arm, Cohort, Meter
from comkd_ray.config import Halving
from comkd_ray.material import Material
from comkd_ray.protocols import OBJECTIVE
from comkd_ray.results import Row

Gather = Callable[[dict[str, Any]], list[dict[str, Any]]]
"""What this process knows of its arms -> what each process of the group knows of its own."""
History = Mapping[int, Sequence[float]]
"""Rung (epochs) -> values that earlier arms of the study had there."""


@dataclass
class Ended:
    """An arm that is over: its row of `arms` and its rows of `epochs`."""

    arm: Row
    epochs: list[Row]
    state: dict[str, Tensor] | None = None
    """Its trained tensors at its best epoch; None for an arm that is not complete."""


@dataclass
class EpochReport:
    """What is known after an epoch: the rows of the arms that ran it, and the arms that ended."""

    epoch: int
    rows: list[Row]
    ended: list[Ended] = field(default_factory=list)


@dataclass(frozen=True)
class Share:
    """The part of a group that this process is: it takes every size-th arm, from its rank on."""

    rank: int = 0
    size: int = 1
    gather: Gather = lambda own: [own]


def fit(
    arms: Sequence[Arm],
    material: Material,
    report: Callable[[EpochReport], None],
    history: History | None = None,
    share: Share = Share(),
    meter: Meter = lambda done, total: None,
) -> None:
    """Train arms of one structure to the end; report after every epoch.

    Arms leave early at a rung of `search.halving`, or as failed when a loss is not finite. Every
    process of a group calls report and gather equally often, whatever became of its own arms.
    """
    cohort = Cohort(arms, material)
    mine = {arm.arm for arm in arms[share.rank :: share.size]}
    cohort.leave([arm.arm for arm in arms if arm.arm not in mine])
    halving, epochs = arms[0].study.search.halving, arms[0].study.train.epochs
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        means = cohort.train_epoch(epoch, meter)
        rows = cohort.epoch_rows(epoch, means, cohort.evaluate())
        cohort.charge(rows, time.perf_counter() - start)
        leaving = {row["arm"]: "failed" for row in rows if row["loss"] is None}
        if epoch in rung_epochs(halving, epochs):
            values = {row["arm"]: row[OBJECTIVE] for row in rows if row["arm"] not in leaving}
            everyone = [value for part in share.gather(values) for value in part.values()]
            enough = threshold(everyone, (history or {}).get(epoch, ()), halving)
            leaving |= dict.fromkeys(cohort.weaker(values, enough), "pruned")
        if epoch == epochs:
            leaving = {arm.arm: leaving.get(arm.arm, "complete") for arm in cohort.arms}
        cohort.test(leaving)
        ended = [
            Ended(*cohort.record(arm, status), cohort.best.get(arm) if status == "complete" else None)
            for arm, status in leaving.items()
        ]
        cohort.leave(leaving)
        report(EpochReport(epoch, rows, ended))


def rung_epochs(halving: Halving | None, epochs: int) -> list[int]:
    """Epochs after which the weakest leave: min_epochs * eta^k, below the full budget."""
    rungs: list[int] = []
    rung = halving.min_epochs if halving else epochs
    while halving and rung < epochs:
        rungs.append(rung)
        rung *= halving.eta
    return rungs


def threshold(values: Iterable[float], earlier: Iterable[float], halving: Halving | None) -> float:
    """Value an arm needs to stay: the best 1 / eta of all that reached this rung so far.

    Asynchronous successive halving (Li et al. 2018, arXiv 1810.05934): earlier arms count, and no
    arm waits for one that has not arrived.
    """
    ranked = sorted([*values, *earlier], reverse=True)
    if halving is None or not ranked:
        return float("-inf")
    stay = -(-len(ranked) // halving.eta)
    return ranked[stay - 1]
