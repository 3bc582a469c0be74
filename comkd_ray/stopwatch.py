"""How long a thing takes: the fastest of a few runs, a loop seen by its progress, and others' CPU time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import psutil
import torch

Made = TypeVar("Made")

SHARE = 0.8
"""Seconds that one measurement may take, warm-up apart; a probe makes some fifteen."""
LONG = 4.0
"""Seconds beyond which nothing is run twice, and no larger cohort is tried."""


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def fastest_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest run of as many as fit into SHARE seconds, after one that is not counted.

    Where that one took longer than LONG, it counts. What other processes take is no property of the work.
    """

    def once() -> float:
        start = time.perf_counter()
        work()
        wait(device)
        return time.perf_counter() - start

    wait(device)
    first = once()
    if first > LONG:
        return first
    end = time.perf_counter() + SHARE
    fastest = once()
    while time.perf_counter() < end:  # by the clock: runs of microseconds are mostly their own timing
        fastest = min(fastest, once())
    return fastest


def timed(work: Callable[[], Made]) -> tuple[float, Made]:
    """Seconds of one run, and what it made."""
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


class Others:
    """CPU time that other processes take from now on: two torch threads beside them wait for each other."""

    def __init__(self) -> None:
        self.before = self.now()

    @staticmethod
    def now() -> tuple[float, float, float]:
        """Seconds of all cores so far, those that were busy, and those of this process and its children."""
        machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        mine = own.user + own.system + own.children_user + own.children_system
        return sum(machine[:8]), sum(machine[:8]) - idle, mine

    def share(self) -> float:
        """Their part of all CPU time since this was made."""
        total, busy, mine = (now - before for now, before in zip(self.now(), self.before, strict=True))
        return min(1.0, max(0.0, (busy - mine) / total)) if total > 0 else 0.0


class EnoughError(Exception):
    """A loop has been watched for long enough."""


class Stopwatch:
    """A `progress` that times the steps between its calls; the first is a warm-up unless it is LONG."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.times = device, [time.perf_counter()]

    def __call__(self, stage: str, done: int, total: int) -> None:
        """A step is over. EnoughError after SHARE seconds of them."""
        wait(self.device)
        self.times.append(time.perf_counter())
        first, rest = self.times[1] - self.times[0], self.times[-1] - self.times[1]
        if first > LONG or rest > SHARE:
            raise EnoughError

    @property
    def seconds(self) -> float:
        """Of the fastest step."""
        spent = np.diff(self.times)
        return float(min(spent[1:] if len(spent) > 1 else spent))
