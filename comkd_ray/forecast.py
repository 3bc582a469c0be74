"""Wall time and device-hours of a study: its counts (`plan.py`), a pace, and a simulated search.

The pace is measured (`probe.py`), or counted: operations at `plan.RATE`, for machines that are not at
hand. What Ray takes is a constant here, because a probe starts none. Assumed: arms are drawn at random
(as TPE's first ones are; `longer` says what its taste may add) and leave as a share; an arm that differs
in shape counts as the commonest of its kind; no arm repeats another; nothing is in the cache; images that
are streamed are decoded by nobody else meanwhile.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from comkd_ray.bank_store import Layout
from comkd_ray.cluster import workers
from comkd_ray.cohort import Arm
from comkd_ray.config import Study
from comkd_ray.errors import UserError
from comkd_ray.jobs import partition
from comkd_ray.lineup import BANKED, PROMPTED, arms_of, assumed_size, kind_of, kinds_of, preferring_prompts
from comkd_ray.plan import BACKWARD, RATE, Plan, cost_of, looked_at
from comkd_ray.probe import Line, Pace, probe
from comkd_ray.simulate import Cluster, Group, Timeline, simulate
from comkd_ray.teacher import imagenet_templates
from comkd_ray.train import rung_epochs
from comkd_ray.words import counted, duration

RAY_START = 4.3
"""Seconds of `ray.init` on an idle machine of 2 cores (4.1 to 4.5 in three runs, Ray 2.60, Intel Xeon)."""
GROUP_START = 6.0
"""Seconds of Ray Train's own processes before a worker of a group begins to import.

What was left of one quickstart (README) when everything else had been taken off; 2 cores, Ray 2.60.
"""
ACTOR_START = 1.0
"""Seconds of a Tune actor, or of a task, before it begins to import: of 8.4 s until the first step of a bare
trial, most are imports (2 cores, Ray 2.60)."""
HANDOVER = 0.05
"""Seconds between two cohorts on one warm actor: 100 empty trials took 5.3 s (2 cores, Ray 2.60)."""
END = 2.0
"""Seconds from the last arm to the report and the end of Ray; 20 arms, 2 cores."""
BUSY = 0.1
"""Share of the machine's CPU time for others, from which a probe is not to be believed."""


@dataclass(frozen=True)
class Forecast:
    """What to expect, in seconds, of a study that begins with an empty cache."""

    slots: int
    stages: dict[str, float]
    """start, pixels, teacher, bank, search, end: the words of `provenance.json`, and what is around them."""
    held: float
    """Seconds that slots are held: all of them while banks are made, then those with a cohort."""
    devices: float
    """GPUs of a slot; where it has none, its CPUs."""
    kind: str
    """GPU or CPU."""
    search: Timeline
    longer: float
    """How much longer, should the search prefer prompted arms."""
    pace: Pace

    @property
    def seconds(self) -> float:
        """Wall time."""
        return sum(self.stages.values())

    @property
    def device_hours(self) -> float:
        """GPU-hours, or CPU-hours where no GPU is asked for."""
        return self.held * self.devices / 3600

    def lines(self) -> list[tuple[str, str]]:
        """(what, how much) for people."""
        where = (
            f"probe of {self.pace.seconds:.0f} s: {self.pace.where}" if self.pace.seconds else self.pace.where
        )
        parts = ", ".join(f"{name} {duration(spent)}" for name, spent in self.stages.items())
        found = self.search
        told = f"{found.utilisation:.0%} of slot time used, tail {duration(found.tail_seconds)}"
        full = f"{found.full_arms:.0f} arms to the last epoch" + (
            f", {found.lost:.0f} lost" if found.lost else ""
        )
        remarks = [("random weights", ", ".join(self.pace.random_towers))] if self.pace.random_towers else []
        if self.pace.others > BUSY:
            words = f"other processes took {self.pace.others:.0%} of this machine during the probe"
            remarks.append(("busy machine", f"{words}: all of this is too long"))
        return [
            (
                "expected wall time",
                f"{self._wall()} on {counted(self.slots, 'slot')}, nothing cached ({where})",
            ),
            ("of which", parts),
            ("search", f"{told}; {full}"),
            ("device-hours", f"{self.device_hours:.3g} {self.kind}-hours"),
            *remarks,
        ]

    def _wall(self) -> str:
        if self.longer < 1:
            return duration(self.seconds)
        most = duration(self.seconds + self.longer)
        return f"{duration(self.seconds)}, up to {most} should TPE come to prefer arms with visual prompts,"

    def as_tree(self) -> dict[str, object]:
        """Plain values for machines; spans of cohorts are left out."""
        search = asdict(self.search)
        del search["spans"]
        search |= {
            name: getattr(self.search, name)
            for name in ("seconds", "busy_seconds", "utilisation", "tail_seconds", "lost")
        }
        own = {
            "seconds": self.seconds,
            "longer": self.longer,
            "device_hours": self.device_hours,
            "slots": self.slots,
        }
        return own | {"stages": self.stages, "kind": self.kind, "search": search, "pace": asdict(self.pace)}


