"""Data sets from disk: CoOp's layout with its split file, plain folders, and everything wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import comkd_ray
from comkd_ray.config import Data, DataSet
from comkd_ray.data.datasets import ROWS, TEST, TRAIN, VAL, ImageTable, open_dataset
from comkd_ray.errors import UserError

SPLIT = "split_zhou_Caltech101.json"
IMAGES = "101_ObjectCategories"
Listing = dict[str, list[Any]]


def opened(name: str, root: Path, seed: int) -> ImageTable:
    return open_dataset(Data.model_validate({"dataset": name, "root": str(root), "split_seed": seed}), root)


def put(root: Path, *paths: str) -> None:
    """Files with a name only: opening a data set looks at no pixel."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def class_folders(root: Path, **counts: int) -> Path:
    put(root, *(f"{name}/{i:03}.jpg" for name, count in counts.items() for i in range(count)))
    return root


def part_folders(root: Path, parts: str = "train val test") -> Path:
    for part in parts.split():
        class_folders(root / part, cat=5, dog=5)
    return root


def listing() -> Listing:
    return {
        part: [[f"cat/{part}.jpg", 0, "cat"], [f"Big_Dog/{part}.jpg", 1, "big_dog"]]
        for part in ("train", "val", "test")
    }


def split_data_set(root: Path, content: object = None) -> Path:
    """A data set in CoOp's layout; `content` replaces what its split file says."""
    put(root / IMAGES, *(row[0] for rows in listing().values() for row in rows))
    (root / SPLIT).write_text(json.dumps(listing() if content is None else content))
    return root


def images_by_part(table: ImageTable) -> dict[int, set[str]]:
    return {part: {table.paths[i] for i in table.select(part)} for part in (TRAIN, VAL, TEST)}


# Split files ------------------------------------------------------------------------------------


def test_a_split_file_gives_labels_parts_and_prompt_names(tmp_path: Path) -> None:
    table = opened("caltech101", split_data_set(tmp_path), seed=1)
    assert table.root == tmp_path / IMAGES
    assert table.classes == ("cat", "big dog")
    assert table.paths[:2] == ("cat/train.jpg", "Big_Dog/train.jpg")
    assert table.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert table.parts.tolist() == [TRAIN, TRAIN, VAL, VAL, TEST, TEST]
    assert table.select(VAL).tolist() == [2, 3]
    assert table.split == f"split file {SPLIT}"


def test_the_split_seed_does_not_touch_a_published_split(tmp_path: Path) -> None:
    root = split_data_set(tmp_path)
    one, two = (opened("caltech101", root, seed) for seed in (1, 2))
    assert images_by_part(one) == images_by_part(two)


def test_the_photographs_of_the_package_open_with_every_row(tmp_path: Path) -> None:
    root = Path(comkd_ray.__file__).parent / "assets" / "caltech20"
    if not root.is_dir():
        pytest.skip("the package was built without its photographs")
    table = opened("caltech101", root, seed=1)
    assert len(table.classes) == 20
    assert all((table.root / path).is_file() for path in table.paths)
    assert {len(table.select(part)) > 100 for part in (TRAIN, VAL, TEST)} == {True}


def test_the_image_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    root = split_data_set(tmp_path / "set")
    (root / IMAGES).rename(tmp_path / "elsewhere")
    (root / IMAGES).symlink_to(tmp_path / "elsewhere")
    assert len(opened("caltech101", root, 1).paths) == 6


def test_templates_have_one_place_for_the_class() -> None:
    assert all(row.template.count("{}") == 1 for row in ROWS.values())


def test_without_its_split_file_a_data_set_is_never_split_anew(tmp_path: Path) -> None:
    root = split_data_set(tmp_path)
    (root / SPLIT).unlink()
    with pytest.raises(UserError, match=rf"{SPLIT}: no such split file.*CoOp.*DATASETS\.md"):
        opened("caltech101", root, 1)


def test_an_image_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / SPLIT).write_text(json.dumps(listing()))
    with pytest.raises(UserError, match=f"{IMAGES}: no such folder"):
        opened("caltech101", tmp_path, 1)


