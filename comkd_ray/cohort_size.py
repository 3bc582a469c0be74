"""How many arms a cohort gets where `search.arms_per_trial` is `auto`: what memory holds, and no idle slot.

The driver, who may have no GPU, decides by `<run>/memory.json`, which the first preparing worker leaves there
(`memory_probe.py`):

- what fits into SAFE of the free memory that a cohort holds: of its GPU, or of its part of one; on a
  CPU, of the node's, divided by the processes that run there at once. Where it does not fit after all, the
  cohort goes on in halves (`jobs.py`);
- on a CPU at most CPU_ARMS;
- no more than leaves every slot the same number of cohorts, so that none stands idle.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from comkd_ray.config import Study
from comkd_ray.search_space import Overrides

FILE = "memory.json"
SAFE = 0.8
"""Share of the free memory that is filled: allocators leave gaps, and free memory is not for us alone."""
CPU_ARMS = 8
"""On a CPU a step takes as long for each arm from 4 to 16 arms on (docs/log.md): more arms at once gain
nothing there, and a sampler would choose more of them before it has seen any result."""


@dataclass(frozen=True)
class Memory:
    """`memory.json`: what cohorts take and what there is, in bytes."""

    device: str
    """"cpu" or "cuda"."""
    name: str
    """The device as its maker calls it."""
    structure: Overrides
    """Values of the probed arms that are not the study's own."""
    fixed: int
    """What a cohort takes whatever its size; on a CPU, its process."""
    per_arm: int
    fits_more: bool
    """Whether more arms than the first of SIZES could be trained at all."""
    free: int
    """On the device, when it was probed."""


class Size(NamedTuple):
    """Arms of a cohort, and why."""

    arms: int
    why: str


def read_memory(run: Path) -> Memory | None:
    """What was probed for this run; None where nothing was, or it cannot be read."""
    try:
        return Memory(**json.loads((run / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def cohort_size(study: Study, memory: Memory, slots: int, workers: int, nodes: int, arms: int) -> Size:
    """Arms of each cohort.

    slots: cohorts that run at once; workers: processes of a cohort, 1 where it has no group; arms: all
    that are still to be trained.
    """
    on_gpu = memory.device == "cuda"
    beside = math.ceil(slots * workers / nodes)
    share = min(1.0, study.compute.gpus) if on_gpu else 1 / beside
    room = SAFE * share * memory.free
    fit = max(1, int((room - memory.fixed) // memory.per_arm)) if memory.fits_more else 1
    most = workers * (fit if on_gpu else min(fit, CPU_ARMS))
    rounds = max(1, math.ceil(arms / (slots * most)))
    size = max(1, math.ceil(arms / (slots * rounds)))
    device = "GPU" if on_gpu else "node"
    part = f"the {device}" if share == 1 else f"{share:.3g} of the {device}"
    held = f"{_gib(SAFE * share * memory.free)}, {SAFE:.0%} of {part}"
    needs = f"{_gib(memory.fixed)} and {_gib(memory.per_arm)} an arm"
    limit = "" if on_gpu or fit <= CPU_ARMS else f", of which {CPU_ARMS} pay on a CPU"
    holds = "holds" if workers == 1 else "holds for each worker"
    times = f"{rounds} round{'s' if rounds > 1 else ''} of {size}"
    return Size(
        size,
        f"{held}, {holds} {fit} ({needs}){limit}; {arms} arms over {slots} at once are {times};"
        f" {_probed(memory)}",
    )


def _probed(memory: Memory) -> str:
    values = ", ".join(f"{key} {value}" for key, value in sorted(memory.structure.items()))
    return f"probed on {memory.name} with {values or 'the values of the study'}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