def forecast(study: Study, plan: Plan, pace: Pace, slots: int, failures_per_hour: float = 0.0) -> Forecast:
    """Put counts and pace together. UserError for a cluster without slots."""
    if slots < 1:
        raise UserError(f"--slots {slots}: a study needs at least 1")
    compute, group = study.compute, workers(study.compute)
    opening = pace.list_seconds + pace.load_student
    preparing = opening + pace.load_teacher
    each = pace.import_seconds + opening + (GROUP_START if group else ACTOR_START)
    cluster = Cluster(slots, each, each if group else HANDOVER, failures_per_hour, compute.retries)
    arms = list(arms_of(study, plan.arms))
    found, most = (
        simulate(list(cohorts_of(some, study, plan, pace)), cluster)
        for some in (arms, preferring_prompts(arms, study))
    )
    shards = Layout.of(plan.images["train"], plan.views).shards
    builders = 1 if 0 < compute.gpus < 1 else min(slots * max(1, group), shards)
    banks = plan.teacher_images * pace.teacher_image + plan.student_images * pace.student_image
    if plan.streams:  # all views of a batch in turn: it is decoded once
        banks += plan.images["train"] * pace.decode
    stages = {
        "start": RAY_START + ACTOR_START + 2 * (pace.import_seconds + preparing),  # driver and worker
        "pixels": plan.stored * pace.decode,
        "teacher": teacher_seconds(study, plan, pace),
        "bank": banks / builders,
        "search": found.seconds,
        "end": END,
    }
    held = stages["teacher"] + builders * stages["bank"] + max(1, group) * found.busy_seconds
    devices, kind = (compute.gpus, "GPU") if compute.gpus else (compute.cpus, "CPU")
    return Forecast(slots, stages, held, devices, kind, found, most.seconds - found.seconds, pace)


def teacher_seconds(study: Study, plan: Plan, pace: Pace) -> float:
    """Stage I: its steps, and class names through the text tower, in all templates or once."""
    config = study.teacher
    zero_shot = config.epochs == 0 or config.text_l1_weight > 0 or config.logit_kl_weight > 0
    spoken = plan.learned_classes * zero_shot + plan.classes * (config.epochs == 0)
    once = plan.learned_classes + 3 * plan.classes  # the card, its words, two references
    texts = spoken + once / len(imagenet_templates())
    return plan.teacher_steps * pace.teacher_step + texts * pace.class_text


def cohorts_of(arms: Sequence[Arm], study: Study, plan: Plan, pace: Pace) -> Iterator[list[Group]]:
    """The cohorts of the search, each as its structures."""
    vit, size = cost_of(study.student).is_vit, assumed_size(study)
    for first in range(0, len(arms), size):
        together = partition(arms[first : first + size])
        yield [group_of(group, plan, pace, vit) for group in together]


