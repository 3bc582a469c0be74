"""What a study would take, before anything is decoded, trained or written: `comkd-ray tune --dry-run`.

Costs are counted, not measured: floating-point operations of both towers by torch's own counter on
the meta device, so no weights are needed. Hours follow from a stated rate, and are an upper bound
where halving lets arms leave.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from comkd_ray import planner, search_space, study_file
from comkd_ray.arms import SEED
from comkd_ray.cache import cache_root
from comkd_ray.config import Data, Study, Tower
from comkd_ray.data.datasets import TEST, TRAIN, VAL, ImageTable
from comkd_ray.data.folders import silent
from comkd_ray.data.storing import store_bytes
from comkd_ray.data.stream import choose
from comkd_ray.errors import UserError
from comkd_ray.jobs import arm_identity
from comkd_ray.memory_probe import CPU_ARMS, SAFE
from comkd_ray.models import model_name
from comkd_ray.photographs import shots, source_table, target_table, teacher_views
from comkd_ray.prepare import view_count
from comkd_ray.protocols import explain, is_transductive
from comkd_ray.search_space import Dimension, Scalar

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
    prompted: bool


@dataclass(frozen=True)
class Plan:
    """A study in numbers."""

    study: str
    explained: list[tuple[str, str]]
    """Who learns from what, and what chooses: `protocols.explain`."""
    images: dict[str, int]
    classes: int
    arms: int
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
    arms_per_trial: int | str
    teacher_flops: float
    student_flops: float
    """Of all arms, were none to leave early."""
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
        reach = [("can find", planner.foretell(self.can_find))] if self.can_find is not None else []
        return [
            *self.explained,
            ("images", f"{images}; {self.classes} classes"),
            ("arms", f"{self.arms}"),
            ("arms in a cohort", _cohort(self.arms_per_trial)),
            ("steps an arm", f"{self.steps:,} in {self.epochs} epochs"),
            ("bank", f"{_size(self.bank_bytes)}, {self.views} views an image"),
            *(("pixels", words) for words in self.pixels),
            ("teacher", f"{self.teacher_flops / 1e15:.3g} PFLOP, once"),
            ("students", f"{self.student_flops / 1e15:.3g} PFLOP, all arms"),
            ("expected", hours),
            *reach,
        ]

    def as_json(self) -> str:
        """One object for machines."""
        tree = asdict(self) | {"explained": dict(self.explained), "gpu_hours": self.gpu_hours}
        tree["can_find"] = None if self.can_find is None else self.can_find._asdict()
        return json.dumps({"event": "plan", **tree})


def make_plan(study: Study) -> Plan:
    """Count what a study would take. UserError for whatever its data or space have wrong."""
    table = target_table(study, silent)
    source = source_table(study, table, silent)
    learned = 0 if study.teacher.epochs == 0 else len(shots(study, source))
    counts = {"train": TRAIN, "val": VAL, "test": TEST}
    images = {name: len(table.select(part)) for name, part in counts.items()}
    if is_transductive(study):
        images["train"] = images["test"]
    variants = [study, *_draws(study)]
    steps = [images["train"] // v.train.batch_size * v.train.epochs for v in variants]
    if min(steps) == 0:
        largest = max(variant.train.batch_size for variant in variants)
        raise UserError(f"train.batch_size: {largest}, but {images['train']} training images")
    longest = variants[max(range(len(variants)), key=steps.__getitem__)]
    arms, views = count_arms(study), view_count(study)
    teacher, student = cost_of(study.teacher), cost_of(study.student)
    evaluated, seen = images["val"] + images["test"], max(steps) * longest.train.batch_size
    encoded = views * images["train"] + evaluated
    arm = seen * BACKWARD + longest.train.epochs * evaluated if student.prompted else 0
    once = evaluated if student.prompted else encoded
    pixels = [_pixels("data", study.data, table)]
    if study.source is not None:
        pixels.append(_pixels("source", study.source, source))
    return Plan(
        study=study.study,
        explained=explain(study, images | {"teacher": learned}),
        images=images,
        classes=len(table.classes),
        arms=arms,
        epochs=longest.train.epochs,
        steps=max(steps),
        views=views,
        bank_bytes=2 * (encoded * teacher.width + once * student.width),
        pixel_bytes=sum(need for _, need in pixels),
        pixels=[words for words, _ in pixels],
        arms_per_trial=study.search.arms_per_trial,
        teacher_flops=float(teacher.flops) * (encoded + _stage_one(study, source, learned, teacher)),
        student_flops=float(student.flops) * (arms * arm + once),
        can_find=reach_of(study),
    )


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


def _stage_one(study: Study, table: ImageTable, learned: int, teacher: Cost) -> int:
    """Images through the teacher's tower for stage I, a step back counted as images too.

    table: what the teacher learns from. Its own validation and test images are seen for its card.
    """
    config = study.teacher
    evaluated = len(table.select(VAL)) + len(table.select(TEST))
    known = 0 if study.source is None else evaluated  # the study's own are in the zero-shot bank
    if not teacher.prompted:
        return teacher_views(study) * learned + known
    watched = len(table.select(VAL)) * config.epochs if config.keep == "best" else 0
    return config.epochs * learned * (1 + BACKWARD) + watched + evaluated + known


def _draws(study: Study) -> Iterator[Study]:
    """The named arms, and configurations of the space at random: each must be a sound arm."""
    stream = random.Random(study.search.seed)  # noqa: S311  (a search, no secret)

    def ask(_: str, dimension: Dimension) -> Scalar:
        finite = dimension.values()
        if finite is not None:
            return stream.choice(finite)
        assert dimension.bounds is not None
        return stream.uniform(*dimension.bounds)

    yield from (study_file.resolve(study, point) for point in study.search.first)
    for _ in range(DRAWS if study.search.space else 0):
        yield study_file.resolve(study, search_space.draw(study.search.space, ask))


def count_arms(study: Study) -> int:
    """Arms that a study asks for; cells whose difference has no effect are one arm."""
    if study.search.is_enumerated:
        cells = study_file.cells(study)
        return len({arm_identity("", study_file.resolve(study, cell)) for cell in cells})
    assert study.search.arms is not None
    return study.search.arms


def reach_of(study: Study) -> planner.Plan | None:
    """What a grid or a list with seeds can show: every other setting claims to be above the first.

    Where methods and seeds alone are searched, the settings are the methods. Seeds are those of a claim,
    of the claim that has fewest. None for any other study, and for a single setting.
    """
    if not study.search.is_enumerated:
        return None
    seeds: dict[frozenset[tuple[str, Scalar]], set[Scalar]] = {}
    for cell in study_file.cells(study):
        if SEED not in cell:
            return None
        seeds.setdefault(frozenset(cell.items() - {(SEED, cell[SEED])}), set()).add(cell[SEED])
    first, *others = seeds.values()
    return planner.plan(min(len(first & own) for own in others), len(others)) if others else None


@lru_cache(maxsize=8)
def cost_of(tower: Tower) -> Cost:
    """Width and operations of an image tower, from its architecture alone (no weights are read)."""
    import open_clip
    from open_clip.transformer import VisionTransformer

    name = model_name(tower.model)
    with _silence(), torch.device("meta"):
        model = open_clip.create_model(name, pretrained=None, device="meta", load_weights=False)
    visual = model.visual.eval()
    size = tower.image_size or visual.image_size
    side = size if isinstance(size, int) else size[0]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = visual(torch.zeros(1, 3, side, side, device="meta"))
    prompted = isinstance(visual, VisionTransformer) and tower.prompt_length > 0
    return Cost(int(features.shape[-1]), int(counter.get_total_flops()), prompted)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """open_clip warns of random weights; here there are none at all."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _size(count: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count = count / 1000  # type: ignore[assignment]
    return f"{count:.3g} TB"
