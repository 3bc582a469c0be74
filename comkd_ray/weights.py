"""A trained student on disk, and back: what runs at inference besides the frozen tower (PAPER 2.11).

reports/<study>/students/<arm>/student.safetensors    trained tensors, BatchNorm, text features
reports/<study>/students/<arm>/student.json           the arm's study and the class names
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from comkd_ray import study_file
from comkd_ray.config import Study
from comkd_ray.errors import UserError
from comkd_ray.losses import normalize
from comkd_ray.models import Clip, default_device, load_clip
from comkd_ray.prompts import embed_images
from comkd_ray.results import Row, ranked, write_atomic
from comkd_ray.student import StudentCohort

FOLDER = "students"
FILES = ("student.safetensors", "student.json")
KEPT = 3  # best arms of a study whose weights stay on disk


@dataclass(frozen=True)
class TrainedStudent:
    """One student, ready to classify."""

    clip: Clip
    cohort: StudentCohort
    """A cohort of this one arm, in evaluation mode."""
    classes: tuple[str, ...]

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Logits `[B, C]` of pixels in 0..1 `[B, 3, S, S]`, S the tower's own input side."""
        images = self.clip.prepare(pixels.to(self.clip.device))
        prompted = "visual" in self.cohort.tensors
        inputs = embed_images(self.clip, images) if prompted else self.clip.visual(images)
        raw = self.cohort.project(self.cohort.encode(inputs[None]))
        return self.cohort.logits(normalize(raw.float()))[0]


def save_student(
    run: Path, arm: str, study: Study, state: dict[str, Tensor], classes: tuple[str, ...]
) -> None:
    """Write a student; the JSON goes last, so a folder with it is whole."""
    folder = run / FOLDER / arm
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    write_atomic(folder / "student.safetensors", save(tensors))
    card = {"arm": arm, "classes": classes, "study": study.model_dump(mode="json")}
    write_atomic(folder / "student.json", json.dumps(card, indent=1).encode())


def load_student(folder: Path, device: torch.device | None = None) -> TrainedStudent:
    """Read a student back; its tower comes from where the study says. UserError where it is missing."""
    try:
        card = json.loads((folder / "student.json").read_text(encoding="utf-8"))
        state = load_file(folder / "student.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: no student here: {error}") from None
    study = study_file.build(card["study"], str(folder / "student.json"))
    device = device or default_device()
    clip = load_clip(study.student, device)
    cohort = StudentCohort([study], clip, state.pop("text").to(device))
    cohort.load_state(0, state)
    return TrainedStudent(clip, cohort.eval(), tuple(card["classes"]))


def copy_student(origin: Path, run: Path, arm: str) -> None:
    """Take a student over from another run, if it is there, whole: that run may be deleting it just now."""
    source, target = origin / FOLDER / arm, run / FOLDER / arm
    with contextlib.suppress(OSError):  # not kept there, or gone meanwhile
        shutil.copytree(source, target, dirs_exist_ok=True)
    if not all((target / name).exists() for name in FILES):
        shutil.rmtree(target, ignore_errors=True)


def keep_best(run: Path, records: Mapping[str, Row], everything: bool = False) -> None:
    """Delete the students of recorded arms but the best KEPT by the objective.

    everything: also those without a record, which a crash left behind when no arm is running.
    """
    best = [row["arm"] for row in ranked(records)[:KEPT]]
    for folder in (run / FOLDER).glob("*"):
        if folder.name not in best and (everything or folder.name in records):
            shutil.rmtree(folder, ignore_errors=True)