def group_of(arms: Sequence[Arm], plan: Plan, pace: Pace, vit: bool) -> Group:
    """Arms of one structure, and how long an epoch takes them; processes of a worker group share them."""
    study, kind = arms[0].study, kind_of(arms[0].study, vit)
    step, evaluation, batch = pace.steps[kind], pace.evaluations[kind], study.train.batch_size
    seen = plan.images["train"] // batch * batch
    looked, tested = looked_at(study, plan.images)
    halving, processes = study.search.halving, max(1, workers(study.compute))
    rungs = tuple(rung_epochs(halving, study.train.epochs))
    shared = looked + tested * (len(rungs) + 1) / study.train.epochs  # arms that leave together test together
    seeds = len({arm.study.train.seed for arm in arms})
    further = (seeds - 1) * pace.inputs if kind == PROMPTED else 0.0
    decoded = (seen * seeds + shared) * pace.decode if plan.streams and kind == PROMPTED else 0.0
    return Group(
        arms=len(arms),
        epochs=study.train.epochs,
        arm_seconds=(seen * step.slope + looked * evaluation.slope) / processes,
        base_seconds=seen * (step.base + further) + shared * evaluation.base + decoded,
        rungs=rungs,
        eta=halving.eta if halving else 1,
        protected=sum(arm.protected for arm in arms),
        end_seconds=tested * evaluation.slope / processes,
    )


def counted_pace(study: Study) -> Pace:
    """Towers by their operations at `plan.RATE`, nothing else measured: for a cluster that is not at hand.

    Text towers, crops, projector and attention are left out; a process and an image to decode (16 cores that
    decode 60 a second each) have round numbers.
    """
    teacher, student = (cost_of(tower).flops / RATE for tower in (study.teacher, study.student))
    frozen = study.teacher.image_l1_weight > 0 or study.teacher.logit_kl_weight > 0
    trained = cost_of(study.teacher).is_vit and study.teacher.prompt_length > 0
    step = study.teacher.batch_size * teacher * (BACKWARD + frozen) if trained else 0.0
    nothing = Line(0.0, 0.0)
    return Pace(
        where=f"counted at {RATE / 1e12:.0f} TFLOP/s",
        teacher_image=teacher,
        student_image=student,
        class_text=0.0,
        teacher_step=step,
        inputs=0.0,
        steps={PROMPTED: Line(0.0, BACKWARD * student), BANKED: nothing},
        evaluations={PROMPTED: Line(0.0, student), BANKED: nothing},
        import_seconds=10.0,
        list_seconds=5.0,
        load_teacher=5.0,
        load_student=2.0,
        decode=0.001,
    )


def expect(study: Study, plan: Plan, probed: bool, slots: int | None) -> Forecast:
    """The forecast of a study, by a probe of this machine or by counted operations.

    slots: cohorts that run at once; None for what this machine has. UserError where it has none.
    """
    slots = slots or own_slots(study, os.cpu_count() or 1, torch.cuda.device_count())
    if not probed:
        return forecast(study, plan, counted_pace(study), slots)
    kinds = kinds_of(study, cost_of(study.student).is_vit)
    return forecast(study, plan, probe(study, kinds, assumed_size(study)), slots)


def own_slots(study: Study, cores: int, gpus: int) -> int:
    """Cohorts that a machine runs at once. UserError where it can run none."""
    compute = study.compute
    fits = [cores / compute.cpus] + ([gpus / compute.gpus] if compute.gpus else [])
    slots = math.floor(min(fits) + 1e-9) // max(1, workers(compute))
    if slots < 1:
        raise UserError(
            f"compute: {cores} cores and {gpus} GPUs here run no cohort; --slots says how many a cluster runs"
        )
    return slots
