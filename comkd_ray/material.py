"""What all arms of a study share: pixels, the student's tower, the teacher's words and the banks.

`prepare.py` builds it once and leaves `material.json` in the run directory; arms open it from the
cache. Nothing here can run the teacher: its weights are not even loaded.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from comkd_ray.bank import Bank, read_bank
from comkd_ray.config import Data, Study
from comkd_ray.data import splits
from comkd_ray.data.datasets import ROWS, TEST, TRAIN, VAL, ImageTable, open_dataset
from comkd_ray.data.pixels import PixelStore, Progress, kept, open_store
from comkd_ray.data.splits import base_count
from comkd_ray.errors import UserError
from comkd_ray.models import Clip, asset_path, default_device, load_clip
from comkd_ray.protocols import is_transductive, protocol_of
from comkd_ray.results import write_atomic
from comkd_ray.study_file import digest

METHOD = 1
"""Raised when a change alters an arm's numbers: part of every arm's identity."""
TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class Photographs:
    """The images of a study, their halves and parts."""

    table: ImageTable
    store: PixelStore
    base: int
    """Classes that a teacher may learn: the base ones (PAPER 5.11), all of them without halves."""
    template: str
    """Prompt of the zero-shot models."""
    transductive: bool = False
    """The test images, without their labels, are the training images (PAPER 5.14)."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of every image; only `part` may say who sees it."""
        return self.table.labels

    @property
    def digest(self) -> str:
        """Identity of the images with their classes and parts: what every number hangs on."""
        table = self.table
        parts = table.classes, table.labels.tolist(), table.parts.tolist()
        return digest(self.store.digest, self.template, *parts)

    @property
    def groups(self) -> tuple[range, ...]:
        """Labels of the classes that are evaluated together: base and novel, or all at once."""
        classes = len(self.table.classes)
        return tuple(group for group in (range(self.base), range(self.base, classes)) if group)

    def part(self, part: int) -> NDArray[np.int64]:
        """Images of one part, ascending."""
        return self.table.select(TEST if self.transductive and part == TRAIN else part)

    @property
    def evaluated(self) -> NDArray[np.int64]:
        """Validation and test images, ascending."""
        return np.sort(np.concatenate([self.part(VAL), self.part(TEST)]))


@dataclass(frozen=True)
class TunedTeacher:
    """What stage II needs of the teacher, apart from the bank."""

    key: str
    visual: Tensor | None
    """Visual prompts `[depth, L, W]`; None where none were learned."""
    text: Tensor | None
    """Text prompts `[depth, L, W]`, the same for any class names; None for a zero-shot teacher."""
    card: dict[str, Any]
    """How it was made and how good it is: `card.json`."""

    @property
    def digest(self) -> str:
        """Hash of the tensors themselves: the same recipe may give others on another machine."""
        tensors = [tensor for tensor in (self.text, self.visual) if tensor is not None]
        sums = [hashlib.sha256(t.cpu().contiguous().numpy().tobytes()).hexdigest() for t in tensors]
        return digest(self.key, sums)


@dataclass(frozen=True)
class Card:
    """Names of all parts, and what is known about the models before any arm: `material.json`."""

    identity: str
    """Hash of data, teacher, banks and student; with an arm's values, that arm's identity."""
    data: str
    teacher: str
    text: str
    """The teacher's text features of the study's classes."""
    train_bank: str
    val_bank: str
    student_banks: tuple[str, str] | None
    teacher_scale: float
    teacher_parameters: int
    references: dict[str, float]
    """Accuracies of the tuned teacher and of both zero-shot models, in percent."""
    stages: dict[str, float]
    """Seconds that the making of each part took this time; 0 for what was there."""


@dataclass(frozen=True)
class Material:
    """Everything read-only that training an arm needs."""

    card: Card
    photographs: Photographs
    student: Clip
    text: Tensor
    """The teacher's unit text features `[C, D]`."""
    train_bank: Bank
    """The teacher's features of the training images, every view."""
    val_bank: Bank
    """The teacher's features of the evaluated images, centre view."""
    student_banks: tuple[Bank, Bank] | None
    """The student tower's own (training, evaluation), where no visual prompt changes it."""


def open_photographs(study: Study, cache: Path, progress: Progress) -> Photographs:
    """What the student learns from and is tested on; decodes the images if that was never done."""
    table = arranged(study, open_table(study.data, progress))
    photographs = _store(study.data, table, study, cache, progress)
    _check_parts(photographs, study)
    return photographs


def open_source(study: Study, cache: Path, progress: Progress) -> Photographs:
    """What the teacher learns from: the source, or the study's own data where it has none."""
    if study.source is None:
        return open_photographs(study, cache, progress)
    table = open_table(study.source, progress)
    if table.test_only:
        name = study.source.dataset
        raise UserError(f"source.dataset: {name}: it has test images only, nothing to learn from")
    return replace(_store(study.source, table, study, cache, progress), transductive=False)


