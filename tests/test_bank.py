"""The bank: what the teacher said, once, whole and unchanged, in shards that any number of hands may make."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from torch.testing import assert_close

from comkd_ray import bank_care, bank_store
from comkd_ray.bank import CENTER, Bank, build_bank, pixels_of, read_bank
from comkd_ray.bank_store import CARD, Layout, find_damage, read_card, shards_there
from comkd_ray.config import Study
from comkd_ray.data.datasets import open_dataset
from comkd_ray.data.pixels import open_store
from comkd_ray.data.views import center_boxes, render, view_boxes
from comkd_ray.errors import UserError

pytestmark = pytest.mark.usefixtures("cpu")

CPU = torch.device("cpu")
IMAGES = np.arange(3, 403, 2)  # 200 rows: 4 batches, the last of 8
VIEWS = (1, 2, 5)
WIDTH = 6
SHARDS = 4


def say(images: NDArray[np.int64], view: int) -> Tensor:
    """A tower: its features hang on the image and the view."""
    place = torch.from_numpy(images).float()[:, None] + 1000 * view
    return torch.sin(place * torch.arange(1, WIDTH + 1)) * 30


def silence(images: NDArray[np.int64], view: int) -> Tensor:
    raise AssertionError("the tower was asked again")


def quiet(stage: str, done: int, total: int) -> None:
    """A progress that nobody watches."""


class Listening:
    """The tower, and what it was asked."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.asked: list[tuple[int, int]] = []
        self.calls = 0
        self.stop_at = stop_at

    def __call__(self, images: NDArray[np.int64], view: int) -> Tensor:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.asked += [(int(image), view) for image in images]
        return say(images, view)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of images a shard, so that 200 images have four."""
    monkeypatch.setattr(bank_store, "SHARD", 1)


def build(cache: Path, encode: Callable[..., Tensor] = say, identity: tuple[object, ...] = ("one",)) -> Bank:
    return build_bank(identity, encode, IMAGES, VIEWS, cache, quiet)


def whole(bank: Bank) -> Tensor:
    """All its features `[V, n, D]`, as float32."""
    return torch.stack([bank.take(slot, bank.rows, CPU) for slot in range(bank.views)])


def expected() -> Tensor:
    """One array, made in the plainest way."""
    return torch.stack([say(IMAGES, view) for view in VIEWS]).half().float()


def same(bank: Bank) -> bool:
    return torch.equal(whole(bank), expected())


# What it holds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", [1, 6, 512])
def test_a_bank_is_one_array_of_what_the_tower_said_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int
) -> None:
    """Bit for bit, however it is cut into shards, and whatever is asked in which order."""
    monkeypatch.setattr(bank_store, "SHARD", shard)
    bank = build(tmp_path)
    assert (bank.views, bank.width, len(bank.card.shards)) == (3, WIDTH, {1: 4, 6: 2, 512: 1}[shard])
    assert same(bank)
    rng = np.random.default_rng(0)
    for slot in (2, 0, 1):
        places = rng.integers(0, len(IMAGES), 50)
        taken = bank.take(slot, IMAGES[places], CPU)
        assert taken.dtype == torch.float32
        assert torch.equal(taken, expected()[slot, places])
    assert torch.equal(bank.take(1, IMAGES[199:], CPU), expected()[1, 199:])


def test_a_shard_is_an_array_that_anybody_can_read(tmp_path: Path, small_shards: None) -> None:
    """A block of images under all views; its name is its number and the CRC-32 of its file."""
    bank = build(tmp_path)
    for shard, path in shards_there(bank.folder).items():
        features = np.load(path)
        assert features.dtype == np.float16
        part = slice(64 * shard, 64 * shard + 64)
        assert torch.equal(torch.from_numpy(features).float(), expected()[:, part])
    assert sorted(path.name for path in bank.folder.iterdir()) == sorted(
        [*bank.card.shards, "card.json", "rows.npy"]
    )


def test_imagenet_gives_shards_of_fifty_megabytes_and_a_small_set_one() -> None:
    imagenet = Layout.of(1_281_167, 20)
    assert imagenet.shards == 801
    assert 2 * imagenet.block * 20 * 768 == pytest.approx(50e6, rel=0.02)
    assert Layout.of(16 * 100, 20).shards == 1
    assert [len(imagenet.part(shard)) for shard in (0, 799, 800)] == [1600, 1600, 1_281_167 - 800 * 1600]
    assert Layout.of(200, 5000).block == 64


def test_a_bank_is_made_once_and_then_read(tmp_path: Path) -> None:
    first = build(tmp_path)
    tower = Listening()
    again, opened = build(tmp_path, tower), read_bank(tmp_path, first.key)
    for bank in (again, opened):
        assert bank.key == first.key
        assert same(bank)
        assert (bank.rows == IMAGES).all()
        assert bank.card == first.card
        assert bank.seconds_per_image > 0
    assert len(tower.asked) == 8, "a sample is asked again, and no more"


def test_a_bank_lies_on_disk_and_writing_into_it_changes_no_file(tmp_path: Path) -> None:
    bank = build(tmp_path)
    bank.shard(0)[0, 0, 0] = 999
    assert bank.take(0, IMAGES[:1], CPU)[0, 0] == 999
    assert same(read_bank(tmp_path, bank.key))


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files")
def test_mapped_shards_keep_no_file_open(tmp_path: Path, small_shards: None) -> None:
    """Else ImageNet's, for teacher and student, would pass the usual limit of 1,024."""
    bank = build(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert same(bank)
    assert len(bank.maps) == SHARDS
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_other_towers_images_or_views_are_other_banks(tmp_path: Path) -> None:
    banks = [
        build(tmp_path),
        build(tmp_path, identity=("two",)),
        build_bank(("one",), say, IMAGES[:-1], VIEWS, tmp_path, quiet),
        build_bank(("one",), say, IMAGES, VIEWS[:-1], tmp_path, quiet),
        build_bank(("one",), say, IMAGES, (1, 2, 6), tmp_path, quiet),
    ]
    assert len({bank.key for bank in banks}) == len(banks)


def test_what_people_are_told_of_a_bank_is_no_part_of_its_key(tmp_path: Path) -> None:
    told = build_bank(("one",), say, IMAGES, VIEWS, tmp_path, quiet, {"model": "ViT-B-16"})
    assert build(tmp_path).card.of == told.card.of == {"model": "ViT-B-16"}


def test_the_tower_is_asked_for_every_image_and_view_once_in_batches(
    tmp_path: Path, small_shards: None
) -> None:
    """All views of a batch in turn, so that whoever decodes images does it once for all views."""
    tower, told = Listening(), []
    build_bank(("one",), tower, IMAGES, VIEWS, tmp_path, lambda *what: told.append(what))
    batches = [IMAGES[first : first + 64] for first in range(0, 200, 64)]
    assert tower.asked == [(int(i), view) for batch in batches for view in VIEWS for i in batch]
    assert tower.calls == 12
    assert told[0] == ("bank", 64, 600)
    assert told[-1] == ("bank", 600, 600)
    assert len(told) == 12


@pytest.mark.parametrize("stranger", [0, 4, 1000])
def test_an_image_that_is_not_in_the_bank_is_an_error(tmp_path: Path, stranger: int) -> None:
    bank = build(tmp_path)
    with pytest.raises((AssertionError, IndexError)):
        bank.take(0, np.array([5, stranger]), CPU)


# Builds that are cut off, and builds beside each other ------------------------------------------


def test_an_interrupted_build_goes_on_with_the_shard_that_it_was_at(
    tmp_path: Path, small_shards: None
) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, Listening(stop_at=8))  # two shards of three views, and one view of the third
    (folder,) = (path for path in (tmp_path / "banks").iterdir() if path.is_dir())
    assert sorted(shards_there(folder)) == [0, 1]
    with pytest.raises(UserError, match=r"missing or damaged \(no card\); the same command makes it again"):
        read_bank(tmp_path, folder.name)
    tower, told = Listening(), []
    bank = build_bank(("one",), tower, IMAGES, VIEWS, tmp_path, lambda *what: told.append(what))
    assert tower.calls == 6
    assert told[0] == ("bank", 3 * 128 + 64, 600)
    assert same(bank)


