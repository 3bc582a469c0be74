"""How far from the machine's limits the work of a study runs: `comkd-ray bench step`.

Nothing here needs a tuned teacher, or Ray: features of the teacher are random numbers, as time does
not depend on values. Pixels are the study's own.

- a student step, by cohort size: operations against the rate of a large matrix product, bytes that
  the operators read and write against the rate of a large copy (a share above 1: they stayed in caches)
- the bank: images a second against the teacher's tower alone, its batch ready
- pixels: views cropped from the store, and from squares streamed by as many threads as torch has, against
  decoding the JPEG and cropping it, one thread
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from comkd_ray import process
from comkd_ray.bank import CENTER, pixels_of
from comkd_ray.bank_store import BATCH
from comkd_ray.bench_files import FileViews
from comkd_ray.config import Study
from comkd_ray.data.datasets import TRAIN
from comkd_ray.data.stream import open_pixels
from comkd_ray.material import Material
from comkd_ray.models import Clip, autocast, default_device, load_clip
from comkd_ray.photographs import Photographs, open_photographs
from comkd_ray.provenance import machine
from comkd_ray.rehearsal import cohort_of, first_prompts, inputs_of, random_material
from comkd_ray.stage_one import bank_images
from comkd_ray.stopwatch import fastest_seconds, timed
from comkd_ray.teacher import encode_prompted

ARMS = (1, 2, 4, 8, 16)
EVALUATED_ARMS = 8
BANKED = 2  # batches of the bank that are made, each time
DECODED = 64  # images


@dataclass(frozen=True)
class Limits:
    """What this machine does at best, measured in the precision of training."""

    device: str
    precision: str
    threads: int
    matmul_flops: float
    """Operations a second of a large matrix product."""
    copy_bytes: float
    """Bytes a second that a large copy reads and writes."""


@dataclass(frozen=True)
class Step:
    """One training step of a cohort."""

    arms: int
    seconds: float
    inputs_seconds: float
    """Of these, pixels and patch embedding, which all arms of a seed share."""
    flops: float
    bytes: float

    def against(self, limits: Limits) -> dict[str, float]:
        """This step with its shares of the machine's limits, by name."""
        return asdict(self) | {
            "seconds_per_arm": self.seconds / self.arms,
            "flops_per_second": self.flops / self.seconds,
            "matmul_share": self.flops / self.seconds / limits.matmul_flops,
            "copy_share": self.bytes / self.seconds / limits.copy_bytes,
        }


