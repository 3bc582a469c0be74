"""Who learns from what, what chooses, what is tested: the same rules for every protocol and selection."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniatures import REAL

from comkd_ray import results, study_file
from comkd_ray.cohort import Arm
from comkd_ray.config import Study
from comkd_ray.data.datasets import TEST, TRAIN, VAL, ImageTable
from comkd_ray.errors import UserError
from comkd_ray.material import Card, Material, open_material
from comkd_ray.photographs import arranged, open_photographs, open_source, shots, source_table, target_table
from comkd_ray.prepare import prepare
from comkd_ray.protocols import PROTOCOLS, explain, is_transductive, objective_of, protocol_of
from comkd_ray.study_file import resolve
from comkd_ray.train import EpochReport, fit

pytestmark = pytest.mark.usefixtures("cpu")

MakeStudy = Callable[..., Study]
Prepared = Callable[[Study], tuple[Card, Material]]
Row = dict[str, Any]
SELECTIONS = ("strict", "promptkd")
EVERY = [(protocol, selection) for protocol in PROTOCOLS for selection in SELECTIONS]


@pytest.fixture
def study_of(make_study: MakeStudy, image_folder: Path) -> Callable[..., Study]:
    """study_of(protocol, selection) -> the tiny study so; a source is the same photographs."""

    def make(protocol: str, selection: str = "strict") -> Study:
        source = {"root": str(image_folder), "side": 40, "shots": 4, "views": 2}
        own = {"source": source} if PROTOCOLS[protocol].has_source else {}
        return make_study({"protocol": protocol, "selection": selection, **own})

    return make


def rows_of(material: Material, study: Study, seeds: int = 1) -> list[Row]:
    """Rows of `epochs` of one arm a seed."""
    reports: list[EpochReport] = []
    arms = [Arm(f"seed {seed}", resolve(study, {"train.seed": seed})) for seed in range(seeds)]
    fit(arms, material, reports.append)
    return [row for report in reports for row in report.rows]


@pytest.mark.parametrize(("protocol", "selection"), EVERY)
def test_an_arm_has_the_scores_of_its_protocol_and_no_others(
    study_of: Callable[..., Study], prepared: Prepared, protocol: str, selection: str
) -> None:
    study = study_of(protocol, selection)
    card, material = prepared(study)
    rows = rows_of(material, study)
    row = next(row for row in rows if any(key.startswith("test_") for key in row))
    scores = {f"test_{name}" for name in protocol_of(study).scores}
    assert {key for key in row if key.startswith("test_")} == scores
    assert {key for key in row if key.startswith("val_")} == set(protocol_of(study).validation)
    assert row["objective"] == row[objective_of(study)]
    assert set(row) - {"arm"} <= set(results.EPOCHS)
    assert {key.removeprefix("teacher_") for key in card.references if key.startswith("teacher_t")} == scores


@pytest.mark.parametrize(("protocol", "selection"), EVERY)
def test_only_promptkd_chooses_by_test_labels(
    study_of: Callable[..., Study], prepared: Prepared, protocol: str, selection: str
) -> None:
    """Wrong test labels change what a promptkd selection sees, and nothing that a strict one sees."""
    study = study_of(protocol, selection)
    _, material = prepared(study)
    table = material.photographs.table
    labels = table.labels.copy()
    test = table.select(TEST)
    for group in material.photographs.groups:  # stay in the group: the half of an image is no secret
        inside = test[np.isin(labels[test], group)]
        labels[inside] = group.start + (labels[inside] - group.start + 1) % len(group)
    photographs = replace(material.photographs, table=replace(table, labels=labels))
    wrong = replace(material, photographs=photographs)
    honest, fooled = rows_of(material, study, seeds=4), rows_of(wrong, study, seeds=4)
    same = [a["objective"] == b["objective"] for a, b in zip(honest, fooled, strict=True)]
    assert all(same) == (selection == "strict")
    headline = protocol_of(study).headline
    assert any(a.get(headline) != b.get(headline) for a, b in zip(honest, fooled, strict=True))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_strict_selection_sees_only_the_labels_that_its_protocol_grants(
    study_of: Callable[..., Study], prepared: Prepared, protocol: str
) -> None:
    study = study_of(protocol)
    _, material = prepared(study)
    table = material.photographs.table
    granted = {"base": range(2), "all": range(4), "none": range(0)}[protocol_of(study).labels]
    labels = table.labels.copy()
    val = table.select(VAL)
    hidden = val[~np.isin(labels[val], granted)]
    for group in material.photographs.groups:
        inside = hidden[np.isin(labels[hidden], group)]
        labels[inside] = group.start + (labels[inside] - group.start + 1) % len(group)
    photographs = replace(material.photographs, table=replace(table, labels=labels))
    honest, fooled = rows_of(material, study), rows_of(replace(material, photographs=photographs), study)
    assert [row["objective"] for row in honest] == [row["objective"] for row in fooled]


def test_without_halves_all_classes_compete(study_of: Callable[..., Study], prepared: Prepared) -> None:
    _, halves = prepared(study_of("base_to_novel"))
    _, whole = prepared(study_of("all_classes"))
    assert halves.photographs.groups == (range(2), range(2, 4))
    assert whole.photographs.groups == (range(4),)


def only_test_images(table: ImageTable) -> ImageTable:
    return replace(table, parts=np.full(len(table.paths), TEST, dtype=np.int8))


@pytest.mark.parametrize(
    ("protocol", "selection"),
    [("domain_generalization", "strict"), ("cross_dataset", "strict"), ("cross_dataset", "promptkd")],
)
def test_a_set_of_test_images_is_cut_so_that_no_student_trains_on_what_it_is_tested_on(
    protocol: str, selection: str, study_of: Callable[..., Study], cache: Path
) -> None:
    study = study_of(protocol, selection)
    table = only_test_images(open_photographs(study, cache, lambda *_: None).table)
    cut = arranged(study, table)
    counts = [np.bincount(cut.labels[cut.parts == part], minlength=4).tolist() for part in (TRAIN, VAL, TEST)]
    assert counts == [[9] * 4, [4] * 4, [5] * 4]
    assert "cut 50/20/30" in cut.split
    assert np.array_equal(arranged(study, table).parts, cut.parts)


def test_the_published_habit_trains_on_the_test_images(study_of: Callable[..., Study], cache: Path) -> None:
    """PAPER 5.14."""
    study = study_of("domain_generalization", "promptkd")
    photographs = open_photographs(study, cache, lambda *_: None)
    assert is_transductive(study)
    assert np.array_equal(photographs.part(TRAIN), photographs.part(TEST))
    table = only_test_images(photographs.table)
    assert arranged(study, table) is table


@pytest.mark.parametrize("protocol", ["base_to_novel", "all_classes"])
def test_a_set_of_test_images_cannot_teach(
    study_of: Callable[..., Study], cache: Path, protocol: str
) -> None:
    study = study_of(protocol)
    table = only_test_images(open_photographs(study, cache, lambda *_: None).table)
    with pytest.raises(UserError, match="test images only"):
        arranged(study, table)


@pytest.mark.parametrize(("protocol", "has_source"), [("cross_dataset", False), ("base_to_novel", True)])
def test_a_source_stands_where_the_protocol_needs_one(
    make_study: MakeStudy, image_folder: Path, protocol: str, has_source: bool
) -> None:
    source = {"source": {"root": str(image_folder)}} if has_source else {}
    with pytest.raises(UserError, match=f"protocol {protocol} .* section source"):
        make_study({"protocol": protocol, **source})


@pytest.mark.parametrize(("protocol", "selection"), EVERY)
def test_what_is_explained_names_the_habit(
    study_of: Callable[..., Study], protocol: str, selection: str
) -> None:
    study = study_of(protocol, selection)
    told = dict(explain(study, {"train": 1234, "test": 56, "teacher": 7}))
    assert ("TEST" in told["epochs and arms chosen by"]) == (selection == "promptkd")
    assert told["student trains on"].startswith("1,234 ")
    assert ("test images themselves" in told["student trains on"]) == is_transductive(study)
    assert told["teacher learns from"].startswith("7 ")


# The source ---------------------------------------------------------------------------------------


def test_only_images_that_the_teacher_uses_are_stored(study_of: Callable[..., Study], cache: Path) -> None:
    """4 shots of 4 classes, and their 5 validation and 5 test images each: 4 of 8 are never decoded."""
    source = open_source(study_of("cross_dataset"), cache, lambda *_: None)
    assert [len(source.part(part)) for part in (TRAIN, VAL, TEST)] == [16, 20, 20]
    assert len(source.store.pixels) == 56
    whole = study_of("all_classes")
    table = target_table(whole, lambda *_: None)
    drawn = {table.paths[index] for index in shots(whole, table)}
    assert {source.table.paths[index] for index in source.part(TRAIN)} == drawn


def test_a_labelled_image_of_the_source_is_never_tested_on(make_study: MakeStudy, image_folder: Path) -> None:
    """The same class folders, cut by another seed: some shots would be test images."""
    root = str(image_folder / "train")
    source = {"root": root, "side": 40, "split_seed": 2, "shots": 4}
    study = make_study({"protocol": "cross_dataset", "data": {"root": root}, "source": source})
    with pytest.raises(UserError, match=r"source: \d+ of its labelled images are test images of data"):
        source_table(study, target_table(study, lambda *_: None), lambda *_: None)


def test_another_domain_shows_the_classes_of_the_source(
    make_study: MakeStudy, image_folder: Path, tmp_path: Path
) -> None:
    for name in ("coal", "moss"):
        shutil.copytree(image_folder / "train" / "coal", tmp_path / name)
    source = {"source": {"root": str(image_folder), "shots": 4}, "data": {"root": str(tmp_path), "side": 40}}
    for protocol in ("domain_generalization", "cross_dataset"):
        study = make_study({"protocol": protocol, "train.batch_size": 2, **source})
        target = target_table(study, lambda *_: None)
        if protocol == "cross_dataset":
            assert source_table(study, target, lambda *_: None).classes == ("coal", "grass", "lemon", "sea")
            continue
        with pytest.raises(UserError, match="class 'moss' is none of the source's"):
            source_table(study, target, lambda *_: None)


def test_a_teacher_that_learns_nothing_is_said_to(make_study: MakeStudy) -> None:
    told = dict(explain(make_study({"teacher.epochs": 0}), {"teacher": 0}))
    assert told["teacher learns from"] == "nothing: zero-shot"


# Real photographs and the demo weights ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "pacs").is_dir(), reason="no copy of PACS here")
@pytest.mark.parametrize(
    ("file", "selection"),
    [("domain_shift", "strict"), ("domain_shift", "promptkd"), ("cross_dataset", "strict")],
)
def test_a_teacher_of_one_set_of_photographs_teaches_another(
    tmp_path: Path, file: str, selection: str
) -> None:
    """The tuned teacher, its banks and one short arm; the student ends above chance (1 in 7)."""
    sets = [f"data.root={REAL / 'pacs'}", f"selection={selection}", "teacher.epochs=2", "data.views=1"]
    sets += ["teacher.keep=last", "train.epochs=3", "data.side=64"]
    if file == "domain_shift":
        sets.append(f"source.root={REAL / 'pacs'}")
    study = study_file.load(study_file.search_spaces() / f"{file}.yaml", sets)
    card = prepare(study, tmp_path, lambda *_: None)
    rows = rows_of(open_material(study, card, tmp_path), study)
    assert card.references["teacher_test_accuracy"] > 100 / 7 + 5
    assert max(row["test_accuracy"] for row in rows) > 100 / 7
