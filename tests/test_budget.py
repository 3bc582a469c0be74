"""Budgets: what is spent, when a search stops asking, and why."""

from __future__ import annotations

from typing import Any

import pytest

from comkd_ray.budget import Budget, reached, since_better, spent
from comkd_ray.config import Compute

Tree = dict[str, Any]
GPU = Compute(gpus=0.5)
ONE = ("objective",)
TWO = ("objective", "trainable_parameters")


def arm(
    number: int, objective: float | None, seconds: float | None = 360.0, size: int = 10, **more: Any
) -> Tree:
    status = "complete" if objective is not None else "failed"
    row = {"number": number, "status": status, "objective": objective, "seconds": seconds}
    return row | {"trainable_parameters": size} | more


def arms(*objectives: float | None) -> list[Tree]:
    return [arm(number, objective) for number, objective in enumerate(objectives)]


# Hours --------------------------------------------------------------------------------------------


def test_device_hours_are_seconds_times_what_a_process_holds() -> None:
    rows = [arm(0, 50.0, 1800), arm(1, 50.0, 1800), arm(2, None, None)]
    assert spent(rows, Compute(gpus=0.5)) == 0.5
    assert spent(rows, Compute(gpus=2)) == 2
    assert spent(rows, Compute(cpus=4)) == 4
    assert spent([], GPU) == 0


def test_hours_stop_the_search_when_they_are_spent() -> None:
    limit = Budget(hours=0.2)
    assert reached(limit, arms(50.0, 51.0, 52.0), 0, GPU, ONE) is None
    words = reached(limit, arms(50.0, 51.0, 52.0, 53.0), 0, GPU, ONE)
    assert words == "--budget-hours 0.2: 0.2 GPU-hours are spent"


def test_running_arms_count_at_the_mean_of_those_that_ended() -> None:
    """0.1 hours are spent by two arms; two more run, a fifth would take more than 0.2."""
    limit, ended = Budget(hours=0.2), arms(50.0, 51.0)
    assert reached(limit, ended, 1, GPU, ONE) is None
    words = reached(limit, ended, 2, GPU, ONE)
    assert words == "--budget-hours 0.2: 0.1 GPU-hours are spent, with those that run 0.2"


def test_nothing_is_foretold_before_an_arm_ended() -> None:
    assert reached(Budget(hours=1e-9), [], 5, GPU, ONE) is None
    assert "CPU-hours" in (reached(Budget(hours=1e-9), arms(50.0), 0, Compute(), ONE) or "")


# Arms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("running", "stops"), [(0, False), (1, False), (2, True), (7, True)])
def test_arms_count_whether_they_ended_or_run(running: int, stops: bool) -> None:
    words = reached(Budget(arms=4), arms(50.0, None), running, GPU, ONE)
    assert words == (f"--max-arms 4: 2 arms ended, {running} run" if stops else None)


# No better arm ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objectives", "since"),
    [
        ([], 0),
        ([50.0], 0),
        ([50.0, 50.0], 1),
        ([50.0, 49.0, 48.0], 2),
        ([50.0, 49.0, 51.0], 0),
        ([50.0, None, 49.0, None], 1),
    ],
)
def test_arms_since_the_last_better_one_are_counted(objectives: list[float | None], since: int) -> None:
    assert since_better(arms(*objectives), ONE) == since


def test_only_arms_at_full_budget_count_and_in_the_order_they_were_asked_for() -> None:
    rows = [*arms(50.0, 60.0, 40.0), arm(3, 99.0, status="pruned")]
    assert since_better(rows, ONE) == since_better(rows[::-1], ONE) == 1


def test_with_two_objectives_an_arm_is_better_where_none_is_as_good_in_both() -> None:
    rows = [arm(0, 50.0, size=10), arm(1, 40.0, size=5)]
    assert since_better(rows, TWO) == 0  # smaller
    assert since_better(rows, ONE) == 1
    assert since_better([*rows, arm(2, 45.0, size=10), arm(3, 40.0, size=5)], TWO) == 2
    assert since_better([*rows, arm(2, 45.0, size=9)], TWO) == 0  # between the two


def test_the_search_stops_when_nothing_better_comes() -> None:
    assert reached(Budget(until=3), arms(50.0, 49.0, 48.0), 0, GPU, ONE) is None
    words = reached(Budget(until=3), arms(50.0, 49.0, 48.0, 47.0), 0, GPU, ONE)
    assert words == "--until 3: the last 3 arms at full budget were no better"


def test_without_limits_nothing_stops() -> None:
    assert reached(Budget(), arms(*[50.0] * 100), 50, GPU, ONE) is None
