"""Stage I by protocol: whose images teach, whose classes are named, and what the card tells."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import outer
import pytest
import torch
from test_teacher import words_by_hand
from torch.testing import assert_close

import comkd_ray.stage_one
from comkd_ray.bank import pixels_of, read_bank
from comkd_ray.config import Study
from comkd_ray.data.datasets import TEST, TRAIN, VAL
from comkd_ray.errors import UserError
from comkd_ray.material import read_teacher, read_text
from comkd_ray.models import Clip
from comkd_ray.photographs import open_source
from comkd_ray.prepare import check, prepare
from comkd_ray.protocols import PROTOCOLS
from comkd_ray.stage_one import open_stage_one, tune_teacher
from comkd_ray.teacher import FewShots, class_features, encode_prompted

pytestmark = pytest.mark.usefixtures("cpu")

CPU = torch.device("cpu")
FRUIT = ("apple", "berry", "cherry")
COLOURS = ("coal", "grass", "lemon", "sea")
MakeStudy = Callable[..., Study]
StudyOf = Callable[..., Study]


def quiet(stage: str, done: int, total: int) -> None:
    """A progress that nobody watches."""


@pytest.fixture(scope="module")
def fruit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of a source: 10 images each of 3 classes, cut 5 / 2 / 3."""
    return outer.photographs(tmp_path_factory.mktemp("source") / "fruit", classes=FRUIT)


@pytest.fixture
def study_of(make_study: MakeStudy, fruit: Path, image_folder: Path) -> StudyOf:
    """study_of("cross_dataset", {"teacher.epochs": 2}) -> the tiny study; where it has a source, fruit.

    Domain generalisation wants the same classes: there the source is the study's own folder.
    """

    def make(protocol: str, overrides: dict[str, Any] | None = None) -> Study:
        root = image_folder if protocol == "domain_generalization" else fruit
        source = {"source": {"root": str(root), "side": 32, "shots": 3, "views": 2}}
        own = source if PROTOCOLS[protocol].has_source else {}
        return make_study({"protocol": protocol, "teacher.epochs": 2, **own, **(overrides or {})})

    return make


def taught(study: Study, cache: Path) -> FewShots:
    photographs = open_source(study, cache, quiet)
    return open_stage_one(study, photographs, cache, quiet, CPU).few_shots()


# Whose images -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "classes", "images"),
    [
        ("base_to_novel", COLOURS[:2], 4),
        ("all_classes", COLOURS, 4),
        ("cross_dataset", FRUIT, 3),
        ("domain_generalization", COLOURS, 3),
    ],
)
def test_the_protocol_decides_what_the_teacher_learns(
    protocol: str, classes: tuple[str, ...], images: int, study_of: StudyOf, cache: Path
) -> None:
    study = study_of(protocol)
    shots, table = taught(study, cache), open_source(study, cache, quiet).table
    assert shots.classes == classes
    assert shots.labels.tolist() == [label for label in range(len(classes)) for _ in range(images)]
    assert all(table.classes[table.labels[image]] in classes for image in (*shots.images, *shots.val_images))
    assert set(table.parts[shots.images]) == {TRAIN}
    assert set(table.parts[shots.val_images]) == {VAL}
    assert len(shots.val_images) == sum(
        int((table.labels[table.select(VAL)] == label).sum()) for label in range(len(classes))
    )


@pytest.mark.parametrize(("views", "epochs", "seen"), [(2, 4, 2), (9, 4, 4), ("epochs", 4, 4), (3, 0, 1)])
def test_every_epoch_of_the_teacher_has_its_own_view_if_there_are_enough(
    views: int | str, epochs: int, seen: int, study_of: StudyOf, cache: Path
) -> None:
    study = study_of("base_to_novel", {"data.views": views, "teacher.epochs": epochs})
    assert taught(study, cache).views == seen


def test_a_set_with_too_few_images_for_the_shots_is_refused(study_of: StudyOf, cache: Path) -> None:
    study = study_of("cross_dataset", {"source.shots": 6})
    with pytest.raises(UserError, match=r"class 'apple' has 5 training images, source\.shots asks for 6"):
        taught(study, cache)


def test_the_best_epoch_needs_validation_images(study_of: StudyOf, cache: Path) -> None:
    """ImageNet has none (PAPER 6.20)."""
    study = study_of("cross_dataset", {"teacher.keep": "best"})
    photographs = open_source(study, cache, quiet)
    table = photographs.table
    without = replace(
        photographs, table=replace(table, parts=np.where(table.parts == VAL, TRAIN, table.parts))
    )
    with pytest.raises(UserError, match=r"teacher\.keep: best needs validation images.*set teacher\.keep"):
        open_stage_one(study, without, cache, quiet, CPU)
    last = study_of("cross_dataset", {"teacher.keep": "last"})
    assert open_stage_one(last, without, cache, quiet, CPU).tune().card["val_accuracy"] is None