def build_slowly(cache: Path, log: Path) -> None:
    """What another process does; every call of the tower is a line of its log."""
    with log.open("a") as file:

        def slowly(images: NDArray[np.int64], view: int) -> Tensor:
            print(int(images[0]), view, file=file, flush=True)
            time.sleep(0.03)
            return say(images, view)

        build(cache, slowly)


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited for a minute"
        time.sleep(0.01)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Callable[[str], BaseProcess]]:
    """other("name") -> a process that builds into `tmp_path` and logs into `name`."""
    started: list[BaseProcess] = []

    def begin(name: str) -> BaseProcess:
        forked = get_context("fork").Process(target=build_slowly, args=(tmp_path, tmp_path / name))
        forked.start()
        started.append(forked)
        return forked

    yield begin
    for one in started:
        one.kill()
        one.join()


def test_after_kill_9_at_most_one_shard_is_made_again(
    tmp_path: Path, small_shards: None, other: Callable[[str], BaseProcess]
) -> None:
    builder = other("log")
    wait_for(lambda: len(lines(tmp_path / "log")) >= 8)
    builder.kill()
    builder.join()
    assert builder.exitcode == -signal.SIGKILL
    before = lines(tmp_path / "log")
    tower = Listening()
    assert same(build(tmp_path, tower))
    assert 12 <= len(before) + tower.calls <= 12 + len(VIEWS)
    assert tower.calls < 12


