"""What a study would take, before anything is decoded, trained or written: `comkd-ray tune --dry-run`.

Costs are counted, not measured: floating-point operations of both towers by torch's own counter on
the meta device, so no weights are needed. Hours follow from a stated rate, and are an upper bound
where halving lets arms leave; `forecast.py` turns counts into wall time.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache

from torch.utils.flop_counter import FlopCounterMode

from comkd_ray import planner, search_space, study_file
from comkd_ray.arms import SEED
from comkd_ray.cache import cache_root
from comkd_ray.cohort_size import CPU_ARMS, SAFE
from comkd_ray.config import Data, Study, Tower
from comkd_ray.data.datasets import TEST, TRAIN, VAL, ImageTable
from comkd_ray.data.folders import silent
from comkd_ray.data.storing import store_bytes
from comkd_ray.data.stream import choose
from comkd_ray.designs import count_claims
from comkd_ray.jobs import arm_identity
from comkd_ray.models import blank_clip, check_pretrained
from comkd_ray.photographs import (
    check_batch,
    learned_classes,
    shots,
    source_table,
    target_table,
    teacher_views,
)
from comkd_ray.prepare import view_count
from comkd_ray.prompts import check_teacher_depths
from comkd_ray.protocols import explain, is_transductive
from comkd_ray.search_space import Dimension, Scalar
from comkd_ray.student import check_depths
from comkd_ray.words import counted

RATE = 100e12
"""Floating-point operations a second that one GPU is assumed to sustain: an H100 does at most 989e12."""
DRAWS = 1000  # configurations that are drawn and checked
BACKWARD = 2  # a pass through a frozen tower and back to its prompts, in forward passes


@dataclass(frozen=True)
class Cost:
    """What a tower costs."""

    width: int
    flops: int
    """Of one image."""
    is_vit: bool
    """The kind that takes visual prompts."""


@dataclass(frozen=True)
class Images:
    """How many images a study has, by what is done with them."""

    parts: dict[str, int]
    """train, val and test of `data`."""
    classes: int
    learned: int
    """Labelled images that the teacher learns from; 0 for a zero-shot teacher."""
    learned_classes: int
    watched: int
    """Validation images of the classes that the teacher learns."""
    source: int
    """Validation and test images of `source`; 0 where there is none."""
    stored: int
    """Images that are decoded."""
    stored_bytes: int
    streams: bool = False
    """Whether those of `data` are decoded again at every use."""
    pixels: list[str] = field(default_factory=list)
    """Where they come from, in words."""


@dataclass(frozen=True)
class Plan:
    """A study in numbers."""

    study: str
    explained: list[tuple[str, str]]
    """Who learns from what, and what chooses: `protocols.explain`."""
    images: dict[str, int]
    classes: int
    arms: int
    search: str
    """What chooses them: `study_file.how_arms_come`."""
    epochs: int
    """Of the longest arm."""
    steps: int
    """Of one arm, all epochs."""
    views: int
    bank_bytes: int
    pixel_bytes: int
    """Of the pixel stores that are kept."""
    pixels: list[str]
    """`data`, and `source` where there is one: stored or streamed, and why."""
    stored: int
    """Images that are decoded before anything is trained."""
    streams: bool
    """Whether training images are decoded again at every use."""
    arms_per_trial: int | str
    learned_classes: int
    teacher_images: int
    """Through the teacher's tower for banks and accuracies."""
    teacher_trained: int
    """Images of all steps of stage I; 0 where the image tower learns nothing."""
    teacher_steps: int
    student_images: int
    """Through the student's tower for banks."""
    teacher_flops: float
    student_flops: float
    """Of all arms, were none to leave early."""
    gpus: float
    """That a cohort holds."""
    can_find: planner.Plan | None
    """What the seeds of a grid or a list can show; None where seeds are not searched."""

    @property
    def gpu_hours(self) -> float:
        """At RATE on one GPU."""
        return (self.teacher_flops + self.student_flops) / RATE / 3600

    def lines(self) -> list[tuple[str, str]]:
        """(what, how much) for people."""
        images = ", ".join(f"{count:,} {part}" for part, count in self.images.items())
        hours = f"{self.gpu_hours:.2g} GPU-hours at {RATE / 1e12:.0f} TFLOP/s, were no arm to leave early"
        if not self.gpus:
            hours += "; this study holds CPUs alone: --probe measures them"
        reach = [("can find", planner.foretell(self.can_find))] if self.can_find is not None else []
        return [
            *self.explained,
            ("images", f"{images}; {self.classes} classes"),
            ("arms", f"{self.arms}"),
            ("arms come from", self.search),
            ("arms in a cohort", _cohort(self.arms_per_trial)),
            ("steps an arm", f"{self.steps:,} in {counted(self.epochs, 'epoch')}"),
            ("bank", f"{_size(self.bank_bytes)}, {self.views} views an image"),
            *(("pixels", words) for words in self.pixels),
            ("teacher", f"{self.teacher_flops / 1e15:.3g} PFLOP, once"),
            ("students", f"{self.student_flops / 1e15:.3g} PFLOP, all arms"),
            ("expected", hours),
            *reach,
        ]

    def as_json(self, **more: object) -> str:
        """One object for machines, with what else is known."""
        tree = asdict(self) | {"explained": dict(self.explained), "gpu_hours": self.gpu_hours}
        tree["can_find"] = None if self.can_find is None else self.can_find._asdict()
        return json.dumps({"event": "plan", **tree, **more})


