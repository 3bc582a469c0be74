"""A search on a cluster without the cluster: when each cohort begins and ends, by a heap of events.

Cohorts wait in one line for the first free slot, as Tune hands them out. Inside a cohort the arms of one
structure train in lockstep, structures one after the other, and arms leave at the rungs. Nobody knows
which, so they leave as a share: of n arms that a cohort knows to have reached a rung, its own and those
told when it began, ceil(n / eta) stay (asynchronous successive halving, `train.threshold`), and arms are
taken to be exchangeable. A good search finds better arms later, so more of them stay than here.

A process may die: the arms that it had not ended begin again, on the same slot, `retries` times.
Pure Python; the same input gives the same times.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

HOUR = 3600.0


@dataclass(frozen=True)
class Group:
    """Arms of one structure; an epoch takes `base_seconds + arms * arm_seconds`."""

    arms: float
    epochs: int
    arm_seconds: float
    base_seconds: float = 0.0
    rungs: tuple[int, ...] = ()
    """Epochs after which the weakest leave, ascending, below `epochs`."""
    eta: int = 2
    protected: float = 0.0
    """Of these arms, those that never leave."""
    end_seconds: float = 0.0
    """Of an arm when it leaves or ends."""

    def __post_init__(self) -> None:
        times = self.arm_seconds, self.base_seconds, self.end_seconds
        if not (0 <= self.protected <= self.arms and self.epochs >= 1 and min(times) >= 0 and self.eta >= 1):
            raise ValueError(f"no group of arms can be {self}")
        if list(self.rungs) != sorted(set(self.rungs)) or not all(0 < r < self.epochs for r in self.rungs):
            raise ValueError(f"rungs: {self.rungs} do not ascend below {self.epochs} epochs")

    def seconds(self, arms: float) -> float:
        """Of an epoch while so many arms are left."""
        return self.base_seconds + arms * self.arm_seconds if arms > 0 else 0.0


Cohort = Sequence[Group]
"""Structures of one cohort, trained one after the other."""


@dataclass(frozen=True)
class Cluster:
    """Where cohorts run."""

    slots: int
    """Cohorts at once."""
    start_seconds: float = 0.0
    """Before the first step of the first cohort on a slot, and of one that begins again."""
    handover_seconds: float = 0.0
    """Before the first step of any other."""
    failures_per_hour: float = 0.0
    """Of a slot's process or node, a Poisson rate."""
    retries: int = 1
    seed: int = 0
    """Draws the failures."""

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots: {self.slots} cannot run anything")
        if min(self.start_seconds, self.handover_seconds, self.failures_per_hour, self.retries) < 0:
            raise ValueError(f"no cluster can be {self}")


@dataclass(frozen=True)
class Span:
    """A cohort on a slot, from its start-up to its end, retries included. Times in seconds."""

    cohort: int
    slot: int
    begin: float
    end: float
    lost: float
    """Arms that had no record when its last try died."""


@dataclass(frozen=True)
class Timeline:
    """What became of a search. Times in seconds."""

    slots: int
    spans: tuple[Span, ...]
    """In the order in which they ended."""
    arm_epochs: float
    """Epochs that arms trained up to a rung or their end, those that a failure undid included."""
    cohort_epochs: float
    """Epochs that structures trained, whatever arms were left in them: so often data were read."""
    full_arms: float
    """Arms that reached their last epoch."""
    failures: int

    @property
    def seconds(self) -> float:
        """Wall time."""
        return max((span.end for span in self.spans), default=0.0)

    @property
    def busy_seconds(self) -> float:
        """Time of all slots that a cohort held."""
        return sum(span.end - span.begin for span in self.spans)

    @property
    def utilisation(self) -> float:
        """Share of the slots' time that cohorts held."""
        return self.busy_seconds / (self.slots * self.seconds) if self.seconds else 0.0

    @property
    def tail_seconds(self) -> float:
        """Between the first slot that found nothing left to do and the end."""
        last = dict.fromkeys(range(self.slots), 0.0)
        for span in self.spans:
            last[span.slot] = max(last[span.slot], span.end)
        return self.seconds - min(last.values())

    @property
    def lost(self) -> float:
        """Arms whose cohort died once more than it may be tried again."""
        return sum(span.lost for span in self.spans)


def simulate(cohorts: Sequence[Cohort], cluster: Cluster) -> Timeline:
    """Run the cohorts in their order."""
    return _Search(cohorts, cluster).run()


def staying(arms: float, protected: float, reached: float, eta: int) -> float:
    """Of `arms` at a rung that `reached` arms are known to have reached, those that stay."""
    if reached <= 0:
        return arms
    return protected + (arms - protected) * min(1.0, math.ceil(reached / eta - 1e-9) / reached)


