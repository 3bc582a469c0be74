"""The bank: what the teacher said, once, whole and unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.testing import assert_close

from comkd_ray.bank import CENTER, Bank, build_bank, pixels_of, read_bank
from comkd_ray.config import Study
from comkd_ray.data.datasets import open_dataset
from comkd_ray.data.pixels import open_store
from comkd_ray.data.views import center_boxes, render, view_boxes
from comkd_ray.errors import UserError

pytestmark = pytest.mark.usefixtures("cpu")

CPU = torch.device("cpu")
IMAGES = np.arange(3, 143, 2)  # 70 rows: more than one batch
VIEWS = (1, 2, 5)
WIDTH = 6


def say(images: NDArray[np.int64], view: int) -> Tensor:
    """A tower: its features hang on the image and the view."""
    place = torch.from_numpy(images).float()[:, None] + 1000 * view
    return torch.sin(place * torch.arange(1, WIDTH + 1)) * 30


def silence(images: NDArray[np.int64], view: int) -> Tensor:
    raise AssertionError("the tower was asked again")


def quiet(stage: str, done: int, total: int) -> None:
    """A progress that nobody watches."""


def build(cache: Path, encode: Callable[..., Tensor] = say, identity: tuple[object, ...] = ("one",)) -> Bank:
    return build_bank(identity, encode, IMAGES, VIEWS, cache, quiet)


def folder_of(cache: Path, bank: Bank) -> Path:
    return cache / "banks" / bank.key


# What it holds ----------------------------------------------------------------------------------


def test_a_bank_holds_what_the_tower_said_in_half_precision(tmp_path: Path) -> None:
    bank = build(tmp_path)
    assert bank.features.dtype == np.float16
    assert bank.features.shape == (3, 70, WIDTH)
    for slot, view in enumerate(VIEWS):
        assert_close(torch.from_numpy(bank.features[slot]), say(IMAGES, view).half(), rtol=0, atol=0)
        asked = IMAGES[[5, 0, 69, 5]]
        taken = bank.take(slot, asked, CPU)
        assert taken.dtype == torch.float32
        assert_close(taken, say(asked, view).half().float(), rtol=0, atol=0)


def test_a_bank_is_made_once_and_then_read(tmp_path: Path) -> None:
    first, again = build(tmp_path), build(tmp_path, silence)
    opened = read_bank(tmp_path, first.key)
    for bank in (again, opened):
        assert bank.key == first.key
        assert (bank.features == first.features).all()
        assert (bank.rows == IMAGES).all()
        assert bank.seconds_per_image == first.seconds_per_image > 0


def test_a_bank_lies_on_disk_and_writing_into_it_changes_no_file(tmp_path: Path) -> None:
    bank = build(tmp_path)
    assert isinstance(bank.features, np.memmap)
    bank.features[0, 0, 0] = 999
    assert read_bank(tmp_path, bank.key).features[0, 0, 0] != 999


def test_other_towers_images_or_views_are_other_banks(tmp_path: Path) -> None:
    banks = [
        build(tmp_path),
        build(tmp_path, identity=("two",)),
        build_bank(("one",), say, IMAGES[:-1], VIEWS, tmp_path, quiet),
        build_bank(("one",), say, IMAGES, VIEWS[:-1], tmp_path, quiet),
        build_bank(("one",), say, IMAGES, (1, 2, 6), tmp_path, quiet),
    ]
    assert len({bank.key for bank in banks}) == len(banks)


def test_the_tower_is_asked_for_every_image_and_view_once_in_batches(tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []
    told: list[tuple[str, int, int]] = []

    def listen(images: NDArray[np.int64], view: int) -> Tensor:
        asked.extend((int(image), view) for image in images)
        return say(images, view)

    build_bank(("one",), listen, IMAGES, VIEWS, tmp_path, lambda *what: told.append(what))
    assert sorted(asked) == sorted((int(image), view) for image in IMAGES for view in VIEWS)
    assert told[-1] == ("bank", 210, 210)
    assert len(told) == 6


@pytest.mark.parametrize("stranger", [0, 4, 1000])
def test_an_image_that_is_not_in_the_bank_is_an_error(tmp_path: Path, stranger: int) -> None:
    bank = build(tmp_path)
    with pytest.raises((AssertionError, IndexError)):
        bank.take(0, np.array([5, stranger]), CPU)


# What may go wrong ------------------------------------------------------------------------------


def test_a_build_that_is_interrupted_leaves_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    def stop(images: NDArray[np.int64], view: int) -> Tensor:
        if view == 2:
            raise KeyboardInterrupt
        return say(images, view)

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, stop)
    whole = build(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="missing or damaged; the same command makes it again"):
        read_bank(tmp_path, whole.key)
    assert (build(tmp_path).features == whole.features).all()
    assert [path.name for path in (tmp_path / "banks").iterdir() if path.is_dir()] == [whole.key]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "one bit of the last feature": lambda folder: flip(folder / "features.npy", -1),
    "one bit of the first feature": lambda folder: flip(folder / "features.npy", 128),
    "one bit of the rows": lambda folder: flip(folder / "rows.npy", -8),
    "features cut off": lambda folder: cut(folder / "features.npy"),
    "rows cut off": lambda folder: cut(folder / "rows.npy"),
    "rows empty": lambda folder: (folder / "rows.npy").write_bytes(b""),
    "no card": lambda folder: (folder / "card.json").unlink(),
    "card cut off": lambda folder: cut(folder / "card.json"),
    "another card": lambda folder: (folder / "card.json").write_text(json.dumps({"of": "another"})),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_when_a_bank_is_opened_and_mended_when_it_is_built(
    tmp_path: Path, damage: str
) -> None:
    bank = build(tmp_path)
    whole = np.array(bank.features)
    DAMAGES[damage](folder_of(tmp_path, bank))
    with pytest.raises(UserError, match="missing or damaged; the same command makes it again"):
        read_bank(tmp_path, bank.key)
    assert (build(tmp_path).features == whole).all()
    assert (read_bank(tmp_path, bank.key).features == whole).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_features_that_half_precision_cannot_hold_are_refused(tmp_path: Path, value: float) -> None:
    def break_down(images: NDArray[np.int64], view: int) -> Tensor:
        features = say(images, view)
        if view == 2:
            features[-1, -1] = value
        return features

    with pytest.raises(UserError, match=r"gives NaN .* view 2"):
        build(tmp_path, break_down)
    assert build(tmp_path).features.shape == (3, 70, WIDTH)


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(UserError, match="the bank needs 2,520 bytes, 100 are free; set COMKD_CACHE"):
        build(tmp_path)


# The pixels that teacher and student see --------------------------------------------------------


def test_an_image_and_a_view_always_give_the_same_pixels(
    tmp_path: Path, make_study: Callable[..., Study]
) -> None:
    """Whatever batch they are asked in: the crop and flip of that view, or the central square."""
    table = open_dataset(data := make_study().data, Path(data.root))
    store = open_store(table, 40, tmp_path, quiet)
    images = np.array([7, 3, 20])
    for view in (CENTER, 1, 2):
        pixels = pixels_of(store, images, view, 32, CPU)
        assert pixels.shape == (3, 3, 32, 32)
        for place, image in enumerate(images):
            one = np.array([image])
            assert_close(pixels_of(store, one, view, 32, CPU)[0], pixels[place], rtol=0, atol=1e-6)
            raw = torch.from_numpy(np.array(store.pixels[one]))
            boxes, flips = view_boxes(store.keys[one], store.sizes[one], view)
            if view == CENTER:
                boxes, flips = center_boxes(store.sizes[one]), np.array([False])
            expected = render(raw, torch.from_numpy(boxes), torch.from_numpy(flips), 32)
            assert_close(pixels[place], expected[0], rtol=0, atol=1e-6)
    assert (pixels_of(store, images, 1, 32, CPU) - pixels_of(store, images, 2, 32, CPU)).abs().max() > 0.1