def test_broken_json_is_named(tmp_path: Path) -> None:
    root = split_data_set(tmp_path)
    (root / SPLIT).write_text(json.dumps(listing())[:-9])
    with pytest.raises(UserError, match=f"{SPLIT}: not readable as JSON"):
        opened("caltech101", root, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "'train' must be a list of images"),
        ({"train": [["cat/1.jpg", 0, "cat"]], "test": []}, "'val' must be a list"),
        (listing() | {"val": []}, "'val' must be a list"),
        (listing() | {"val": {"a": 1}}, "'val' must be a list"),
        (listing() | {"test": [["cat/1.jpg", 0]]}, r"test\[0\] must be \[image path, label"),
        (listing() | {"test": [["cat/1.jpg", "0", "cat"]]}, r"test\[0\] must be \[image path"),
        (listing() | {"test": [["cat/1.jpg", True, "cat"]]}, r"test\[0\] must be \[image path"),
        (listing() | {"test": ["cat/1.jpg"]}, r"test\[0\] must be \[image path"),
        (listing() | {"test": [["", 0, "cat"]]}, r"test\[0\] must be \[image path"),
    ],
)
def test_a_split_file_of_another_structure_is_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened("caltech101", split_data_set(tmp_path, content), 1)


def test_missing_images_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    root = split_data_set(tmp_path)
    (root / IMAGES / "Big_Dog" / "val.jpg").unlink()
    (root / IMAGES / "cat" / "test.jpg").unlink()
    with pytest.raises(UserError, match=r"2 of 6 listed images are missing.*Big_Dog/val\.jpg"):
        opened("caltech101", root, 1)


def test_images_of_a_folder_that_is_not_there_are_missing(tmp_path: Path) -> None:
    content = listing() | {"test": [["bird/1.jpg", 0, "cat"], ["cat/test.jpg", 1, "big_dog"]]}
    with pytest.raises(UserError, match=r"1 of 6 listed images are missing.*bird/1\.jpg"):
        opened("caltech101", split_data_set(tmp_path, content), 1)


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    root = split_data_set(tmp_path)
    (root / IMAGES / "cat" / "val.jpg").unlink()
    (root / IMAGES / "cat" / "val.jpg").mkdir()
    with pytest.raises(UserError, match=r"1 of 6 listed images are missing.*cat/val\.jpg"):
        opened("caltech101", root, 1)


@pytest.mark.parametrize("path", ["../secret.jpg", "cat/../../secret.jpg", "/etc/passwd", "..\\a"])
def test_a_path_out_of_the_root_is_refused(tmp_path: Path, path: str) -> None:
    put(tmp_path, "secret.jpg")
    content = listing() | {"val": [[path, 0, "cat"]]}
    with pytest.raises(UserError, match=r"val\[0\].*leaves the image folder"):
        opened("caltech101", split_data_set(tmp_path / "set", content), 1)


@pytest.mark.parametrize("linked", ["cat/val.jpg", "cat"])
def test_a_link_out_of_the_root_is_refused(tmp_path: Path, linked: str) -> None:
    root = split_data_set(tmp_path / "set")
    place = root / IMAGES / linked
    place.rename(tmp_path / "outside")
    place.symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=f"{linked} is a link out of"):
        opened("caltech101", root, 1)


@pytest.mark.parametrize("again", ["cat/train.jpg", "./cat//train.jpg"])
def test_an_image_in_two_parts_is_refused(tmp_path: Path, again: str) -> None:
    content = listing()
    content["test"].append([again, 0, "cat"])
    with pytest.raises(UserError, match=r"cat/train\.jpg is in train and again in test"):
        opened("caltech101", split_data_set(tmp_path, content), 1)


def _relabel(content: Listing, old: int, new: int, part: str = "train val test") -> Listing:
    return {
        key: [[p, new if lab == old and key in part.split() else lab, n] for p, lab, n in rows]
        for key, rows in content.items()
    }


