"""The arms that a search would ask for, in their order, and what kind each is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from comkd_ray.cohort import Arm
from comkd_ray.cohort_size import CPU_ARMS
from comkd_ray.config import Study
from comkd_ray.jobs import arm_identity, structure
from comkd_ray.plan import cost_of, drawn
from comkd_ray.study_file import cells, resolve

PROMPTED, BANKED = "prompted", "banked"
"""An arm whose tower runs in every step, and one whose tower never changes."""


def assumed_size(study: Study) -> int:
    """Arms of a cohort; `auto`, which is known when memory was probed, counts as CPU_ARMS."""
    size = study.search.arms_per_trial
    return size if isinstance(size, int) else CPU_ARMS


def kinds_of(study: Study, vit: bool) -> dict[str, Study]:
    """The commonest arm of each kind, to be measured; vit: whether the student's tower takes prompts."""
    found: dict[str, list[Study]] = {}
    for arm in arms_of(study, 200):
        found.setdefault(kind_of(arm.study, vit), []).append(arm.study)
    commonest = {}
    for kind, arms in found.items():
        shapes = Counter(structure(arm) for arm in arms)
        most = shapes.most_common(1)[0][0]
        commonest[kind] = next(arm for arm in arms if structure(arm) == most)
    return commonest


def kind_of(arm: Study, vit: bool) -> str:
    """Whether an arm's tower runs in every step, or is banked."""
    return PROMPTED if vit and arm.student.prompt_length > 0 else BANKED


def arms_of(study: Study, most: int) -> Iterator[Arm]:
    """Up to `most` arms in the order in which they are asked for, drawn at random where TPE would draw."""
    search = study.search
    if search.is_enumerated:
        yield from islice(_cells(study), most)
        return
    assert search.arms is not None
    first = search.first[: min(most, search.arms)]
    yield from (Arm(f"first {k}", resolve(study, point), True) for k, point in enumerate(first))
    count = min(most, search.arms) - len(first)
    yield from (Arm(str(k), arm) for k, arm in enumerate(drawn(study, count)))


def _cells(study: Study) -> Iterator[Arm]:
    """Arms of a grid or a list; cells whose difference has no effect are one."""
    seen: set[str] = set()
    for point in cells(study):
        arm = resolve(study, point)
        identity = arm_identity("", arm)
        if identity not in seen:
            seen.add(identity)
            yield Arm(identity, arm)


def preferring_prompts(arms: list[Arm], study: Study) -> list[Arm]:
    """The same, were TPE to draw prompted arms alone: they take longest, and are often the better ones."""
    vit = cost_of(study.student).is_vit
    prompted = [arm.study for arm in arms if not arm.protected and kind_of(arm.study, vit) == PROMPTED]
    if study.search.sampler != "tpe" or not prompted:
        return arms
    return [
        arm if arm.protected or kind_of(arm.study, vit) == PROMPTED else replace(arm, study=prompted[0])
        for arm in arms
    ]