# Whose classes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["teacher", "conv"])
def test_a_teacher_of_a_source_names_the_classes_of_the_target(
    kind: str, study_of: StudyOf, cache: Path, clip_folders: dict[str, Path], tiny_clip: Callable[[str], Clip]
) -> None:
    """Its context was learned on fruit; the words are those of the colours."""
    study = study_of("cross_dataset", {"teacher.model": f"local-dir:{clip_folders[kind]}"})
    card = prepare(study, cache, quiet)
    tuned = read_teacher(cache, card.teacher, CPU)
    assert tuned.text is not None
    expected = torch.stack([words_by_hand(tiny_clip(kind), tuned.text, name) for name in COLOURS])
    assert_close(read_text(cache, card.teacher, card.text, CPU), expected)
    assert (tuned.visual is None) == (kind == "conv")


def test_one_teacher_serves_many_targets(
    study_of: StudyOf, cache: Path, image_folder: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(image_folder, tmp_path / "other")
    for part in ("train", "val", "test"):
        (other / part / "lemon").rename(other / part / "lime")
    studies = [study_of("cross_dataset"), study_of("cross_dataset", {"data.root": str(other)})]
    first, second = (prepare(study, cache, quiet) for study in studies)
    assert first.teacher == second.teacher
    assert first.text != second.text
    assert first.identity != second.identity


@pytest.mark.parametrize("place", ["source", "data"])
def test_a_class_name_too_long_for_the_prompt_is_refused_before_anything_is_tuned(
    place: str, study_of: StudyOf, fruit: Path, image_folder: Path, tmp_path: Path
) -> None:
    name = " ".join(["very"] * 20)
    other = shutil.copytree({"source": fruit, "data": image_folder}[place], tmp_path / "other")
    for folder in list(other.rglob({"source": "berry", "data": "sea"}[place])):
        folder.rename(folder.with_name(name))
    with pytest.raises(UserError, match=f"class '{name}' does not fit"):
        check(study_of("cross_dataset", {f"{place}.root": str(other)}), tmp_path, quiet)


def test_shots_of_a_source_are_drawn_by_its_own_seed(study_of: StudyOf, cache: Path) -> None:
    """`data.split_seed` says nothing about them."""

    def images(**seeds: int) -> list[int]:
        overrides = {f"{section}.split_seed": seed for section, seed in seeds.items()}
        return taught(study_of("cross_dataset", overrides), cache).images.tolist()

    same = [images(source=1, data=seed) for seed in (1, 2, 3)]
    assert same[0] == same[1] == same[2]
    assert images(source=2, data=1) != same[0]


def test_a_source_is_banked_no_further_than_it_teaches_and_is_measured(
    study_of: StudyOf, tmp_path: Path, clip_folders: dict[str, Path]
) -> None:
    """A convolutional teacher learns from banks: of the few shots under the views it sees, and centred."""
    study = study_of("cross_dataset", {"teacher.model": f"local-dir:{clip_folders['conv']}"})
    tune_teacher(study, tmp_path, quiet)
    banks = [read_bank(tmp_path, path.name) for path in (tmp_path / "banks").iterdir() if path.is_dir()]
    shots, photographs = taught(study, tmp_path), open_source(study, tmp_path, quiet)
    held = sorted((bank.views, bank.rows.tolist()) for bank in banks)
    assert held == [(1, photographs.evaluated.tolist()), (2, shots.images.tolist())]


def test_building_a_teacher_builds_nothing_of_stage_two(study_of: StudyOf, tmp_path: Path) -> None:
    """A ViT: one bank, of validation and test images under its prompts, for the card."""
    study = study_of("base_to_novel")
    tuned = tune_teacher(study, tmp_path, quiet)
    (folder,) = (path for path in (tmp_path / "banks").iterdir() if path.is_dir())
    assert prepare(study, tmp_path, quiet).teacher == tuned.key
    assert prepare(study, tmp_path, quiet).val_bank == folder.name


def test_what_is_not_kept_does_not_change_the_teacher(study_of: StudyOf, cache: Path) -> None:
    def key(**more: Any) -> str:
        overrides = {f"teacher.{name}": value for name, value in more.items()}
        return tune_teacher(study_of("base_to_novel", overrides), cache, quiet).key

    assert key(keep="last", average_mean=1) == key(keep="last", average_mean=2)
    assert key(keep="average", average_mean=1) != key(keep="average", average_mean=2)
    assert key(keep="last") != key(keep="best")


def test_the_number_of_views_it_learns_from_belongs_to_the_teacher(study_of: StudyOf, cache: Path) -> None:
    """The same few shots under one view or two."""
    studies = [study_of("base_to_novel", {"data.views": views}) for views in (1, 2)]
    assert taught(studies[0], cache).images.tolist() == taught(studies[1], cache).images.tolist()
    keys = [tune_teacher(study, cache, quiet).key for study in studies]
    assert keys[0] != keys[1]


# The card ---------------------------------------------------------------------------------------


def by_hand(study: Study, cache: Path, clip: Clip, groups: list[range]) -> dict[str, list[float]]:
    """Percent of validation and test images named rightly among the classes of each group."""
    photographs, tuned = open_source(study, cache, quiet), tune_teacher(study, cache, quiet)
    words = class_features(clip, tuned, photographs.table.classes)
    assert tuned.visual is not None
    shares: dict[str, list[float]] = {"val": [], "test": []}
    for name, part in (("val", VAL), ("test", TEST)):
        for group in groups:
            images = photographs.part(part)
            images = images[np.isin(photographs.labels[images], group)]
            with torch.no_grad():
                pixels = pixels_of(photographs.store, images, 0, 32, CPU)
                logits = encode_prompted(clip, pixels, tuned.visual[None]) @ words[list(group)].T
            named = logits.argmax(1).numpy() + group.start
            shares[name].append(100 * float((named == photographs.labels[images]).mean()))
    return shares


def test_a_card_of_base_classes(study_of: StudyOf, cache: Path, tiny_clip: Callable[[str], Clip]) -> None:
    study = study_of("base_to_novel", {"teacher.epochs": 4, "teacher.seed": 7})
    tuned = tune_teacher(study, cache, quiet)
    card = json.loads((cache / "teachers" / tuned.key / "card.json").read_text())
    share = by_hand(study, cache, tiny_clip("teacher"), [range(2), range(2, 4)])
    base, novel = share["test"]
    assert card["test_base_accuracy"] == pytest.approx(base)
    assert card["test_novel_accuracy"] == pytest.approx(novel)
    assert card["test_harmonic_mean"] == pytest.approx(2 * base * novel / max(base + novel, 1e-9))
    assert card["val_base_accuracy"] == pytest.approx(share["val"][0])
    assert not {"val_accuracy", "test_accuracy"} & set(card)
    told = {name: card[name] for name in ("learns", "classes", "shots", "images", "seed", "keep", "dataset")}
    assert told == {
        "learns": "base", "classes": 2, "shots": 4, "images": 8, "seed": 7, "keep": "best",
        "dataset": "folder",
    }  # fmt: skip
    assert card["epoch"] in range(1, 5)
    assert (card["key"], card["digest"]) == (tuned.key, tuned.digest)
    assert card["data"] == open_source(study, cache, quiet).digest
    assert (card["root"], card["model"]) == (study.data.root, study.teacher.model)
    assert card["config"] == study.teacher.model_dump()
    assert datetime.now(UTC) - datetime.fromisoformat(card["created"]) < timedelta(hours=1)


def test_a_card_of_all_classes_of_a_source(
    study_of: StudyOf, cache: Path, fruit: Path, tiny_clip: Callable[[str], Clip]
) -> None:
    more = {"teacher.keep": "average", "teacher.average_mean": 2}
    study = study_of("cross_dataset", more)
    card = tune_teacher(study, cache, quiet).card
    share = by_hand(study, cache, tiny_clip("teacher"), [range(3)])
    assert card["test_accuracy"] == pytest.approx(share["test"][0])
    assert card["val_accuracy"] == pytest.approx(share["val"][0])
    assert not {"val_base_accuracy", "test_base_accuracy", "test_harmonic_mean"} & set(card)
    assert (card["learns"], card["classes"], card["images"], card["root"]) == ("all", 3, 9, str(fruit))
    assert (card["keep"], card["epoch"]) == ("average", None)


def test_the_card_of_a_zero_shot_teacher(study_of: StudyOf, cache: Path) -> None:
    card = tune_teacher(study_of("all_classes", {"teacher.epochs": 0}), cache, quiet).card
    assert card["epoch"] == 0
    assert 0 <= card["val_accuracy"] <= 100
    assert 0 <= card["test_accuracy"] <= 100


@pytest.mark.parametrize("keep", ["average", "best"])
def test_test_labels_change_the_card_and_nothing_of_the_teacher(
    keep: str, study_of: StudyOf, cache: Path, image_folder: Path, tmp_path: Path
) -> None:
    swapped = shutil.copytree(image_folder, tmp_path / "swapped")
    for one, other in (("coal", "sea"), ("grass", "lemon")):
        for name, source in ((one, other), (other, one)):
            shutil.rmtree(swapped / "test" / name)
            shutil.copytree(image_folder / "test" / source, swapped / "test" / name)
    more = {"teacher.keep": keep, "teacher.average_mean": 2}
    honest, fooled = (
        tune_teacher(study_of("base_to_novel", more | root), cache, quiet)
        for root in ({}, {"data.root": str(swapped)})
    )
    assert_close((honest.text, honest.visual), (fooled.text, fooled.visual), rtol=0, atol=0)
    assert honest.card["epoch"] == fooled.card["epoch"]
    assert honest.card["val_base_accuracy"] == fooled.card["val_base_accuracy"]
    assert honest.card["test_base_accuracy"] != fooled.card["test_base_accuracy"]


def test_a_stored_teacher_is_not_tuned_again(
    study_of: StudyOf, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of("cross_dataset")
    before = tune_teacher(study, cache, quiet)

    def again(*_: object) -> None:
        raise AssertionError("tuned again")

    monkeypatch.setattr(comkd_ray.stage_one, "fit_teacher", again)
    after = tune_teacher(study, cache, quiet)
    assert (after.key, after.digest, after.card) == (before.key, before.digest, before.card)
