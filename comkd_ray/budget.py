"""When a search stops asking although arms are left: a budget, as a pure function of what has ended.

Running cohorts always end. Running arms count at the mean of those that ended, so that hours are not
overspent by all that still runs; what is overspent is at most what the running arms differ from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comkd_ray.config import Compute
from comkd_ray.protocols import OBJECTIVE

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Budget:
    """What a search may take; None is no limit. All count what earlier parts of the run took."""

    hours: float | None = None
    """Device-hours: `spent`."""
    arms: int | None = None
    """Arms, ended or running."""
    until: int | None = None
    """Arms at full budget that end in a row without a better one."""


def devices(compute: Compute) -> float:
    """What trains an arm: GPUs, or CPUs where no GPU is held."""
    return compute.gpus or compute.cpus


def spent(rows: Sequence[Row], compute: Compute) -> float:
    """Device-hours of ended arms: their seconds times the devices that their process held.

    An arm's seconds are its share of its cohort, so those of a cohort add up to the cohort's. A failed
    arm has none.
    """
    return sum(row.get("seconds") or 0.0 for row in rows) * devices(compute) / 3600


def since_better(rows: Sequence[Row], objectives: Sequence[str]) -> int:
    """Arms at full budget since the last that was better, in the order in which they were asked for.

    Better: no earlier arm is as good in every objective. With one objective that is a new best.
    """
    full = [row for row in rows if row["status"] == "complete" and row.get(OBJECTIVE) is not None]
    seen: list[list[float]] = []
    since = 0
    for row in sorted(full, key=lambda one: one["number"]):
        values = [row[name] if name == OBJECTIVE else -row[name] for name in objectives]
        matched = any(all(old >= new for old, new in zip(one, values, strict=True)) for one in seen)
        since = since + 1 if matched else 0
        seen.append(values)
    return since


def reached(
    budget: Budget, rows: Sequence[Row], running: int, compute: Compute, objectives: Sequence[str]
) -> str | None:
    """Why no more arms are asked for, or None. rows: arms of this run that ended; running: that train."""
    if budget.arms is not None and len(rows) + running >= budget.arms:
        return f"--max-arms {budget.arms}: {len(rows)} arms ended, {running} run"
    if budget.hours is not None and rows:
        used = spent(rows, compute)
        expected = used * (1 + running / len(rows))
        if expected >= budget.hours:
            kind = "GPU-hours" if compute.gpus else "CPU-hours"
            more = f", with those that run {expected:.3g}" if running else ""
            return f"--budget-hours {budget.hours:g}: {used:.3g} {kind} are spent{more}"
    if budget.until is not None and (since := since_better(rows, objectives)) >= budget.until:
        return f"--until {budget.until}: the last {since} arms at full budget were no better"
    return None