class Traffic(TorchDispatchMode):
    """Adds up the bytes of what every operator reads and writes; a view reads and writes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        read, written = _tensors((args, kwargs)), _tensors(result)
        memory = {one.untyped_storage().data_ptr() for one in read}
        shared = all(one.untyped_storage().data_ptr() in memory for one in written)
        is_view = shared and not func._schema.is_mutable
        if not is_view and "empty" not in func.__name__:
            self.bytes += sum(one.numel() * one.element_size() for one in (*read, *written))
        return result


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def bench_step(study: Study, cache: Path, sizes: Sequence[int] = ARMS) -> dict[str, Any]:
    """Measure everything for one study; what is in `cache` already is not decoded again."""
    process.set_up()
    device = default_device()
    photographs = open_photographs(study, cache, lambda *_: None)
    teacher, student = load_clip(study.teacher, device), load_clip(study.student, device)
    limits, material = measure_limits(device), random_material(photographs, student, teacher.width)
    steps = [measure_step(study, material, arms) for arms in sizes]
    return {
        "event": "bench step",
        "study": study.study,
        "machine": machine([torch.cuda.get_device_name()] if device.type == "cuda" else []),
        "batch_size": study.train.batch_size,
        "limits": asdict(limits),
        "steps": [step.against(limits) for step in steps],
        "epoch": measure_epoch(study, material, steps),
        "bank": measure_bank(study, photographs, teacher),
        "pixels": measure_pixels(study, photographs, student.image_size, cache, device),
    }


def measure_limits(device: torch.device) -> Limits:
    """Rates of a matrix product and of a copy, each too large for any cache."""
    side, words = (8192, 1 << 28) if device.type == "cuda" else (1024, 1 << 24)
    square, line = torch.randn(side, side, device=device), torch.zeros(words, device=device)
    target = torch.empty_like(line)
    with autocast(device):
        precision = str((square @ square).dtype).removeprefix("torch.")
        square = square.to(getattr(torch, precision))
        product = fastest_seconds(lambda: square @ square, device)
    copy = fastest_seconds(lambda: target.copy_(line), device)
    rate, bandwidth = 2 * side**3 / product, 2 * words * line.element_size() / copy
    return Limits(device.type, precision, torch.get_num_threads(), rate, bandwidth)


def measure_step(study: Study, material: Material, arms: int) -> Step:
    """One step of a cohort: loss, gradient, update. Every other arm is with IFAlign and EduAttention."""
    cohort, step = cohort_of(study, material, arms)
    device, inputs = cohort.device, inputs_of(cohort, cohort.train_images[: study.train.batch_size])
    seconds, shared = fastest_seconds(step, device), fastest_seconds(inputs, device)
    with FlopCounterMode(display=False) as counter:
        step()
    with Traffic() as traffic:
        step()
    return Step(arms, seconds, shared, float(counter.get_total_flops()), float(traffic.bytes))


def measure_epoch(study: Study, material: Material, steps: Sequence[Step]) -> dict[str, float]:
    """How an epoch is shared between its steps and the evaluation after it."""
    step = min(steps, key=lambda one: abs(one.arms - EVALUATED_ARMS))
    cohort, _ = cohort_of(study, material, step.arms)
    count = len(cohort.train_images) // study.train.batch_size
    spent, _ = timed(cohort.evaluate)
    trained = count * step.seconds
    return {
        "arms": step.arms,
        "steps": count,
        "step_seconds": trained,
        "evaluation_seconds": spent,
        "evaluation_share": spent / (spent + trained),
    }


def measure_bank(study: Study, photographs: Photographs, teacher: Clip) -> dict[str, float]:
    """Images a second of making a bank, and of the tower alone on a batch that is ready."""
    device, images = teacher.device, photographs.part(TRAIN)[: BANKED * BATCH]
    visual = first_prompts(study, teacher)
    ready = pixels_of(photographs.store, images[:BATCH], 1, teacher.image_size, device)
    with torch.no_grad():
        tower = len(ready) / fastest_seconds(lambda: encode_prompted(teacher, ready, visual), device)

    def build() -> None:
        with tempfile.TemporaryDirectory() as folder:
            bank_images(teacher, visual, "bench", photographs, images, [1], Path(folder), lambda *_: None)

    rate = len(images) / fastest_seconds(build, device)
    return {"images_per_second": rate, "tower_images_per_second": tower, "tower_share": rate / tower}


def measure_pixels(
    study: Study, photographs: Photographs, size: int, cache: Path, device: torch.device
) -> dict[str, float]:
    """Images a second of cropped views: from the store, streamed, and from the JPEG files in one thread."""
    images = photographs.part(TRAIN)[:DECODED]
    files, batches = FileViews(photographs, (size,)), np.array_split(images, 4)
    data = study.data.model_copy(update={"pixels": "stream"})
    squares = open_pixels(data, photographs.table, cache, lambda *_: None)

    def rate(work: Callable[[], object]) -> float:
        return len(images) / fastest_seconds(work, device)

    def stream() -> None:
        squares.expect(batches)
        for batch in batches:
            pixels_of(squares, batch, 1, size, device)

    views = rate(lambda: pixels_of(photographs.store, images, 1, size, device))
    centers = rate(lambda: pixels_of(photographs.store, images, CENTER, size, device))
    decode = rate(lambda: [files.decode(int(image)) for image in images])
    cropped = rate(lambda: [files[int(image), 1] for image in images])
    return {
        "views_per_second": views,
        "centers_per_second": centers,
        "streamed_views_per_second": rate(stream),
        "jpeg_decodes_per_second": decode,
        "jpeg_views_per_second": cropped,
        "ratio_views_to_jpeg_views": views / cropped,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """What `bench_step` found, for people."""
    limits, bank, pixels, epoch = (found[name] for name in ("limits", "bank", "pixels", "epoch"))
    head = "arms  ms/step  ms/step/arm  ms inputs  GFLOP  GFLOP/s  of matmul    MB  of copy"
    rows = [
        f"{s['arms']:>4}  {1e3 * s['seconds']:>7.1f}  {1e3 * s['seconds_per_arm']:>11.2f}"
        f"  {1e3 * s['inputs_seconds']:>9.2f}  {s['flops'] / 1e9:>5.2f}  {s['flops_per_second'] / 1e9:>7.1f}"
        f"  {100 * s['matmul_share']:>7.1f} %  {s['bytes'] / 1e6:>4.0f}  {100 * s['copy_share']:>5.1f} %"
        for s in found["steps"]
    ]
    return [
        f"{found['study']}: {limits['device']}, {limits['precision']}, {limits['threads']} threads;"
        f" matmul {limits['matmul_flops'] / 1e9:.0f} GFLOP/s, copy {limits['copy_bytes'] / 1e9:.1f} GB/s",
        f"student step, batch {found['batch_size']}",
        head,
        *rows,
        f"epoch of {epoch['arms']} arms: {epoch['steps']} steps {epoch['step_seconds']:.1f} s,"
        f" evaluation {epoch['evaluation_seconds']:.1f} s ({100 * epoch['evaluation_share']:.0f} %)",
        f"bank: {bank['images_per_second']:.0f} images/s, {100 * bank['tower_share']:.0f} % of the tower's"
        f" {bank['tower_images_per_second']:.0f}",
        f"pixels: {pixels['views_per_second']:.0f} views/s from the store,"
        f" {pixels['streamed_views_per_second']:.0f} streamed by {limits['threads']} threads,"
        f" {pixels['jpeg_views_per_second']:.0f} from JPEG files in one thread"
        f" ({pixels['ratio_views_to_jpeg_views']:.1f} x; decoding alone"
        f" {pixels['jpeg_decodes_per_second']:.0f})",
    ]
