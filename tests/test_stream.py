"""Pixels that are not stored: the same bytes as a store's, decoded in time, and so the same arms."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import comkd_ray
from comkd_ray import bank, study_file
from comkd_ray.bank import CENTER, pixels_of
from comkd_ray.cohort import Arm
from comkd_ray.config import Data, Study
from comkd_ray.data import storing, stream
from comkd_ray.data.datasets import TRAIN, ImageTable, open_dataset
from comkd_ray.data.decoding import decode
from comkd_ray.data.pixels import kept, open_index, open_store
from comkd_ray.data.stream import AHEAD, ChangedImage, PixelStream, choose, open_pixels
from comkd_ray.errors import UserError
from comkd_ray.material import open_material
from comkd_ray.prepare import prepare
from comkd_ray.train import EpochReport, fit

SIDE = 16
CPU = torch.device("cpu")
PHOTOGRAPHS = Path(comkd_ray.__file__).parent / "assets" / "caltech20"


def silent(stage: str, done: int, total: int) -> None:
    """A progress that nobody watches."""


def noise(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def table_of(root: Path, *paths: str) -> ImageTable:
    labels = np.arange(len(paths)) % 2
    return ImageTable(root, paths, labels, np.full(len(paths), TRAIN, np.int8), ("a", "b"), "by hand")


def photographs(root: Path, count: int = 10) -> ImageTable:
    root.mkdir(exist_ok=True)
    for i in range(count):
        Image.fromarray(noise(12, 20, i)).save(root / f"{i}.png")
    return table_of(root, *(f"{i}.png" for i in range(count)))


def streamed(table: ImageTable, cache: Path, side: int = SIDE, **more: Any) -> PixelStream:
    data = Data(root=str(table.root), side=side, pixels="stream", **more)
    found = open_pixels(data, table, cache, silent)
    assert isinstance(found, PixelStream)
    return found


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files in the order in which a stream decodes them."""
    names: list[str] = []

    def watched(path: Path, side: int) -> Any:
        names.append(path.name)
        return decode(path, side)

    monkeypatch.setattr(stream, "decode", watched)
    return names


def rows(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers)


# The same pixels --------------------------------------------------------------------------------