def test_labels_with_a_gap_are_refused(tmp_path: Path) -> None:
    root = split_data_set(tmp_path, _relabel(listing(), 1, 2))
    with pytest.raises(UserError, match="no image has label 1"):
        opened("caltech101", root, 1)


def test_negative_labels_are_refused(tmp_path: Path) -> None:
    root = split_data_set(tmp_path, _relabel(listing(), 1, -1))
    with pytest.raises(UserError, match="no image has label 1"):
        opened("caltech101", root, 1)


def test_a_label_with_two_names_is_refused(tmp_path: Path) -> None:
    content = listing()
    content["test"][0][2] = "kitten"
    with pytest.raises(UserError, match=r"label 0 is called 'cat' and, at cat/test\.jpg, 'kitten'"):
        opened("caltech101", split_data_set(tmp_path, content), 1)


@pytest.mark.parametrize(("part", "name"), [("train", "train"), ("test", "test"), ("val", "val")])
def test_a_class_that_a_part_lacks_is_refused(tmp_path: Path, part: str, name: str) -> None:
    content = listing()
    del content[part][1]
    with pytest.raises(UserError, match=f"class 'big dog' has no {name} image"):
        opened("caltech101", split_data_set(tmp_path, content), 1)


def test_two_labels_that_prompts_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    content = {key: [[p, lab, "a_b" if lab else "a b"] for p, lab, _ in rows]
               for key, rows in listing().items()}  # fmt: skip
    with pytest.raises(UserError, match="two classes are called 'a b'"):
        opened("caltech101", split_data_set(tmp_path, content), 1)


# Folders ----------------------------------------------------------------------------------------


def test_class_folders_are_cut_50_20_30_within_each_class(tmp_path: Path) -> None:
    table = opened("folder", class_folders(tmp_path, red_fox=10, cat=20), seed=3)
    assert table.classes == ("cat", "red fox")
    counts = [[int(np.sum(table.labels[table.select(part)] == label)) for label in (0, 1)]
              for part in (TRAIN, VAL, TEST)]  # fmt: skip
    assert counts == [[10, 5], [4, 2], [6, 3]]
    assert "50/20/30" in table.split
    assert "split_seed 3" in table.split


def test_the_smallest_class_still_has_an_image_in_every_part(tmp_path: Path) -> None:
    table = opened("folder", class_folders(tmp_path, a=3, b=3), 1)
    assert sorted(table.parts[table.labels == 0].tolist()) == [TRAIN, VAL, TEST]


def test_a_seed_always_gives_the_same_parts_and_another_seed_others(tmp_path: Path) -> None:
    root = class_folders(tmp_path, a=20, b=20)
    one, again, two = (images_by_part(opened("folder", root, seed)) for seed in (1, 1, 2))
    assert one == again
    assert one != two


def test_paths_and_their_order_do_not_hang_on_the_seed(tmp_path: Path) -> None:
    root = class_folders(tmp_path, a=20, b=20)
    one, two = (opened("folder", root, seed) for seed in (1, 2))
    assert one.paths == two.paths == tuple(sorted(one.paths))


def test_train_val_and_test_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    table = opened("folder", part_folders(tmp_path), 1)
    found = images_by_part(table)
    assert all(path.startswith("val/") for path in found[VAL])
    assert {part: len(paths) for part, paths in found.items()} == {TRAIN: 10, VAL: 10, TEST: 10}
    assert table.split == "folders train, val and test"


def test_without_val_a_seeded_fifth_of_train_becomes_val(tmp_path: Path) -> None:
    table = opened("folder", part_folders(tmp_path, "train test"), seed=4)
    found = images_by_part(table)
    assert {part: len(paths) for part, paths in found.items()} == {TRAIN: 8, VAL: 2, TEST: 10}
    assert {path.split("/")[1] for path in found[VAL]} == {"cat", "dog"}
    assert all(path.startswith("train/") for path in found[VAL])
    assert all(path.startswith("test/") for path in found[TEST])
    assert "split_seed 4" in table.split


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    table = opened("folder", class_folders(tmp_path, train=4, test=4, car=4), 1)
    assert table.classes == ("car", "test", "train")