def make_plan(study: Study) -> Plan:
    """Count what a study would take. UserError for whatever its towers, data or space have wrong."""
    check_towers(study)
    return plan_of(study, count_images(study))


def count_images(study: Study) -> Images:
    """List the images of a study, decoding none."""
    table = target_table(study, silent)
    source = source_table(study, table, silent)
    parts = {name: len(table.select(part)) for name, part in (("train", TRAIN), ("val", VAL), ("test", TEST))}
    if is_transductive(study):
        parts["train"] = parts["test"]
    learned = learned_classes(study, source)
    stores = [("data", study.data, table)]
    if study.source is not None:
        stores.append(("source", study.source, source))
    pixels = [_pixels(*store) for store in stores]
    return Images(
        parts=parts,
        classes=len(table.classes),
        learned=0 if study.teacher.epochs == 0 else len(shots(study, source)),
        learned_classes=learned,
        watched=int((source.labels[source.select(VAL)] < learned).sum()),
        source=0 if study.source is None else len(source.select(VAL)) + len(source.select(TEST)),
        stored=sum(len(own.paths) for _, _, own in stores),
        stored_bytes=sum(need for _, need in pixels),
        streams=pixels[0][1] == 0,
        pixels=[words for words, _ in pixels],
    )


def plan_of(study: Study, images: Images) -> Plan:
    """What a study with so many images would take."""
    train, evaluated = images.parts["train"], images.parts["val"] + images.parts["test"]
    variants = [study, *_draws(study)]
    for variant in variants:
        check_batch(variant, train)
    steps = [train // v.train.batch_size * v.train.epochs for v in variants]
    longest = variants[max(range(len(variants)), key=steps.__getitem__)]
    arms, views = count_arms(study), view_count(study)
    teacher, student = cost_of(study.teacher), cost_of(study.student)
    encoded = views * train + evaluated
    learns = teacher.is_vit and study.teacher.prompt_length > 0
    trained = study.teacher.epochs * images.learned if learns else 0
    spoken = encoded + _spoken(study, images, learns)
    each, once_more = looked_at(study, images.parts)
    arm = max(steps) * longest.train.batch_size * BACKWARD + longest.train.epochs * each + once_more
    once = encoded if is_banked(study, student) else evaluated
    batch = min(study.teacher.batch_size, max(1, images.learned))
    return Plan(
        study=study.study,
        explained=explain(study, images.parts | {"teacher": images.learned}),
        images=images.parts,
        classes=images.classes,
        arms=arms,
        search=study_file.how_arms_come(study),
        epochs=longest.train.epochs,
        steps=max(steps),
        views=views,
        bank_bytes=2 * (encoded * teacher.width + once * student.width),
        pixel_bytes=images.stored_bytes,
        pixels=images.pixels,
        stored=images.stored,
        streams=images.streams,
        arms_per_trial=study.search.arms_per_trial,
        learned_classes=images.learned_classes,
        teacher_images=spoken,
        teacher_trained=trained,
        teacher_steps=study.teacher.epochs * (images.learned // batch),
        student_images=once,
        teacher_flops=float(teacher.flops) * (spoken + trained * (1 + BACKWARD)),
        student_flops=float(student.flops) * (arms * arm * _prompted(variants, student) + once),
        gpus=study.compute.gpus,
        can_find=reach_of(study),
    )


def looked_at(study: Study, parts: Mapping[str, int]) -> tuple[int, int]:
    """Images that an arm is evaluated on after each epoch, and once more when it ends."""
    if study.selection == "promptkd":
        return parts["val"] + parts["test"], 0
    return parts["val"], parts["test"]


def _pixels(section: str, data: Data, table: ImageTable) -> tuple[str, int]:
    """Where the pixels of a data set will come from, and the bytes that it takes in the cache."""
    choice, need = choose(data, table, cache_root()), store_bytes(len(table.paths), data.side)
    if choice.stored:
        return f"{section}: stored, {_size(need)}; {choice.why}", need
    return f"{section}: decoded from files at every use; {choice.why} ({_size(need)})", 0


def _cohort(arms: int | str) -> str:
    if arms != "auto":
        return str(arms)
    return f"as many as {SAFE:.0%} of the memory holds, on a CPU at most {CPU_ARMS}; probed before the search"


def _spoken(study: Study, images: Images, learns: bool) -> int:
    """Images through the teacher's tower beside its own bank: for stage I, its card, and zero-shot.

    Without a source, the card's images are those of the bank; a tower that learns nothing says what the
    zero-shot teacher says.
    """
    evaluated = images.parts["val"] + images.parts["test"]
    own = images.source or evaluated
    if not learns:
        return teacher_views(study) * images.learned + images.source
    watched = images.watched * study.teacher.epochs if study.teacher.keep == "best" else 0
    return watched + own + images.source


def _prompted(variants: list[Study], student: Cost) -> float:
    """Share of the configurations whose students run their tower in training."""
    drawn = variants[1:] or variants
    return sum(student.is_vit and one.student.prompt_length > 0 for one in drawn) / len(drawn)


def is_banked(study: Study, student: Cost) -> bool:
    """Whether an arm may train on features of the student's tower that never change."""
    return not student.is_vit or any(v.student.prompt_length == 0 for v in study_file.variants(study))


def _draws(study: Study) -> Iterator[Study]:
    """The named arms, and configurations of the space at random: each must be a sound arm."""
    yield from (study_file.resolve(study, point) for point in study.search.first)
    if study.search.space:
        yield from drawn(study, DRAWS)


def drawn(study: Study, count: int) -> Iterator[Study]:
    """Configurations of the space at random; the same ones every time."""
    stream = random.Random(study.search.seed)  # noqa: S311  (a search, no secret)

    def ask(_: str, dimension: Dimension) -> Scalar:
        return dimension.at(stream.random())

    for _ in range(count):
        yield study_file.resolve(study, search_space.draw(study.search.space, ask))


def count_arms(study: Study) -> int:
    """Arms that a study asks for; cells whose difference has no effect are one arm."""
    if study.search.is_enumerated:
        cells = study_file.cells(study)
        return len({arm_identity("", study_file.resolve(study, cell)) for cell in cells})
    assert study.search.arms is not None
    return study.search.arms


def reach_of(study: Study) -> planner.Plan | None:
    """What an ablation can show, or a grid or a list with seeds: every other setting is above the first.

    Where methods and seeds alone are searched, the settings are the methods. Settings whose difference has
    no effect are one. Seeds are those of a claim, of the claim that has fewest. None for any other study,
    and for a single setting.
    """
    if study.ablate is not None:
        return planner.plan(len(study.ablate.seed_values), count_claims(study))
    if not study.search.is_enumerated:
        return None
    named: dict[frozenset[tuple[str, Scalar]], set[Scalar]] = {}
    for cell in study_file.cells(study):
        if SEED not in cell:
            return None
        named.setdefault(frozenset(cell.items() - {(SEED, cell[SEED])}), set()).add(cell[SEED])
    seeds: dict[str, set[Scalar]] = {}
    for setting, own in named.items():
        arm = arm_identity("", study_file.resolve(study, dict(setting)))
        seeds.setdefault(arm, set()).update(own)
    first, *others = seeds.values()
    return planner.plan(min(len(first & own) for own in others), len(others)) if others else None


@lru_cache(maxsize=8)
def cost_of(tower: Tower) -> Cost:
    """Width and operations of an image tower, from its architecture alone (no weights are read)."""
    clip = blank_clip(tower)
    with FlopCounterMode(display=False) as counter:
        width = clip.width
    return Cost(width, int(counter.get_total_flops()), clip.is_vit)


def check_towers(study: Study) -> None:
    """UserError where weights are unknown, or a study prompts more layers than a tower has."""
    for tower in (study.teacher, study.student):
        check_pretrained(tower)
    check_teacher_depths(blank_clip(study.teacher), study.teacher)
    check_depths(blank_clip(study.student), [one.student for one in study_file.variants(study)])


def _size(count: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count = count / 1000  # type: ignore[assignment]
    return f"{count:.3g} TB"