@dataclass
class _Running:
    """A cohort on its slot."""

    cohort: int
    slot: int
    begin: float
    groups: deque[Group]
    """Those that have not ended; the first one trains."""
    known: dict[int, float]
    """Rung -> arms that others had brought there when it began, and its own earlier structures since."""
    arms: float = 0.0
    """Of the first group, those still in the batch."""
    epoch: int = 0
    """That the next event ends."""
    tries: int = 0
    dies: float = math.inf
    own: dict[int, float] = field(default_factory=dict)
    """Rung -> arms of the group that trains, the most of its tries."""


class _Search:
    def __init__(self, cohorts: Sequence[Cohort], cluster: Cluster) -> None:
        self.cluster, self.waiting = cluster, deque(enumerate(cohorts))
        self.stream = random.Random(cluster.seed)  # noqa: S311  (no secret)
        self.events: list[tuple[float, int, _Running]] = []
        self.count = 0
        self.reached: dict[int, float] = {}
        """Rung -> arms of all cohorts that came there so far."""
        self.spans: list[Span] = []
        self.arm_epochs = self.cohort_epochs = self.full = 0.0
        self.failures = 0

    def run(self) -> Timeline:
        for slot in range(min(self.cluster.slots, len(self.waiting))):
            self.begin(slot, 0.0, self.cluster.start_seconds)
        while self.events:
            now, _, running = heapq.heappop(self.events)
            if now >= running.dies:
                self.die(running, now)
            else:
                self.reach(running, now)
        trained = self.arm_epochs, self.cohort_epochs
        return Timeline(self.cluster.slots, tuple(self.spans), *trained, self.full, self.failures)

    def begin(self, slot: int, now: float, start: float) -> None:
        """The next cohort of the line, if there is one."""
        if not self.waiting:
            return
        number, groups = self.waiting.popleft()
        running = _Running(number, slot, now, deque(groups), dict(self.reached))
        self.enter(running)
        self.start(running, now, start)

    def start(self, running: _Running, now: float, start: float) -> None:
        """One try of a cohort."""
        rate = self.cluster.failures_per_hour / HOUR
        running.dies = now + self.stream.expovariate(rate) if rate else math.inf
        running.epoch = 0
        self.plan(running, now + start)

    def enter(self, running: _Running) -> None:
        """The next structure of a cohort."""
        running.epoch, running.own = 0, {}
        running.arms = running.groups[0].arms if running.groups else 0.0

    def plan(self, running: _Running, now: float) -> None:
        """When this cohort comes to its next rung or its last epoch, or dies on the way."""
        if running.groups:
            group, before = running.groups[0], running.epoch
            running.epoch = next((rung for rung in group.rungs if rung > before), group.epochs)
            now += (running.epoch - before) * group.seconds(running.arms)
        self.count += 1
        heapq.heappush(self.events, (min(now, running.dies), self.count, running))

    def reach(self, running: _Running, now: float) -> None:
        """A rung, the end of a structure, or of the cohort."""
        if running.groups:
            group, epoch = running.groups[0], running.epoch
            before = max((rung for rung in (0, *group.rungs) if rung < epoch), default=0)
            self.arm_epochs += (epoch - before) * running.arms
            self.cohort_epochs += epoch - before
            if epoch < group.epochs:
                now += self.leave(running, group, epoch) * group.end_seconds
            else:
                now += running.arms * group.end_seconds
                self.finish(running)
        if running.groups:
            self.plan(running, now)
        else:
            self.end(running, now, 0.0)

    def finish(self, running: _Running) -> None:
        """A structure is over; the next one of its cohort knows what it brought to the rungs."""
        self.full += running.arms
        for rung, arms in running.own.items():
            running.known[rung] = running.known.get(rung, 0.0) + arms
        running.groups.popleft()
        self.enter(running)

    def leave(self, running: _Running, group: Group, rung: int) -> float:
        """How many go, the weakest; an arm that comes to a rung again, in another try, counts there once."""
        came = max(running.arms, running.own.get(rung, 0.0))
        more = came - running.own.get(rung, 0.0)
        running.own[rung] = came
        self.reached[rung] = self.reached.get(rung, 0.0) + more
        known = running.known.get(rung, 0.0) + came
        before, running.arms = (
            running.arms,
            min(running.arms, staying(came, group.protected, known, group.eta)),
        )
        return before - running.arms

    def die(self, running: _Running, now: float) -> None:
        """Try again: what ended keeps its record, the rest begins at its first epoch."""
        self.failures += 1
        if running.tries < self.cluster.retries:
            running.tries += 1
            self.start(running, now, self.cluster.start_seconds)
            return
        rest = sum(group.arms for group in list(running.groups)[1:])
        self.end(running, now, running.arms + rest)

    def end(self, running: _Running, now: float, lost: float) -> None:
        self.spans.append(Span(running.cohort, running.slot, running.begin, now, lost))
        died = now >= running.dies
        self.begin(running.slot, now, self.cluster.start_seconds if died else self.cluster.handover_seconds)