def open_table(data: Data, progress: Progress) -> ImageTable:
    """The checked list of images of a data set, nothing decoded."""
    return open_dataset(data, asset_path(data.root), progress)


def _store(data: Data, table: ImageTable, study: Study, cache: Path, progress: Progress) -> Photographs:
    store = open_store(table, data.side, cache, progress, data.skip_broken)
    table = kept(table, store)
    row = ROWS.get(data.dataset)
    classes = len(table.classes)
    base = base_count(classes) if protocol_of(study).has_halves else classes
    return Photographs(table, store, base, row.template if row else TEMPLATE, is_transductive(study))


def arranged(study: Study, table: ImageTable) -> ImageTable:
    """The table with the parts that the protocol uses.

    A set of test images only is cut into parts, so that no student trains on what it is tested on;
    where the published habit is asked for, it stays whole (PAPER 5.14).
    """
    if not table.test_only or is_transductive(study):
        return table
    if not protocol_of(study).has_source:
        raise UserError(
            f"data.dataset: {study.data.dataset}: it has test images only; use it as data of protocol"
            " cross_dataset or domain_generalization"
        )
    seed = study.data.split_seed
    parts = splits.parts_of_test_only(table.labels, seed, table.classes)
    cut = f"{table.split}; cut 50/20/30 into train/val/test (split_seed {seed})"
    return replace(table, parts=parts, split=cut)


def _check_parts(photographs: Photographs, study: Study) -> None:
    names = {TRAIN: "training", VAL: "validation", TEST: "test"}
    if study.selection == "promptkd" and not protocol_of(study).has_halves:
        del names[VAL]  # nothing is chosen on them
    for part, name in names.items():
        labels = photographs.labels[photographs.part(part)]
        for group in photographs.groups:
            if not ((labels >= group.start) & (labels < group.stop)).any():
                raise UserError(
                    f"{study.data.root}: no {name} images of classes {group.start} to {group.stop - 1}"
                )
    count = len(photographs.part(TRAIN))
    if count < study.train.batch_size:
        raise UserError(
            f"{study.data.root}: {count} training images, fewer than train.batch_size:"
            f" {study.train.batch_size}"
        )


def write_card(run: Path, card: Card) -> None:
    """Leave the card in the run directory."""
    write_atomic(run / "material.json", json.dumps(asdict(card), indent=1).encode())


def read_card(run: Path) -> Card:
    """Read the card that `prepare` left. UserError where there is none."""
    path = run / "material.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        banks = card.pop("student_banks")
        return Card(**card, student_banks=tuple(banks) if banks else None)
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: missing or damaged; the same command makes it again") from None


def read_teacher(cache: Path, key: str, device: torch.device) -> TunedTeacher:
    """A stored teacher. UserError where it is missing."""
    folder = cache / "teachers" / key
    try:
        tensors = load_file(folder / "teacher.safetensors", device=str(device))
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError):
        raise UserError(f"{folder}: missing or damaged; the same command makes it again") from None
    return TunedTeacher(key, tensors.get("visual"), tensors.get("text"), card)


def text_path(cache: Path, teacher: str, text: str) -> Path:
    """File of a teacher's text features of one list of classes."""
    return cache / "teachers" / teacher / f"text-{text}.safetensors"


def read_text(cache: Path, teacher: str, text: str, device: torch.device) -> Tensor:
    """A teacher's unit text features `[C, D]`, encoded once (PAPER 1.20, 5.3). UserError if missing."""
    path = text_path(cache, teacher, text)
    try:
        return load_file(path, device=str(device))["features"]
    except (OSError, ValueError, KeyError, SafetensorError):
        raise UserError(f"{path}: missing or damaged; the same command makes it again") from None


def is_ready(card: Card, cache: Path) -> bool:
    """Whether the cache still holds every part that a card names, undamaged."""
    try:
        read_teacher(cache, card.teacher, torch.device("cpu"))
        read_text(cache, card.teacher, card.text, torch.device("cpu"))
        for key in (card.train_bank, card.val_bank, *(card.student_banks or ())):
            read_bank(cache, key)
    except UserError:
        return False
    return True


def open_material(study: Study, card: Card, cache: Path) -> Material:
    """Open what `prepare` left. UserError if the data changed since, or a part is missing."""
    photographs = open_photographs(study, cache, lambda *_: None)
    if photographs.digest != card.data:
        raise UserError(f"{study.data.root}: images, classes or parts changed since this study began")
    device = default_device()
    banks = card.student_banks
    return Material(
        card,
        photographs,
        load_clip(study.student, device),
        read_text(cache, card.teacher, card.text, device),
        read_bank(cache, card.train_bank),
        read_bank(cache, card.val_bank),
        (read_bank(cache, banks[0]), read_bank(cache, banks[1])) if banks else None,
    )
