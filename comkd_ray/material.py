"""What all arms of a study share: photographs, the student's tower, the teacher's words and the banks.

`prepare.py` builds it once and leaves `material.json` in the run directory; arms open it from the
cache. Nothing here can run the teacher: its weights are not even loaded.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from comkd_ray.bank import Bank, read_bank
from comkd_ray.config import Study
from comkd_ray.errors import UserError
from comkd_ray.models import Clip, default_device, load_clip
from comkd_ray.photographs import Photographs, open_photographs
from comkd_ray.results import write_atomic
from comkd_ray.study_file import digest

METHOD = 1
"""Raised when a change alters an arm's numbers: part of every arm's identity."""


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
    teacher_digest: str
    """Hash of the teacher's tensors: tuned again elsewhere, the same recipe may give others."""


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

    def touch(self) -> None:
        """Remember that its banks are in use."""
        for bank in (self.train_bank, self.val_bank, *(self.student_banks or ())):
            bank.touch()


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


def identity_of(run: Path) -> str | None:
    """Identity of the material of a run directory; None where it holds no readable card."""
    try:
        return read_card(run).identity
    except UserError:
        return None


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
        if read_teacher(cache, card.teacher, torch.device("cpu")).digest != card.teacher_digest:
            return False  # the banks are of another teacher
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
