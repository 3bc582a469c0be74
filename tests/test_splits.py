"""Few shots, parts and halves: seeded, and the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from comkd_ray.data.splits import base_count, few_shot, mix64, read_split_file, split_by_class
from comkd_ray.errors import UserError

CLASSES = ("ant", "bee", "cat")
LABELS = np.repeat(np.arange(3), [10, 12, 14])
EVERYTHING = np.arange(len(LABELS))


@pytest.mark.parametrize(("classes", "base"), [(2, 1), (100, 50), (37, 19), (47, 24), (397, 199)])
def test_the_larger_half_of_the_classes_is_base(classes: int, base: int) -> None:
    assert base_count(classes) == base  # sizes of PAPER 6.2, 6.3, 6.9, 6.8


def test_hash_is_splitmix64() -> None:
    """First outputs of the published generator with seed 0: its state grows by the constant."""
    golden = 0x9E3779B97F4A7C15
    states = np.array([0, golden, 2 * golden % 2**64], dtype=np.uint64)
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mix64(states).tolist() == published


def test_few_shot_takes_as_many_of_each_class_and_only_candidates() -> None:
    candidates = EVERYTHING[::2]
    drawn = few_shot(LABELS, candidates, 4, 1, CLASSES)
    assert set(drawn) <= set(candidates)
    assert np.bincount(LABELS[drawn]).tolist() == [4, 4, 4]
    assert drawn.tolist() == sorted(set(drawn.tolist()))


def test_few_shot_of_some_classes_leaves_the_others_out() -> None:
    drawn = few_shot(LABELS, EVERYTHING[LABELS < 2], 4, 1, CLASSES)
    assert np.bincount(LABELS[drawn]).tolist() == [4, 4]


def test_few_shot_hangs_on_the_seed_only() -> None:
    shuffled = np.random.default_rng(0).permutation(EVERYTHING)
    one = few_shot(LABELS, EVERYTHING, 4, 1, CLASSES)
    assert one.tolist() == few_shot(LABELS, shuffled, 4, 1, CLASSES).tolist()
    assert one.tolist() != few_shot(LABELS, EVERYTHING, 4, 2, CLASSES).tolist()


def test_few_shot_is_the_same_on_every_machine() -> None:
    """Frozen: whoever changes the draw changes every published teacher."""
    drawn = few_shot(LABELS, EVERYTHING, 2, 1, CLASSES)
    assert drawn.tolist() == [4, 6, 16, 20, 23, 35]


def test_fewer_shots_are_a_subset_of_more() -> None:
    few, more = (set(few_shot(LABELS, EVERYTHING, shots, 7, CLASSES)) for shots in (2, 8))
    assert few < more


def test_every_image_of_a_class_has_its_turn() -> None:
    drawn = [few_shot(LABELS, EVERYTHING, 1, seed, CLASSES)[0] for seed in range(400)]
    counts = np.bincount(drawn, minlength=10)
    assert counts.shape == (10,)
    assert counts.min() > 18  # 40 are expected; 18 is 3.6 standard deviations below


def test_classes_of_one_size_are_not_drawn_alike() -> None:
    labels = np.repeat([0, 1], 50)
    drawn = few_shot(labels, np.arange(100), 10, 1, CLASSES)
    assert drawn[:10].tolist() != (drawn[10:] - 50).tolist()


def test_too_few_images_for_the_shots_name_the_class() -> None:
    with pytest.raises(UserError, match=r"class 'ant' has 10 training images, data\.shots asks f"):
        few_shot(LABELS, EVERYTHING, 11, 1, CLASSES)


@pytest.mark.parametrize(
    ("images", "expected"),
    [(3, [1, 1, 1]), (4, [2, 1, 1]), (5, [2, 1, 2]), (10, [5, 2, 3]), (101, [51, 20, 30])],
)
def test_parts_have_their_fractions_of_each_class(images: int, expected: list[int]) -> None:
    parts = split_by_class(np.zeros(images, dtype=np.int64), 1, (0.5, 0.2, 0.3), CLASSES)
    assert np.bincount(parts).tolist() == expected


@pytest.mark.parametrize(("images", "expected"), [(2, [1, 1, 0]), (5, [4, 1, 0])])
def test_a_part_with_fraction_0_stays_empty(images: int, expected: list[int]) -> None:
    parts = split_by_class(np.zeros(images, dtype=np.int64), 1, (0.8, 0.2, 0.0), CLASSES)
    assert np.bincount(parts, minlength=3).tolist() == expected


def test_parts_of_a_class_do_not_hang_on_other_classes() -> None:
    alone = split_by_class(LABELS[:10], 5, (0.5, 0.2, 0.3), CLASSES)
    together = split_by_class(LABELS, 5, (0.5, 0.2, 0.3), CLASSES)
    assert together[:10].tolist() == alone.tolist()


def test_a_class_too_small_for_the_parts_is_named() -> None:
    with pytest.raises(UserError, match="class 'bee' has 2 images, 3 are needed"):
        split_by_class(np.array([0, 0, 0, 1, 1]), 1, (0.5, 0.2, 0.3), CLASSES)


@pytest.mark.parametrize(
    ("path", "name", "message"),
    [
        ("a" * 256 + "/1.jpg", "ant", "no file system takes a name of over 255 bytes"),
        ("ant/" + "ä" * 128, "ant", "no file system takes a name of over 255 bytes"),
        ("\ud800/1.jpg", "ant", r"'\\ud800/1.jpg' is no valid Unicode"),
        ("ant/1.jpg", "ant \ud800", r"'ant \\ud800' is no valid Unicode"),
    ],
)
def test_a_name_that_no_file_can_have_is_refused(path: str, name: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    parts = {part: [[f"ant/{part}.jpg", 0, "ant"]] for part in ("train", "val")}
    file.write_text(json.dumps({**parts, "test": [[path, 0, name]]}))
    with pytest.raises(UserError, match=rf"split\.json: test\[0\].*{message}"):
        read_split_file(file)