def test_two_builders_share_the_shards(
    tmp_path: Path, small_shards: None, other: Callable[[str], BaseProcess]
) -> None:
    builders = [other("one"), other("two")]
    for one in builders:
        one.join(60)
    assert [one.exitcode for one in builders] == [0, 0]
    asked = [line for name in ("one", "two") for line in lines(tmp_path / name)]
    assert len(asked) - len(set(asked)) <= 1, "nothing twice, but for one batch that a rate was measured by"
    assert len(set(asked)) == 12
    assert same(build(tmp_path, Listening()))


def test_a_shard_that_another_builds_is_waited_for_and_taken_over_when_that_one_dies(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is held: all others are made first; it is released without a shard: made as well."""
    key = build(tmp_path / "elsewhere").key
    folder = tmp_path / "banks" / key
    folder.mkdir(parents=True)
    held = FileLock(folder / ".00001.lock")
    held.acquire()
    there: list[list[int]] = []

    def died(_: float) -> None:
        there.append(sorted(shards_there(folder)))
        held.release()

    monkeypatch.setattr(time, "sleep", died)
    assert same(build(tmp_path))
    assert there == [[0, 2, 3]]


# What may go wrong ------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def shard_of(folder: Path, shard: int = 1) -> Path:
    return shards_there(folder)[shard]


DAMAGES: dict[str, tuple[Callable[[Path], Any], int]] = {
    "one bit of the last feature": (lambda folder: flip(shard_of(folder), -1), 3),
    "one bit of the first feature": (lambda folder: flip(shard_of(folder), 128), 3),
    "one bit of the header": (lambda folder: flip(shard_of(folder), 20), 3),
    "a shard cut off": (lambda folder: cut(shard_of(folder)), 3),
    "a shard empty": (lambda folder: shard_of(folder).write_bytes(b""), 3),
    "a shard missing": (lambda folder: shard_of(folder).unlink(), 3),
    "two shards missing": (lambda folder: [shard_of(folder, n).unlink() for n in (0, 3)], 6),
    "one bit of the rows": (lambda folder: flip(folder / "rows.npy", -8), 0),
    "rows cut off": (lambda folder: cut(folder / "rows.npy"), 0),
    "rows empty": (lambda folder: (folder / "rows.npy").write_bytes(b""), 0),
    "rows missing": (lambda folder: (folder / "rows.npy").unlink(), 0),
    "no card": (lambda folder: (folder / CARD).unlink(), 1),  # a batch, for the rate
    "card cut off": (lambda folder: cut(folder / CARD), 1),
    "another card": (lambda folder: (folder / CARD).write_text(json.dumps({"of": "another"})), 1),
    "card and a shard cut off": (lambda folder: [cut(folder / CARD), cut(shard_of(folder))], 3),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_when_a_bank_is_opened_and_only_that_is_made_again(
    tmp_path: Path, damage: str, small_shards: None
) -> None:
    bank = build(tmp_path)
    do, calls = DAMAGES[damage]
    do(bank.folder)
    with pytest.raises(UserError, match=r"missing or damaged .*; the same command makes it again"):
        read_bank(tmp_path, bank.key)
    tower = Listening()
    assert same(build(tmp_path, tower))
    assert tower.calls == calls
    assert same(read_bank(tmp_path, bank.key))
    assert len(list(bank.folder.iterdir())) == SHARDS + 2


def test_a_flipped_bit_is_named_with_its_file(tmp_path: Path, small_shards: None) -> None:
    bank = build(tmp_path)
    path = shard_of(bank.folder, 2)
    flip(path, 500)
    card = read_card(bank.folder)
    assert card is not None
    (damage,) = find_damage(bank.folder, card)
    assert damage.file == path
    assert damage.expected == f"CRC-32 {path.stem[6:]}"
    assert damage.actual != damage.expected
    with pytest.raises(
        UserError, match=rf"{path.name}: expected CRC-32 {path.stem[6:]}, found [0-9a-f]{{8}}\)"
    ):
        read_bank(tmp_path, bank.key)
    with pytest.raises(UserError, match=f"{path.name}: expected .* bytes, found no such file"):
        read_bank(tmp_path, bank.key)  # set aside: whoever opens it next finds the same


def test_a_builder_that_leaves_while_another_looks_disturbs_nobody(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mark is listed, and gone when it is asked for: a file that is no part of the bank."""
    bank = build(tmp_path)
    stat = Path.stat

    def gone(path: Path, **how: Any) -> Any:
        if path.name.startswith("."):
            raise FileNotFoundError(path)
        return stat(path, **how)

    (bank.folder / f".{'0' * 32}{bank_store.MARK}").touch()
    monkeypatch.setattr(Path, "stat", gone)
    assert same(read_bank(tmp_path, bank.key))
    (entry,) = bank_care.entries(tmp_path)
    assert entry.state == "whole"


def test_a_shard_that_is_set_aside_before_the_card_is_written_is_made_again(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, ends = bank_store.end, []

    def late(folder: Path, *rest: Any) -> None:
        if not ends:
            shard_of(folder).unlink()
        ends.append(folder)
        end(folder, *rest)

    monkeypatch.setattr(bank_store, "end", late)
    assert same(build(tmp_path))
    assert len(ends) == 2


def test_a_shard_that_is_gone_is_an_error_of_a_file(tmp_path: Path, small_shards: None) -> None:
    """Not of the arm that asks for it: `jobs.run_job` raises these, and marks no arm as failed."""
    bank = read_bank(tmp_path, build(tmp_path).key)
    shard_of(bank.folder).unlink()
    with pytest.raises(OSError, match="00001-"):
        bank.take(0, IMAGES, torch.device("cpu"))


def test_of_a_large_bank_each_opening_reads_a_part(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And sooner or later finds what is damaged."""
    bank = build(tmp_path)
    monkeypatch.setattr(bank_store, "CHECKED", 1)
    read: list[Path] = []
    check = bank_store.check_shard

    def listen(path: Path) -> list[bank_store.Damage]:
        read.append(path)
        return check(path)

    monkeypatch.setattr(bank_store, "check_shard", listen)
    for count in range(1, 40):
        read_bank(tmp_path, bank.key)
        assert len(read) == count
    assert len(set(read)) == SHARDS

    def open_often() -> None:
        for _ in range(200):
            read_bank(tmp_path, bank.key)

    flip(shard_of(bank.folder), 200)
    with pytest.raises(UserError, match="00001-"):
        open_often()


def test_a_damaged_shard_that_opening_did_not_read_is_found_by_asking_the_tower(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sign of every feature of one shard is turned; it alone is made again, and that is said."""
    bank = build(tmp_path)
    monkeypatch.setattr(bank_store, "CHECKED", 0)
    path = shard_of(bank.folder)
    np.save(path, -np.load(path))  # the name, and so the checksum, stays
    told: list[str] = []
    tower = Listening()
    assert same(build_bank(("one",), tower, IMAGES, VIEWS, tmp_path, lambda s, d, n: told.append(s)))
    assert tower.calls == 2 + len(VIEWS)
    (said,) = (line for line in told if line != "bank")
    assert said.startswith(f"bank {bank.key}: {path.name}: expected CRC-32")
    assert said.endswith("; made again")


def test_a_tower_that_says_something_else_than_it_did_makes_the_bank_anew(tmp_path: Path) -> None:
    """Files as they were written, but by another release of a library, say: no mixture is made."""
    old = build(tmp_path, lambda images, view: say(images, view) * 1.05)
    told: list[str] = []
    assert same(build_bank(("one",), say, IMAGES, VIEWS, tmp_path, lambda s, d, n: told.append(s)))
    assert told.count(f"bank {old.key}: the tower no longer says what was stored; made again") == 1


def test_rounding_is_no_damage(tmp_path: Path) -> None:
    build(tmp_path)
    tower = Listening()
    build(tmp_path, lambda images, view: tower(images, view) * (1 + 1e-3))
    assert tower.calls == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_features_that_half_precision_cannot_hold_are_refused(tmp_path: Path, value: float) -> None:
    def break_down(images: NDArray[np.int64], view: int) -> Tensor:
        features = say(images, view)
        if view == 2:
            features[-1, -1] = value
        return features

    with pytest.raises(UserError, match=r"gives NaN .* view 2"):
        build(tmp_path, break_down)
    assert same(build(tmp_path))


def test_a_bank_that_is_damaged_again_and_again_is_the_disks_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = bank_store.write_atomic

    def badly(path: Path, content: bytes) -> None:
        write(path, content[:-1] + b"?" if path.name.startswith("0") else content)

    monkeypatch.setattr(bank_store, "write_atomic", badly)
    with pytest.raises(UserError, match="damaged again each time that it was made; check the disk"):
        build(tmp_path)


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    tower = Listening()
    with pytest.raises(UserError, match=r"the bank needs 7,200 bytes, 100 are free; .* set COMKD_CACHE"):
        build(tmp_path, tower)
    assert tower.calls == 1


def test_a_disk_that_fills_up_meanwhile_is_told_and_leaves_no_part_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_shards: None
) -> None:
    fsync, left = os.fsync, 4  # rows and a shard, each with its folder

    def full(file: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            UserError, match=r"banks/.*: No space left on device \(.* bytes to write, .* COMKD"
        ):
            build(tmp_path)
    (folder,) = (path for path in (tmp_path / "banks").iterdir() if path.is_dir())
    assert [path.name for path in folder.iterdir() if ".npy" in path.name and path.name[0] == "."] == []
    tower = Listening()
    assert same(build(tmp_path, tower))
    assert tower.calls == 9


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "banks").write_text("a file")
    with pytest.raises(UserError, match="COMKD_CACHE moves the cache"):
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
