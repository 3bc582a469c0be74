"""A trained student leaves the study as files, and does the same work when it comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import outer
import pytest
import torch

from comkd_ray.bank import CENTER, pixels_of
from comkd_ray.cohort import Arm
from comkd_ray.config import Study
from comkd_ray.data.datasets import TEST
from comkd_ray.errors import UserError
from comkd_ray.material import Card, Material
from comkd_ray.metrics import accuracies, predict
from comkd_ray.train import Ended, EpochReport, fit
from comkd_ray.weights import keep_best, load_student, save_student

pytestmark = pytest.mark.usefixtures("cpu")

MakeStudy = Callable[..., Study]
Prepared = Callable[[Study], tuple[Card, Material]]


def trained(study: Study, material: Material) -> Ended:
    reports: list[EpochReport] = []
    fit([Arm("one", study)], material, reports.append)
    return reports[-1].ended[0]


@pytest.mark.parametrize("edu_attention", [False, True])
def test_a_loaded_student_has_the_test_accuracy_of_its_row(
    make_study: MakeStudy, prepared: Prepared, tmp_path: Path, edu_attention: bool
) -> None:
    study = make_study({"student.edu_attention": edu_attention, "train.lr": 0.05})
    _, material = prepared(study)
    photographs = material.photographs
    ended = trained(study, material)
    assert ended.state is not None
    save_student(tmp_path, "one", study, ended.state, photographs.table.classes)

    student = load_student(tmp_path / "students" / "one")

    assert student.classes == photographs.table.classes
    images = photographs.part(TEST)
    pixels = pixels_of(photographs.store, images, CENTER, student.clip.image_size, torch.device("cpu"))
    labels = torch.from_numpy(photographs.labels[images])
    predicted = predict(student.logits(pixels)[None], labels, photographs.groups)
    base, novel = accuracies(predicted, labels, labels, photographs.groups)[0]
    assert base == pytest.approx(ended.arm["test_base_accuracy"])
    assert novel == pytest.approx(ended.arm["test_novel_accuracy"])


def test_the_best_students_and_those_that_still_train_stay(tmp_path: Path) -> None:
    """`e` has no record yet: only when nothing runs is it what a crash left behind."""
    for name in "abcdef":
        (tmp_path / "students" / name).mkdir(parents=True)
    values = {"a": 10.0, "b": 40.0, "c": 20.0, "d": 30.0}
    records = {name: outer.record(name, value) for name, value in values.items()}
    records["f"] = outer.record("f", status="failed")
    keep_best(tmp_path, records)
    assert sorted(path.name for path in (tmp_path / "students").iterdir()) == list("bcde")
    keep_best(tmp_path, records, everything=True)
    assert sorted(path.name for path in (tmp_path / "students").iterdir()) == list("bcd")


def test_a_folder_without_a_student_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no student here"):
        load_student(tmp_path / "nothing")


def test_a_damaged_student_is_named(tmp_path: Path) -> None:
    (tmp_path / "student.json").write_text("{}")
    (tmp_path / "student.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="no student here"):
        load_student(tmp_path)
