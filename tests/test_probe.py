"""The probe on the smallest study: every piece is there and nothing stays. Time itself is never asserted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from comkd_ray import probe as room
from comkd_ray import stopwatch
from comkd_ray.config import Study, Tower
from comkd_ray.errors import UserError
from comkd_ray.lineup import BANKED, PROMPTED, kinds_of
from comkd_ray.probe import Line, Pace, fitted, probe
from comkd_ray.stopwatch import fastest_seconds
from comkd_ray.study_file import flatten

MakeStudy = Callable[..., Study]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, cpu: None) -> None:
    """One counted run each, and an import that does not load Ray."""
    monkeypatch.setattr(stopwatch, "SHARE", 0.0)
    monkeypatch.setattr(room, "IMPORTS", "import json")


def measured(study: Study) -> Pace:
    return probe(study, kinds_of(study, True), study.search.arms_per_trial)


def test_every_piece_is_measured_and_nothing_stays(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(room.tempfile, "tempdir", str(tmp_path))
    space = {"student.prompt_length": {"choice": [0, 2]}}
    study = make_study(
        {"search": {"sampler": "grid", "arms_per_trial": 3, "space": space}, "compute.cpus": 1}
    )
    found = measured(study)
    assert (set(found.steps), set(found.evaluations)) == ({PROMPTED, BANKED}, {PROMPTED, BANKED})
    assert found.where == "cpu, 1 threads"
    numbers = [v for v in flatten(asdict(found)).values() if isinstance(v, float)]
    assert len(numbers) == 12 + 8
    assert all(math.isfinite(value) and value >= 0 for value in numbers)
    assert min(found.teacher_image, found.student_image, found.teacher_step, found.decode, found.inputs) > 0
    assert found.steps[PROMPTED].at(3) > found.steps[BANKED].at(3)
    assert found.random_towers == ()
    assert list(tmp_path.iterdir()) == []


def test_a_zero_shot_teacher_has_no_steps(make_study: MakeStudy) -> None:
    assert measured(make_study({"teacher.epochs": 0, "search.arms_per_trial": 1})).teacher_step == 0.0


def test_a_convolutional_teacher_is_timed_by_its_words(
    make_study: MakeStudy, clip_folders: dict[str, Path]
) -> None:
    conv = {"teacher.model": f"local-dir:{clip_folders['conv']}", "search.arms_per_trial": 1}
    assert measured(make_study(conv)).teacher_step > 0


@pytest.mark.parametrize("selection", ["strict", "promptkd"])
def test_a_study_with_a_source_is_measured_on_its_own_photographs(
    make_study: MakeStudy, image_folder: Path, selection: str
) -> None:
    """promptkd trains on the test images: a batch of them must be there."""
    over = {"protocol": "domain_generalization", "selection": selection, "search.arms_per_trial": 1}
    source = {"root": str(image_folder), "side": 20, "shots": 4, "views": 2}
    found = measured(make_study(over | {"source": source, "train.batch_size": 20}))
    assert min(found.teacher_step, found.steps[PROMPTED].slope) > 0


def test_a_tower_that_would_be_downloaded_gets_random_weights() -> None:
    clip, drawn = room._tower(Tower(model="ViT-S-32-alt", pretrained="somewhere"), CPU)
    assert drawn
    assert (clip.image_size, clip.is_vit, clip.width) == (224, True, 256)
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())


def test_what_tune_would_refuse_is_refused(make_study: MakeStudy) -> None:
    with pytest.raises(UserError, match="no model of open_clip has this name"):
        measured(make_study({"student.model": "ViT-B-61", "student.pretrained": "openai"}))


def test_time_of_other_processes_is_told_apart() -> None:
    """Our own work is not others'; that of a process which is not our child is."""
    others = stopwatch.Others()
    begun = time.process_time()
    while time.process_time() - begun < 0.1:
        pass
    total, busy, own = (now - before for now, before in zip(others.now(), others.before, strict=True))
    assert own >= 0.09
    assert 0 <= others.share() <= 1
    others.before = tuple(now - more for now, more in zip(others.now(), (10.0, 6.0, 2.0), strict=True))
    assert others.share() == pytest.approx(0.4, abs=0.02)
    assert total >= busy - 0.05


# Time and lines --------------------------------------------------------------------------------


def test_a_line_goes_through_one_arm_and_many() -> None:
    assert fitted(lambda arms: 0.25 + 0.5 * arms, 5) == Line(0.25, 0.5)
    assert fitted(lambda arms: 0.25 + 0.5 * arms, 1) == Line(0.0, 0.75)
    assert fitted(lambda arms: 0.5, 5) == Line(0.5, 0.0)
    assert fitted(lambda arms: 0.125 * arms * arms, 3) == Line(0.0, 0.5)  # none begins below nothing


def test_no_larger_cohort_is_tried_where_one_arm_takes_long() -> None:
    asked: list[int] = []

    def seconds(arms: int) -> float:
        asked.append(arms)
        return 3.0

    assert (fitted(seconds, 8), asked) == (Line(0.0, 3.0), [1])


def test_the_first_run_counts_only_where_it_took_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands at 0, 1, 4, 9, 16, 25: a warm-up of 1 s, an end set at 4 s, one run of 7 s."""

    def clock() -> SimpleNamespace:
        ticks = iter(range(100))
        return SimpleNamespace(perf_counter=lambda: float(next(ticks)) ** 2)

    monkeypatch.setattr(stopwatch, "SHARE", 6.0)
    monkeypatch.setattr(stopwatch, "time", clock())
    assert fastest_seconds(lambda: None, CPU) == 7.0
    monkeypatch.setattr(stopwatch, "LONG", 0.5)
    monkeypatch.setattr(stopwatch, "time", clock())
    assert fastest_seconds(lambda: None, CPU) == 1.0
