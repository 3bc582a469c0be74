"""The 15 published data sets in miniature: labels, names, parts, templates, and what can be wrong."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pytest
from miniatures import REAL, Photo
from scipy.io import savemat

from comkd_ray.config import Data
from comkd_ray.data.datasets import PARTS, ROWS, TEST, TRAIN, VAL, ImageTable, open_dataset
from comkd_ray.data.pixels import open_store
from comkd_ray.data.splits import base_count, parts_of_test_only
from comkd_ray.errors import UserError

SPLIT_SETS = sorted(miniatures.DOWNLOADS)
OFFICIAL_SETS = ["oxford_pets", "stanford_cars", "sun397", "ucf101"]


def opened(name: str, root: Path, **keys: Any) -> ImageTable:
    return open_dataset(Data.model_validate({"dataset": name, "root": str(root), **keys}), root)


def contents(table: ImageTable) -> dict[str, list[Photo]]:
    """The images of every part of a table, in the words of a miniature."""
    return {
        name: [
            Photo(table.paths[i], int(table.labels[i]), table.classes[table.labels[i]])
            for i in table.select(part)
        ]
        for part, name in enumerate(PARTS)
    }


def with_split(name: str, root: Path) -> dict[str, list[Photo]]:
    root.mkdir(exist_ok=True)
    return miniatures.write_split_file(root / ROWS[name].split, miniatures.DOWNLOADS[name](root))


# The table --------------------------------------------------------------------------------------


PUBLISHED_SUMS = {  # all images of a data set, as its authors count them
    "imagenet": 1_331_167, "oxford_pets": 7_349, "stanford_cars": 16_185, "oxford_flowers": 8_189,
    "food101": 101_000, "fgvc_aircraft": 10_000, "dtd": 5_640, "eurosat": 27_000, "ucf101": 13_320,
    "sun397": 39_700,
}  # fmt: skip
BASE = {
    "imagenet": 500, "caltech101": 50, "oxford_pets": 19, "stanford_cars": 98, "oxford_flowers": 51,
    "food101": 51, "fgvc_aircraft": 50, "sun397": 199, "dtd": 24, "eurosat": 5, "ucf101": 51,
}  # fmt: skip


@pytest.mark.parametrize(("name", "images"), PUBLISHED_SUMS.items())
def test_the_parts_are_all_images_of_the_data_set(name: str, images: int) -> None:
    row = ROWS[name]
    assert (row.train or 0) + (row.val or 0) + row.test == images


@pytest.mark.parametrize(("name", "base"), BASE.items())
def test_base_classes_are_the_larger_half_and_test_halves_add_up(name: str, base: int) -> None:
    row = ROWS[name]
    assert base_count(row.classes) == base
    assert row.halves is not None
    assert sum(row.halves) == row.test


def test_prompts_are_those_of_the_paper() -> None:
    own = {
        "oxford_pets": "a photo of a {}, a type of pet.",
        "oxford_flowers": "a photo of a {}, a type of flower.",
        "food101": "a photo of {}, a type of food.",
        "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
        "dtd": "{} texture.",
        "eurosat": "a centered satellite photo of {}.",
        "ucf101": "a photo of a person doing {}.",
    }
    assert {name: row.template for name, row in ROWS.items()} == dict.fromkeys(ROWS, "a photo of a {}.") | own


def test_only_what_is_tested_beside_imagenet_has_no_training_images() -> None:
    assert {name for name, row in ROWS.items() if row.train is None} == set(miniatures.TEST_SETS)
    assert {name for name, row in ROWS.items() if row.halves is None} == set(miniatures.TEST_SETS)


# Split files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPLIT_SETS)
def test_a_published_split_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    expected = with_split(name, tmp_path)
    table = opened(name, tmp_path, make_split=True)  # which matters only where the file is missing
    assert contents(table) == expected
    assert table.split == f"split file {ROWS[name].split}"
    assert not table.test_only


@pytest.mark.parametrize("name", SPLIT_SETS)
def test_listed_images_are_relative_to_the_image_folder_but_for_cars(name: str, tmp_path: Path) -> None:
    with_split(name, tmp_path)
    home = tmp_path if name == "stanford_cars" else tmp_path / ROWS[name].images[0]
    assert opened(name, tmp_path).root == home


def test_images_are_decoded_from_where_the_table_says(tmp_path: Path) -> None:
    with_split("stanford_cars", tmp_path / "cars")
    table = opened("stanford_cars", tmp_path / "cars")
    store = open_store(table, 16, tmp_path / "cache", lambda *_: None)
    assert store.sizes.tolist() == [[3, 4]] * len(table.paths)


@pytest.mark.parametrize("folder", ["cars_train", "cars_test"])
def test_each_image_folder_of_cars_may_be_a_link_and_no_other_folder(folder: str, tmp_path: Path) -> None:
    expected = with_split("stanford_cars", tmp_path / "cars")
    (tmp_path / "cars" / folder).rename(tmp_path / "elsewhere")
    (tmp_path / "cars" / folder).symlink_to(tmp_path / "elsewhere")
    assert contents(opened("stanford_cars", tmp_path / "cars")) == expected
    (tmp_path / "outside").mkdir()
    shutil.move(tmp_path / "elsewhere" / "00001.jpg", tmp_path / "outside")
    (tmp_path / "elsewhere" / "00001.jpg").symlink_to(tmp_path / "outside" / "00001.jpg")
    with pytest.raises(UserError, match=r"00001\.jpg is a link out of"):
        opened("stanford_cars", tmp_path / "cars")


@pytest.mark.parametrize("name", SPLIT_SETS)
def test_without_its_split_file_a_data_set_says_where_it_is_and_what_else_can_be_done(
    name: str, tmp_path: Path
) -> None:
    miniatures.DOWNLOADS[name](tmp_path)
    with pytest.raises(
        UserError, match=r"json: no such split file; .*DATASETS\.md.*--set data\.make_split=true"
    ):
        opened(name, tmp_path)


def test_a_root_one_folder_too_high_is_told_the_right_one(tmp_path: Path) -> None:
    with_split("food101", tmp_path / "food-101")
    with pytest.raises(UserError, match=r"holds the data set; data\.root is its folder: .*/food-101$"):
        opened("food101", tmp_path)


# Splits of our own ------------------------------------------------------------------------------


def counts(table: ImageTable) -> list[list[int]]:
    """[part][class] images."""
    classes = len(table.classes)
    return [np.bincount(table.labels[table.select(part)], minlength=classes).tolist() for part in range(3)]


@pytest.mark.parametrize("name", SPLIT_SETS)
def test_a_split_of_our_own_has_the_labels_names_and_paths_of_the_published(
    name: str, tmp_path: Path
) -> None:
    photos = miniatures.DOWNLOADS[name](tmp_path)
    table = opened(name, tmp_path, make_split=True)
    assert sorted(photo for part in contents(table).values() for photo in part) == sorted(photos)
    assert "a split of our own" in table.split
    assert "does not compare with published numbers" in table.split
    assert not (tmp_path / ROWS[name].split).exists()


@pytest.mark.parametrize("name", [name for name in SPLIT_SETS if name not in OFFICIAL_SETS])
def test_without_official_parts_each_class_is_cut_50_20_30(name: str, tmp_path: Path) -> None:
    photos = miniatures.DOWNLOADS[name](tmp_path)
    classes = len({photo.label for photo in photos})
    assert counts(opened(name, tmp_path, make_split=True)) == [[5] * classes, [2] * classes, [3] * classes]


@pytest.mark.parametrize("name", OFFICIAL_SETS)
def test_the_official_test_part_is_kept_and_the_rest_cut_80_20(name: str, tmp_path: Path) -> None:
    photos = miniatures.DOWNLOADS[name](tmp_path)
    table = opened(name, tmp_path, make_split=True)
    official = [photo for i, photo in enumerate(photos) if miniatures.is_official(i % miniatures.PER_CLASS)]
    assert sorted(contents(table)["test"]) == sorted(official)
    classes = len(table.classes)
    assert counts(table) == [[5] * classes, [1] * classes, [4] * classes]


def test_a_split_of_our_own_hangs_on_the_seed(tmp_path: Path) -> None:
    miniatures.dtd(tmp_path)
    one, again, two = (contents(opened("dtd", tmp_path, make_split=True, split_seed=s)) for s in (1, 1, 2))
    assert one == again
    assert one != two


@pytest.mark.parametrize("name", ["folder", "fgvc_aircraft", "imagenet", "imagenet_a"])
def test_a_split_of_our_own_is_refused_where_parts_are_given(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"data\.make_split: {name} takes none"):
        opened(name, tmp_path, make_split=True)


def _cars_test_class(root: Path) -> None:
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": miniatures.annotations([("1.jpg", 3)])})


Damage = Callable[[Path], object]
RAW_DAMAGE: list[tuple[str, Damage, str]] = [
    (
        "oxford_pets",
        lambda root: miniatures.write(root / "annotations/test.txt", ["Bengal_1 1"]),
        "test.txt: line 1: must be an image and three numbers, not 'Bengal_1 1'",
    ),
    (
        "oxford_pets",
        lambda root: miniatures.write(root / "annotations/test.txt", ["../x_1 1 1 1"]),
        "test.txt: line 1: '../x_1.jpg' leaves the image folder",
    ),
    (
        "oxford_pets",
        lambda root: miniatures.write(root / "annotations/test.txt", ["Abyssinian_0 1 1 1"]),
        "Abyssinian_0.jpg is in the images and again in the test images",
    ),
    (
        "oxford_pets",
        lambda root: miniatures.write(root / "annotations/test.txt", ["Siamese_0 1 1 1"]),
        "label 0 is called 'abyssinian' and, at Siamese_0.jpg, 'siamese'",
    ),
    ("sun397", lambda root: (root / "ClassName.txt").unlink(), "ClassName.txt: no such file; https://"),
    (
        "sun397",
        lambda root: miniatures.write(root / "Testing_01.txt", ["/b/bar/1.jpg"]),
        "Testing_01.txt: line 1: /b/bar is not in ClassName.txt",
    ),
    (
        "sun397",
        lambda root: (root / "SUN397/a/abbey/sun_3.jpg").unlink(),
        "1 of 20 listed images are missing, the first is .*a/abbey/sun_3.jpg",
    ),
    (
        "ucf101",
        lambda root: miniatures.write(root / "ucfTrainTestlist/classInd.txt", ["one"]),
        "classInd.txt: line 1: must be a number and an action",
    ),
    (
        "ucf101",
        lambda root: miniatures.write(root / "ucfTrainTestlist/testlist01.txt", ["Run/v_1.avi"]),
        "testlist01.txt: line 1: must be <action of classInd.txt>/<video>.avi",
    ),
    ("stanford_cars", lambda root: (root / "devkit/cars_meta.mat").unlink(), "cars_meta.mat: no such file"),
    (
        "stanford_cars",
        lambda root: (root / "devkit/cars_meta.mat").write_bytes(b"<html>"),
        "no MATLAB file with",
    ),
    ("stanford_cars", lambda root: (root / "devkit/cars_meta.mat").write_bytes(b""), "no MATLAB file with"),
    (
        "stanford_cars",
        lambda root: savemat(root / "devkit/cars_meta.mat", {"x": 1}),
        "no MATLAB file with 'class_n",
    ),
    (
        "stanford_cars",
        lambda root: savemat(root / "cars_test_annos_withlabels.mat", {"annotations": np.zeros(3)}),
        "withlabels.mat: 'annotations' must hold 'class' and 'fname' of every image",
    ),
    ("stanford_cars", _cars_test_class, "withlabels.mat: class 3 is not in .*cars_meta.mat"),
    (
        "oxford_flowers",
        lambda root: (root / "cat_to_name.json").write_text("[]"),
        "must be a JSON object of number",
    ),
    (
        "oxford_flowers",
        lambda root: (root / "cat_to_name.json").write_text('{"1": "rose"}'),
        "no name for class 3",
    ),
    (
        "oxford_flowers",
        lambda root: savemat(root / "imagelabels.mat", {"labels": np.ones((2, 2))}),
        "imagelabels.mat: 'labels' must be one row of class numbers",
    ),
    (
        "oxford_flowers",
        lambda root: savemat(root / "imagelabels.mat", {"labels": np.array(["a", "b"])}),
        "imagelabels.mat: 'labels' must be one row of class numbers",
    ),
    (
        "dtd",
        lambda root: [(root / "images/banded").joinpath(f"banded_{i:04}.jpg").unlink() for i in range(8)],
        "class 'banded' has 2 images, 3 are needed",
    ),
]


@pytest.mark.parametrize(("name", "damage", "message"), RAW_DAMAGE)
def test_a_damaged_download_is_refused(name: str, damage: Damage, message: str, tmp_path: Path) -> None:
    miniatures.DOWNLOADS[name](tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        opened(name, tmp_path, make_split=True)
    assert "\n" not in str(caught.value)


# Aircraft ---------------------------------------------------------------------------------------


def test_aircraft_has_its_official_lists(tmp_path: Path) -> None:
    expected = miniatures.fgvc_aircraft(tmp_path)
    table = opened("fgvc_aircraft", tmp_path)
    assert contents(table) == expected
    assert table.classes == ("707-320", "A340-200", "DC-9-30", "MD-11 F")
    assert table.root == tmp_path / "images"


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        (
            "images_variant_val.txt",
            ["123 707-320"],
            "val.txt: line 1: must be a number of 7 digits and a variant",
        ),
        ("images_variant_val.txt", ["1000004 Zeppelin"], "line 1: variant 'Zeppelin' is not in variants.txt"),
        ("images_variant_val.txt", ["1000000 707-320"], "1000000.jpg is in train and again in val"),
        ("images_variant_val.txt", ["1000004 707-320"], "class 'A340-200' has no val image"),
        (
            "variants.txt",
            ["707-320", "A340-200", "DC-9-30", "MD-11 F", "Zeppelin"],
            "'Zeppelin' has no train",
        ),
        (
            "variants.txt",
            ["707-320", "A340-200", "DC-9-30", "MD-11 F", "707-320"],
            "two classes are called '707-320'",
        ),
    ],
)
def test_damaged_lists_of_aircraft_are_refused(
    file: str, lines: Sequence[str], message: str, tmp_path: Path
) -> None:
    miniatures.fgvc_aircraft(tmp_path)
    miniatures.write(tmp_path / file, lines)
    with pytest.raises(UserError, match=message):
        opened("fgvc_aircraft", tmp_path)


def test_missing_lists_and_images_of_aircraft_are_named(tmp_path: Path) -> None:
    miniatures.fgvc_aircraft(tmp_path)
    (tmp_path / "images" / "1000005.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 24 listed images are missing, the first is .*1000005\.jpg"):
        opened("fgvc_aircraft", tmp_path)
    (tmp_path / "variants.txt").unlink()
    with pytest.raises(UserError, match=r"variants\.txt: no such file"):
        opened("fgvc_aircraft", tmp_path)


# ImageNet ---------------------------------------------------------------------------------------


def test_imagenet_tests_on_its_val_folder_and_holds_a_fifth_of_train_out(tmp_path: Path) -> None:
    expected = miniatures.imagenet(tmp_path)
    table = opened("imagenet", tmp_path)
    found = contents(table)
    assert sorted(found["test"]) == sorted(expected["val"])
    assert sorted(found["train"] + found["val"]) == sorted(expected["train"])
    assert counts(table) == [[8] * 5, [2] * 5, [2] * 5]
    assert table.classes == ("tench", "goldfish", "polar bear", "sunglasses", "sunglasses")
    assert table.split == (
        "folder val is the test part; val is a seeded 50 images a class of folder train, "
        "at most a fifth (split_seed 1)"
    )


def test_a_large_class_of_imagenet_gives_50_images(tmp_path: Path) -> None:
    miniatures.imagenet(tmp_path)
    miniatures.put(tmp_path / "images/train/n01443537", *(f"more_{i}.JPEG" for i in range(310)))
    assert counts(opened("imagenet", tmp_path))[VAL] == [2, 50, 2, 2, 2]


def test_imagenets_folders_may_be_links(tmp_path: Path) -> None:
    miniatures.imagenet(tmp_path / "real")
    (tmp_path / "set" / "images").mkdir(parents=True)
    miniatures.class_names(tmp_path / "set")
    for part in ("train", "val"):
        (tmp_path / "set/images" / part).symlink_to(tmp_path / "real/images" / part)
    assert contents(opened("imagenet", tmp_path / "set")) == contents(opened("imagenet", tmp_path / "real"))


def _flat_val(root: Path) -> None:
    shutil.rmtree(root / "images/val")
    miniatures.put(root / "images/val", "ILSVRC2012_val_00000001.JPEG")


IMAGENET_DAMAGE: list[tuple[Damage, str]] = [
    (lambda root: (root / "classnames.txt").unlink(), r"classnames.txt: no such file; .*wnid.*DATASETS\.md"),
    (
        lambda root: miniatures.write(root / "classnames.txt", ["tench n01440764"]),
        "line 1: must be a wnid and a",
    ),
    (lambda root: miniatures.write(root / "classnames.txt", ["n01440764 "]), "line 1: must be a wnid and a"),
    (lambda root: miniatures.write(root / "classnames.txt", ["n01440764 a", "n01440764 b"]), "stands twice"),
    (
        lambda root: miniatures.write(root / "classnames.txt", ["n01440764 tench"]),
        "n01443537: not in classnames",
    ),
    (lambda root: shutil.rmtree(root / "images/val/n01443537"), "val/n01443537: no such folder"),
    (lambda root: shutil.rmtree(root / "images/train/n01443537"), "val/n01443537: class is not in train"),
    (lambda root: shutil.rmtree(root / "images/train"), "images/train: no such folder"),
    (_flat_val, "images/val: no folders named by wnid; sort the images into one folder a class"),
    (
        lambda root: [path.unlink() for path in (root / "images/train/n01443537").glob("*")],
        "n01443537: no images",
    ),
    (
        lambda root: [path.unlink() for path in (root / "images/train/n01443537").glob("*_[1-9]*")],
        "class 'goldfish' has 1 training image, 2 are needed",
    ),
]


@pytest.mark.parametrize(("damage", "message"), IMAGENET_DAMAGE)
def test_a_damaged_imagenet_is_refused(damage: Damage, message: str, tmp_path: Path) -> None:
    miniatures.imagenet(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        opened("imagenet", tmp_path)


@pytest.mark.parametrize("name", miniatures.TEST_SETS)
def test_a_variant_of_imagenet_has_test_images_only_and_labels_of_its_own(name: str, tmp_path: Path) -> None:
    photos = miniatures.TEST_SETS[name](tmp_path)
    table = opened(name, tmp_path)
    assert contents(table) == {"train": [], "val": [], "test": photos}
    assert table.test_only
    assert table.split == "test images only, as published"


@pytest.mark.parametrize("name", miniatures.TEST_SETS)
def test_a_variant_of_imagenet_needs_class_names(name: str, tmp_path: Path) -> None:
    miniatures.TEST_SETS[name](tmp_path)
    (tmp_path / "classnames.txt").unlink()
    with pytest.raises(UserError, match="a copy belongs into the folder of each ImageNet variant"):
        opened(name, tmp_path)


@pytest.mark.parametrize(("change", "message"), [(("3", "5"), "val/5: class is not in classnames"),
                                                 (("3", ".3"), "val/3: no such folder")])  # fmt: skip
def test_v2_has_a_folder_for_each_index(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    miniatures.imagenet_v2(tmp_path)
    images = tmp_path / ROWS["imagenet_v2"].images[0]
    (images / change[0]).rename(images / change[1])
    with pytest.raises(UserError, match=message):
        opened("imagenet_v2", tmp_path)


def test_a_test_only_data_set_can_be_cut_so_that_no_one_trains_on_what_is_tested() -> None:
    labels = np.repeat([0, 1, 2], [10, 20, 3])
    parts = parts_of_test_only(labels, 1, ("a", "b", "c"))
    counted = [Counter(parts[labels == label].tolist()) for label in range(3)]
    assert counted == [{TRAIN: 5, VAL: 2, TEST: 3}, {TRAIN: 10, VAL: 4, TEST: 6}, {TRAIN: 1, VAL: 1, TEST: 1}]
    assert parts.tolist() != parts_of_test_only(labels, 2, ("a", "b", "c")).tolist()


# Any split file ---------------------------------------------------------------------------------


def test_a_split_file_anywhere_in_any_root_will_do(tmp_path: Path) -> None:
    photos = miniatures.sun397(tmp_path)
    (tmp_path / "splits").mkdir()
    moved = [photo._replace(path=f"SUN397/{photo.path}") for photo in photos]
    expected = miniatures.write_split_file(tmp_path / "splits" / "mine.json", moved)
    table = opened("split_file", tmp_path, split="splits/mine.json")
    assert contents(table) == expected
    assert (table.root, table.split) == (tmp_path, "split file splits/mine.json")


def test_a_listed_path_that_is_too_long_for_the_system_is_one_line(tmp_path: Path) -> None:
    deep = "/".join(["d" * 200] * 30) + "/1.jpg"
    rows = {part: [[f"ant/{part}.jpg", 0, "ant"]] for part in ("train", "val")} | {"test": [[deep, 0, "ant"]]}
    (tmp_path / "split.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"split\.json: folder \.\.\.d+: File name too long"):
        opened("split_file", tmp_path, split="split.json")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("absent.json", r"absent\.json: not readable as JSON"),
        ("../mine.json", r"data\.split: '\.\./mine\.json' leaves the image folder"),
        ("/mine.json", r"data\.split: '/mine\.json' leaves"),
    ],
)
def test_a_split_file_lies_in_the_root(split: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        opened("split_file", tmp_path, split=split)


# Real data --------------------------------------------------------------------------------------


@pytest.mark.skipif(not (REAL / "caltech-101").is_dir(), reason="no copy of Caltech101 here")
def test_the_real_caltech101_has_its_published_counts_and_our_names_are_those_of_its_split() -> None:
    root, row = REAL / "caltech-101", ROWS["caltech101"]
    table = opened("caltech101", root)
    assert [len(table.select(part)) for part in range(3)] == [row.train, row.val, row.test]
    assert len(table.classes) == row.classes
    base = int((table.labels[table.select(TEST)] < base_count(row.classes)).sum())
    assert (base, row.test - base) == row.halves
    assert row.raw is not None
    names = {label: name.replace("_", " ") for _, label, name in row.raw(root).images}
    assert tuple(names[label] for label in range(row.classes)) == table.classes


@pytest.mark.skipif(not (REAL / "pacs").is_dir(), reason="no copy of PACS here")
@pytest.mark.parametrize("domain", ["photo", "sketch"])
def test_domains_of_pacs_open_by_their_split_files(domain: str) -> None:
    root, file = REAL / "pacs", f"split_{domain}.json"
    table = opened("split_file", root, split=file)
    listed: Mapping[str, list[Any]] = json.loads((root / file).read_text())
    assert {part: [tuple(row) for row in listed[part]] for part in PARTS} == contents(table)
    assert all(path.startswith(f"{domain}/") for path in table.paths)