def odd_files(root: Path) -> ImageTable:
    """A JPEG that is decoded smaller, one held sideways, one of grey, one transparent, and a small one."""
    root.mkdir()
    large = Image.fromarray(noise(45, 60, 0)).resize((800, 600), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    large.save(root / "large.jpg", quality=95)
    large.save(root / "sideways.jpg", exif=exif)
    large.convert("L").save(root / "grey.jpg")
    Image.fromarray(noise(12, 20, 1)).convert("RGBA").save(root / "clear.png")
    Image.fromarray(noise(5, 7, 2)).save(root / "small.jpg")
    return table_of(root, "clear.png", "grey.jpg", "large.jpg", "sideways.jpg", "small.jpg")


def test_a_stream_gives_the_bytes_of_the_store(tmp_path: Path) -> None:
    table = odd_files(tmp_path / "set")
    store, files = open_store(table, 100, tmp_path / "1", silent), streamed(table, tmp_path / "2", 100)
    assert np.array_equal(files.take(np.arange(5)), store.take(np.arange(5)))
    assert np.array_equal(files.take(rows(3, 0, 3)), store.take(rows(3, 0, 3)))
    assert (files.digest, files.broken) == (store.digest, ())
    assert (
        files.sizes.tolist() == store.sizes.tolist() == [[12, 20], [600, 800], [600, 800], [800, 600], [5, 7]]
    )
    assert files.keys.tolist() == store.keys.tolist()


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the package was built without its photographs")
@pytest.mark.parametrize("view", [CENTER, 1, 7])
def test_every_view_of_the_quickstarts_photographs_is_the_same(tmp_path: Path, view: int) -> None:
    data = Data(dataset="caltech101", root=str(PHOTOGRAPHS), side=96)
    table = open_dataset(data, PHOTOGRAPHS)
    table = table_of(PHOTOGRAPHS, *(str(table.root.relative_to(PHOTOGRAPHS) / p) for p in table.paths[::40]))
    store, files = open_store(table, 96, tmp_path, silent), streamed(table, tmp_path / "2", 96)
    images = np.arange(len(table.paths))
    assert torch.equal(pixels_of(files, images, view, 64, CPU), pixels_of(store, images, view, 64, CPU))


def test_an_index_keeps_no_pixels_and_a_store_is_one(tmp_path: Path) -> None:
    table, said = photographs(tmp_path / "set"), []
    index = open_index(table, SIDE, tmp_path, lambda *call: said.append(call))
    (folder,) = (path for path in (tmp_path / "pixels").iterdir() if path.is_dir())
    assert sorted(path.name for path in folder.iterdir()) == ["sizes.npy", "store.json"]
    assert said[-1] == ("reading images", 10, 10)
    store = open_store(table, SIDE, tmp_path, silent)  # takes its place
    assert store.digest == index.digest
    said.clear()
    assert open_index(table, SIDE, tmp_path, lambda *call: said.append(call)).digest == index.digest
    assert said == []


def test_a_damaged_index_is_read_again(tmp_path: Path) -> None:
    table = photographs(tmp_path / "set")
    first = open_index(table, SIDE, tmp_path, silent)
    (sizes,) = (tmp_path / "pixels").glob("*/sizes.npy")
    np.save(sizes, np.load(sizes)[:-1])
    assert open_index(table, SIDE, tmp_path, silent).sizes.tolist() == first.sizes.tolist()


def test_broken_images_are_left_out_as_of_a_store(tmp_path: Path) -> None:
    table = photographs(tmp_path / "set")
    for name in ("0.png", "7.png"):
        (table.root / name).write_bytes((table.root / name).read_bytes()[:99])
    with pytest.raises(UserError, match=r"0\.png: cannot be decoded.*2 broken of 10"):
        streamed(table, tmp_path / "1")
    files = streamed(table, tmp_path / "2", skip_broken=True)
    store = open_store(table, SIDE, tmp_path / "3", silent, skip_broken=True)
    assert (files.broken, files.digest) == (store.broken, store.digest)
    assert len(kept(table, files).paths) == 8
    assert np.array_equal(files.take(np.arange(8)), store.take(np.arange(8)))


# Ahead of time ----------------------------------------------------------------------------------


def test_what_is_expected_is_decoded_before_it_is_asked_for(tmp_path: Path, decoded: list[str]) -> None:
    files = streamed(photographs(tmp_path / "set"), tmp_path)
    files.expect([rows(4, 2), rows(9, 0)])
    for task in [task for batch in files._ahead for task in batch.tasks]:
        task.result()
    assert sorted(decoded) == ["0.png", "2.png", "4.png", "9.png"]
    store = open_store(photographs(tmp_path / "set"), SIDE, tmp_path, silent)
    for images in (rows(4, 2), rows(9, 0)):
        assert np.array_equal(files.take(images), store.take(images))
    assert len(decoded) == 4


def test_views_of_a_batch_are_decoded_once(tmp_path: Path, decoded: list[str]) -> None:
    files = streamed(photographs(tmp_path / "set"), tmp_path)
    for _ in range(3):
        files.take(rows(1, 5))
    files.take(rows(5, 1))
    assert len(decoded) == 4


def test_a_bank_decodes_each_image_once_for_all_views(
    tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six images of ten in batches of four; each batch is asked for under three views."""
    monkeypatch.setattr(bank, "BATCH", 4)
    files = streamed(photographs(tmp_path / "set"), tmp_path)

    def encode(images: NDArray[np.int64], view: int) -> torch.Tensor:
        return pixels_of(files, images, view, 8, CPU).flatten(1)

    images = rows(1, 2, 4, 5, 7, 9)
    made = bank.build_bank(("x",), encode, images, [1, 2, 3], tmp_path, silent, expect=files.expect)
    assert sorted(decoded) == [f"{image}.png" for image in images]
    store = open_store(photographs(tmp_path / "set"), SIDE, tmp_path, silent)
    for slot in range(3):
        said = pixels_of(store, images, slot + 1, 8, CPU).flatten(1).half().float()
        assert torch.equal(made.take(slot, images, CPU), said)


def test_what_nobody_expected_disturbs_nothing(tmp_path: Path, decoded: list[str]) -> None:
    files = streamed(photographs(tmp_path / "set"), tmp_path)
    store = open_store(photographs(tmp_path / "set"), SIDE, tmp_path, silent)
    files.expect([rows(0, 1), rows(2, 3)])
    for images in (rows(7), rows(0, 1), rows(8), rows(2, 3)):
        assert np.array_equal(files.take(images), store.take(images))
    assert len(decoded) == 6


def test_only_so_many_images_are_decoded_ahead(tmp_path: Path) -> None:
    files, taken = streamed(photographs(tmp_path / "set"), tmp_path), []

    def coming() -> Iterator[NDArray[np.int64]]:
        for k in range(100):
            taken.append(k)
            yield np.arange(10)[np.arange(64) % 10] + 0 * k

    files.expect(coming())
    assert len(taken) == AHEAD // 64
    files.take(np.arange(64) % 10)
    assert len(taken) == AHEAD // 64 + 1


def test_a_new_expectation_drops_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, gate, mine = streamed(photographs(tmp_path / "set"), tmp_path), Event(), []

    def gated(path: Path, side: int) -> Any:
        if tmp_path in path.parents:  # threads of the tests before may still be at work
            gate.wait(60)
            mine.append(path)
        return decode(path, side)

    monkeypatch.setattr(stream, "decode", gated)
    files.expect(rows(k % 10) for k in range(200))
    files.expect([rows(3)])
    gate.set()
    files.take(rows(3))
    files.take(rows(4))
    assert len(mine) <= torch.get_num_threads() + 2  # those that had not begun never do
    assert not files._ahead


def test_a_file_that_changed_is_named_and_is_no_fault_of_an_arm(tmp_path: Path) -> None:
    """A UserError for a person, an OSError for `jobs`, which then blames no arm."""
    table = photographs(tmp_path / "set")
    files = streamed(table, tmp_path)
    (table.root / "3.png").unlink()
    Image.fromarray(noise(13, 20, 5)).save(table.root / "4.png")
    files.expect([rows(0, 3)])
    with pytest.raises(UserError, match=r"3\.png: changed since this study began \(.*No such file"):
        files.take(rows(0, 3))
    with pytest.raises(OSError, match=r"4\.png: changed its size"):
        files.take(rows(4))
    assert issubclass(ChangedImage, OSError)
    assert files.take(rows(0)).shape == (1, 3, SIDE, SIDE)


# Store or stream --------------------------------------------------------------------------------


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """room(disk, memory) -> the bytes that this machine has."""

    def set_room(disk: int, memory: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=disk))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=memory))

    return set_room


NEED = storing.store_bytes(10, SIDE)


@pytest.mark.parametrize(
    ("disk", "memory", "stored", "why"),
    [
        (2 * NEED, 2 * NEED, True, "a store takes less than 50% of the free disk and of the memory"),
        (2 * NEED - 1, 2 * NEED, False, "a store would take more than 50% of the free disk"),
        (2 * NEED, 2 * NEED - 1, False, "a store would take more than 50% of the memory"),
        (NEED, NEED, False, "a store would take more than 50% of the free disk and of the memory"),
    ],
)
def test_auto_stores_what_fits(
    tmp_path: Path, room: Callable[[int, int], None], disk: int, memory: int, stored: bool, why: str
) -> None:
    room(disk, memory)
    data = Data(root=str(tmp_path / "set"), side=SIDE)
    assert choose(data, photographs(tmp_path / "set"), tmp_path / "none" / "yet") == (stored, why)


def test_auto_goes_on_as_it_began(tmp_path: Path, room: Callable[[int, int], None]) -> None:
    """The driver decides; a worker with another disk and memory finds what it decided."""
    table, data = photographs(tmp_path / "set"), Data(root=str(tmp_path / "set"), side=SIDE)
    room(NEED, NEED)
    assert isinstance(open_pixels(data, table, tmp_path, silent), PixelStream)
    room(9 * NEED, 9 * NEED)
    assert choose(data, table, tmp_path) == (False, "they were streamed before")
    open_store(table, SIDE, tmp_path, silent)
    room(NEED, NEED)
    assert choose(data, table, tmp_path) == (True, "they are stored already")


@pytest.mark.parametrize("pixels", ["store", "stream"])
def test_who_says_so_gets_it(tmp_path: Path, room: Callable[[int, int], None], pixels: Any) -> None:
    room(NEED, NEED)
    data = Data(root=str(tmp_path), side=SIDE, pixels=pixels)
    assert choose(data, photographs(tmp_path / "set"), tmp_path).stored == (pixels == "store")


# The same study ---------------------------------------------------------------------------------


@pytest.fixture
def studies(make_study: Callable[..., Study], tmp_path: Path) -> Callable[[str], Study]:
    """A study of the tiny pair on some of the quickstart's photographs, stored or streamed."""
    for folder in sorted((PHOTOGRAPHS / "101_ObjectCategories").iterdir())[:4]:
        (tmp_path / "set" / folder.name).mkdir(parents=True)
        for photograph in sorted(folder.iterdir())[:20]:
            (tmp_path / "set" / folder.name / photograph.name).symlink_to(photograph)

    def make(pixels: str) -> Study:
        data = {"root": str(tmp_path / "set"), "side": 40, "shots": 2, "views": 1, "pixels": pixels}
        return make_study({"data": data, "teacher.epochs": 1, "train.epochs": 1})

    return make


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the package was built without its photographs")
@pytest.mark.usefixtures("cpu")
def test_teacher_banks_losses_and_records_are_the_same(
    tmp_path: Path, studies: Callable[[str], Study]
) -> None:
    """Stage I with prompts, banks, training of two seeds and evaluation, each from a cache of its own."""
    cards, rows = [], []
    for pixels in ("store", "stream"):
        study, cache = studies(pixels), tmp_path / pixels
        card = prepare(study, cache, silent)
        material = open_material(study, card, cache)
        assert isinstance(material.photographs.store, PixelStream) == (pixels == "stream")
        assert len(list(cache.glob("pixels/*/pixels.npy"))) == (pixels == "store")
        reports: list[EpochReport] = []
        arms = [Arm(str(seed), study_file.resolve(study, {"train.seed": seed})) for seed in (1, 2)]
        fit(arms, material, reports.append)
        assert not getattr(material.photographs.store, "_ahead", ())  # what was expected was asked for
        cards.append({key: value for key, value in vars(card).items() if key != "stages"})
        found = [row for report in reports for ended in report.ended for row in (ended.arm, *ended.epochs)]
        rows.append([{k: v for k, v in row.items() if "seconds" not in k} for row in found])
    assert cards[0] == cards[1]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4