def test_only_images_count_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    root = class_folders(tmp_path, a=3, b=3)
    put(root, "a/x.JPEG", "a/y.Tiff", "a/notes.txt", "a/.hidden.jpg", "a/._x.jpg", "a/deep/z.jpg")
    put(root, ".git/1.jpg", "README.md", "loose.jpg")
    table = opened("folder", root, 1)
    assert table.classes == ("a", "b")
    assert table.paths == ("a/000.jpg", "a/001.jpg", "a/002.jpg", "a/x.JPEG", "a/y.Tiff",
                           "b/000.jpg", "b/001.jpg", "b/002.jpg")  # fmt: skip


def test_images_of_a_folder_may_be_links(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", a=3, b=2)
    put(tmp_path, "outside.jpg")
    (root / "b" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    assert "b/link.jpg" in opened("folder", root, 1).paths


def _remove_images(root: Path) -> None:
    for image in (root / "a").iterdir():
        image.unlink()


def _keep_one_image(root: Path) -> None:
    _remove_images(root)
    put(root, "a/1.png")


def _dangling(root: Path) -> None:
    (root / "a" / "gone.jpg").symlink_to(root / "nowhere.jpg")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_images, "a: no images; add some or remove the class"),
        (_keep_one_image, "class 'a' has 1 images, 3 are needed"),
        (_dangling, r"gone\.jpg: link to a file that does not exist"),
        (lambda root: put(root, "c d/1.jpg", "c_d/1.jpg"), "class 'c d' has 1 images"),
        (lambda root: class_folders(root, c_d=3) and class_folders(root, **{"c d": 3}),
         "two classes are called 'c d'"),
    ],
)  # fmt: skip
def test_class_folders_that_cannot_be_split_are_refused(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    root = class_folders(tmp_path, a=3, b=3)
    damage(root)
    with pytest.raises(UserError, match=message):
        opened("folder", root, 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: class_folders(root / "test", bird=1), "test/bird: class is not in train"),
        (lambda root: class_folders(root / "val", bird=1), "val/bird: class is not in train"),
        (lambda root: class_folders(root / "train", bird=1), "val/bird: no such folder"),
        (lambda root: (root / "train" / "bird").mkdir(), "val/bird: no such folder"),
        (lambda root: class_folders(root / "valid", cat=1), "valid: beside train, val and test"),
        (lambda root: (root / "test").rename(root / ".test"), r"has train/ but no test/"),
    ],
)
def test_part_folders_that_do_not_agree_are_refused(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    root = part_folders(tmp_path)
    damage(root)
    with pytest.raises(UserError, match=message):
        opened("folder", root, 1)


def test_an_empty_class_folder_in_a_part_is_named(tmp_path: Path) -> None:
    root = part_folders(tmp_path)
    for part in ("train", "val", "test"):
        (root / part / "bird").mkdir()
    with pytest.raises(UserError, match="train/bird: no images"):
        opened("folder", root, 1)


def test_one_train_image_cannot_be_shared_with_val(tmp_path: Path) -> None:
    root = part_folders(tmp_path, "train test")
    put(root, "train/bird/1.jpg", "test/bird/1.jpg")
    with pytest.raises(UserError, match="class 'bird' has 1 images, 2 are needed"):
        opened("folder", root, 1)


def test_one_class_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only one class"):
        opened("folder", class_folders(tmp_path, a=9), 1)


# Roots ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["folder", "caltech101"])
def test_a_root_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"absent: no such folder; root must"):
        opened(name, tmp_path / "absent", 1)


def test_a_root_without_classes_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no class folders"):
        opened("folder", tmp_path, 1)


def test_a_study_may_name_each_data_set_of_the_table_a_folder_and_a_split_file() -> None:
    assert set(get_args(DataSet)) == {"folder", "split_file", *ROWS}


def test_every_error_is_one_line(tmp_path: Path) -> None:
    root = split_data_set(tmp_path, {"train": [["a\nb.jpg\n", 0]]})
    with pytest.raises(UserError) as caught:
        opened("caltech101", root, 1)
    assert "\n" not in str(caught.value)
