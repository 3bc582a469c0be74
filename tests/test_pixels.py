"""The pixel store: every image decoded once, rightly, and never half."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

import comkd_ray
from comkd_ray.config import Data
from comkd_ray.data.datasets import TEST, TRAIN, ImageTable, open_dataset
from comkd_ray.data.pixels import kept, open_store, place
from comkd_ray.data.views import image_keys
from comkd_ray.errors import UserError

SIDE = 16


def silent(stage: str, done: int, total: int) -> None:
    """A progress that nobody watches."""


def colours(height: int = 12, width: int = 20, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def table_of(root: Path, *paths: str) -> ImageTable:
    """A table of any files, in two classes by turns."""
    labels = np.arange(len(paths)) % 2
    parts = np.full(len(paths), TRAIN, dtype=np.int8)
    return ImageTable(root, paths, labels, parts, ("a", "b"), "by hand")


def photographs(root: Path, count: int = 10) -> ImageTable:
    root.mkdir(exist_ok=True)
    for i in range(count):
        Image.fromarray(colours(seed=i)).save(root / f"{i}.png")
    return table_of(root, *(f"{i}.png" for i in range(count)))


def decoded(file: Path) -> NDArray[np.uint8]:
    """[3, S, S] what the store holds for one image file."""
    store = open_store(table_of(file.parent, file.name), SIDE, file.parent / "cache", silent)
    (picture,) = store.pixels
    return np.asarray(picture)


def squashed(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = Image.fromarray(rgb).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def store_folder(cache: Path) -> Path:
    (folder,) = (path for path in (cache / "pixels").iterdir() if path.is_dir())
    return folder


class Counter:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.calls.append((stage, done, total))


# The store --------------------------------------------------------------------------------------


def test_a_store_holds_every_image_squashed_in_the_order_of_the_table(tmp_path: Path) -> None:
    store = open_store(photographs(tmp_path / "set"), SIDE, tmp_path, silent)
    assert store.pixels.shape == (10, 3, SIDE, SIDE)
    assert store.pixels.dtype == np.uint8
    assert store.sizes.tolist() == [[12, 20]] * 10
    assert store.keys.tolist() == image_keys([f"{i}.png" for i in range(10)]).tolist()
    assert store.broken == ()
    for i in range(10):
        assert np.array_equal(store.pixels[i], squashed(colours(seed=i)))


def test_a_store_is_built_once_and_then_opened(tmp_path: Path) -> None:
    table, first, second = photographs(tmp_path / "set"), Counter(), Counter()
    built = open_store(table, SIDE, tmp_path, first)
    opened = open_store(table, SIDE, tmp_path, second)
    assert first.calls[-1] == ("storing images", 10, 10)
    assert second.calls == []
    assert built.digest == opened.digest
    assert np.array_equal(built.pixels, opened.pixels)


def test_progress_is_called_at_least_every_batch(tmp_path: Path) -> None:
    counter = Counter()
    open_store(photographs(tmp_path / "set", 150), SIDE, tmp_path, counter)
    done = [call[1] for call in counter.calls]
    assert done == [0, 64, 128, 150]


def test_the_digest_is_of_the_photographs_not_of_the_machine(tmp_path: Path) -> None:
    """Other folder, other file times: the same digest."""
    here = open_store(photographs(tmp_path / "here"), SIDE, tmp_path / "1", silent)
    there = photographs(tmp_path / "there")
    for path in there.paths:
        os.utime(there.root / path, (1, 1))
    assert open_store(there, SIDE, tmp_path / "2", silent).digest == here.digest


def test_the_digest_changes_with_content_path_order_and_side(tmp_path: Path) -> None:
    table = photographs(tmp_path / "set", 3)
    tables = [table, table_of(table.root, *reversed(table.paths))]
    shutil.copytree(table.root, tmp_path / "renamed")
    (tmp_path / "renamed" / "2.png").rename(tmp_path / "renamed" / "3.png")
    tables.append(table_of(tmp_path / "renamed", "0.png", "1.png", "3.png"))
    shutil.copytree(table.root, tmp_path / "edited")
    Image.fromarray(colours(seed=9)).save(tmp_path / "edited" / "2.png")
    tables.append(table_of(tmp_path / "edited", *table.paths))
    digests = {open_store(each, SIDE, tmp_path, silent).digest for each in tables}
    digests.add(open_store(table, SIDE + 1, tmp_path, silent).digest)
    assert len(digests) == 5


@pytest.mark.parametrize(
    ("size", "seconds"), [((12, 20), 50), ((13, 20), 0)], ids=["other time", "other file size"]
)
def test_an_image_that_changes_makes_a_new_store(tmp_path: Path, size: tuple[int, int], seconds: int) -> None:
    """30 images, so that the changed one is not among those that opening decodes again."""
    table = photographs(tmp_path / "set", 30)
    file = table.root / "3.png"
    Image.fromarray(colours()).save(file, "bmp")
    before = file.stat()
    open_store(table, SIDE, tmp_path, silent)
    Image.fromarray(colours(*size, seed=99)).save(file, "bmp")
    os.utime(file, ns=(0, before.st_mtime_ns + seconds * 10**9))
    assert (file.stat().st_size == before.st_size) == (size == (12, 20))
    store = open_store(table, SIDE, tmp_path, silent)
    assert np.array_equal(store.pixels[3], squashed(colours(*size, seed=99)))


def test_writing_into_pixels_changes_no_file(tmp_path: Path) -> None:
    table = photographs(tmp_path / "set")
    store = open_store(table, SIDE, tmp_path, silent)
    before = store.pixels[0].copy()
    store.pixels[0] = 0
    assert np.array_equal(open_store(table, SIDE, tmp_path, silent).pixels[0], before)


# Damage -----------------------------------------------------------------------------------------


def _cut_off(folder: Path) -> None:
    with (folder / "pixels.npy").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 1)


def _zero(folder: Path) -> None:
    pixels_file = np.load(folder / "pixels.npy", mmap_mode="r+")
    pixels_file[:] = 0
    pixels_file.flush()


def _forget(folder: Path) -> None:
    (folder / "store.json").unlink()


def _garble(folder: Path) -> None:
    (folder / "store.json").write_text("[]")


def _shorten_sizes(folder: Path) -> None:
    np.save(folder / "sizes.npy", np.load(folder / "sizes.npy")[:-1])


@pytest.mark.parametrize("damage", [_cut_off, _zero, _forget, _garble, _shorten_sizes])
def test_a_damaged_store_is_built_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    table, counter = photographs(tmp_path / "set"), Counter()
    open_store(table, SIDE, tmp_path, silent)
    damage(store_folder(tmp_path))
    store = open_store(table, SIDE, tmp_path, counter)
    assert counter.calls[-1] == ("storing images", 10, 10)
    assert np.array_equal(store.pixels[9], squashed(colours(seed=9)))


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    table = photographs(tmp_path / "set", 70)
    with pytest.raises(KeyboardInterrupt):
        open_store(table, SIDE, tmp_path, stop)
    assert [path.suffix for path in (tmp_path / "pixels").iterdir()] == [".lock"]


def opening(root: Path, progress: str) -> subprocess.Popen[str]:
    """Another process that opens the store of the 70 photographs in root/set."""
    code = (
        "import os, sys; from pathlib import Path;"
        "sys.path.insert(0, sys.argv[2]); from test_pixels import *;"
        "root = Path(sys.argv[1]);"
        "table = table_of(root / 'set', *(f'{i}.png' for i in range(70)));"
        f"open_store(table, SIDE, root, {progress})"
    )
    command = [sys.executable, "-c", code, str(root), str(Path(__file__).parent)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_build_looks_like_none_and_is_swept_away(tmp_path: Path) -> None:
    table = photographs(tmp_path / "set", 70)
    process = opening(tmp_path, "lambda stage, done, total: done and os._exit(9)")
    process.communicate()
    assert process.returncode == 9
    stale = tmp_path / "pixels" / "of_another_data_set.partial"
    stale.mkdir()
    assert len(list((tmp_path / "pixels").glob("*.partial"))) == 2
    assert open_store(table, SIDE, tmp_path, silent).pixels.shape[0] == 70
    assert list((tmp_path / "pixels").glob("*.partial")) == []


def test_the_temporary_folder_of_a_living_build_is_left_alone(tmp_path: Path) -> None:
    partial = tmp_path / "pixels" / "of_another_data_set.partial"
    partial.mkdir(parents=True)
    with FileLock(partial.with_suffix(".lock")):
        open_store(photographs(tmp_path / "set"), SIDE, tmp_path, silent)
    assert partial.is_dir()


def test_processes_that_open_at_once_build_once(tmp_path: Path) -> None:
    """Both find no store and wait for the lock; one builds, the other opens what it built.

    Whoever held the lock before died and left its temporary folder.
    """
    table = photographs(tmp_path / "set", 70)
    lock = place(table, SIDE, tmp_path).with_suffix(".lock")
    lock.parent.mkdir()
    lock.with_suffix(".partial").mkdir()
    with FileLock(lock):
        say = "lambda *call: print(*call, flush=True)"
        both = [opening(tmp_path, say) for _ in range(2)]
        waiting = [process.stdout.readline() for process in both if process.stdout]
    said = [process.communicate()[0] for process in both]
    assert all(line.startswith("waiting") for line in waiting)
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(text.count("storing images 70 70") for text in said) == [0, 1]


def test_a_full_disk_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=10_000, used=9_000, free=1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"pixels: .*need 7,680 bytes, 1,000 are free.*COMKD_CACHE"):
        open_store(photographs(tmp_path / "set"), SIDE, tmp_path / "cache", silent)
    assert list((tmp_path / "cache" / "pixels").glob("*.partial")) == []


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cache.*COMKD_CACHE"):
        open_store(photographs(tmp_path / "set"), SIDE, tmp_path / "cache", silent)


# Broken images ----------------------------------------------------------------------------------


def with_broken(root: Path, *names: str) -> ImageTable:
    table = photographs(root)
    for name in names:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])
    return table


def test_broken_images_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    table = with_broken(tmp_path / "set", "3.png", "7.png")
    with pytest.raises(UserError, match=r"3\.png: cannot be decoded \(.+\); 2 broken of 10 .*skip"):
        open_store(table, SIDE, tmp_path, silent)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\xff\xd8\xff\xe0" + b"\0" * 50])
def test_files_that_are_no_image_are_broken(tmp_path: Path, content: bytes) -> None:
    table = photographs(tmp_path / "set")
    (table.root / "0.png").write_bytes(content)
    with pytest.raises(UserError, match=r"0\.png: cannot be decoded"):
        open_store(table, SIDE, tmp_path, silent)


def test_a_truncated_jpeg_is_broken_and_not_half_grey(tmp_path: Path) -> None:
    Image.fromarray(colours(200, 200)).save(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"x\.jpg: cannot be decoded \(.*truncated"):
        open_store(table_of(tmp_path, "x.jpg"), SIDE, tmp_path, silent)


def test_skip_broken_leaves_them_out_of_store_and_table(tmp_path: Path) -> None:
    table = with_broken(tmp_path / "set", "0.png", "9.png")
    store = open_store(table, SIDE, tmp_path, silent, skip_broken=True)
    rest = kept(table, store)
    assert store.broken == ("0.png", "9.png")
    assert rest.paths == tuple(f"{i}.png" for i in range(1, 9))
    assert rest.labels.tolist() == [1, 0] * 4
    assert store.keys.tolist() == image_keys(rest.paths).tolist()
    assert store.sizes.shape == (8, 2)
    for row in range(8):
        assert np.array_equal(store.pixels[row], squashed(colours(seed=row + 1)))


def test_a_store_with_skipped_images_opens_again_and_only_with_skip_broken(tmp_path: Path) -> None:
    table, counter = with_broken(tmp_path / "set", "4.png"), Counter()
    open_store(table, SIDE, tmp_path, silent, skip_broken=True)
    assert open_store(table, SIDE, tmp_path, counter, skip_broken=True).broken == ("4.png",)
    assert counter.calls == []
    with pytest.raises(UserError, match=r"4\.png: cannot be decoded; 1 broken of 10"):
        open_store(table, SIDE, tmp_path, silent)


def test_the_same_images_left_out_give_the_digest_of_the_rest(tmp_path: Path) -> None:
    table = with_broken(tmp_path / "set", "4.png")
    store = open_store(table, SIDE, tmp_path, silent, skip_broken=True)
    rest = open_store(kept(table, store), SIDE, tmp_path, silent)
    assert rest.digest == store.digest


def test_all_images_broken_is_an_error_even_with_skip_broken(tmp_path: Path) -> None:
    table = with_broken(tmp_path / "set", *(f"{i}.png" for i in range(10)))
    with pytest.raises(UserError, match="10 broken of 10"):
        open_store(table, SIDE, tmp_path, silent, skip_broken=True)


def test_a_class_that_loses_all_its_images_is_named(tmp_path: Path) -> None:
    table = photographs(tmp_path / "set", 4)
    table.parts[2:] = TEST
    (table.root / "3.png").write_bytes(b"")
    store = open_store(table, SIDE, tmp_path, silent, skip_broken=True)
    with pytest.raises(UserError, match="all test images of class 'b' are broken"):
        kept(table, store)


def test_without_broken_images_the_table_stays_as_it_is(tmp_path: Path) -> None:
    table = photographs(tmp_path / "set")
    assert kept(table, open_store(table, SIDE, tmp_path, silent)) is table


def test_an_image_that_vanished_is_named(tmp_path: Path) -> None:
    table = photographs(tmp_path / "set")
    (table.root / "5.png").unlink()
    with pytest.raises(UserError, match=r"5\.png: No such file"):
        open_store(table, SIDE, tmp_path, silent)


# Modes ------------------------------------------------------------------------------------------

GREY = colours()[:, :, 0]
LEFT = np.arange(20) < 10  # the half that is transparent
OPAQUE_RIGHT = np.where(LEFT, 0, 255).astype(np.uint8) * np.ones((12, 1), dtype=np.uint8)
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def three(grey: NDArray[Any]) -> NDArray[np.uint8]:
    return np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8)


def halves(left: tuple[int, ...], right: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.where(LEFT[None, :, None], left, right).astype(np.uint8) * np.ones((12, 1, 1), np.uint8)


def palette() -> Image.Image:
    image = Image.fromarray(np.where(LEFT, 0, 1).astype(np.uint8) * np.ones((12, 1), np.uint8))
    image.putpalette([*RED, *BLUE])
    return image


# What is saved, under which name and options, and the RGB that it must become.
MODES: dict[str, tuple[Image.Image, str, dict[str, Any], NDArray[np.uint8]]] = {
    "grey": (Image.fromarray(GREY), "x.png", {}, three(GREY)),
    "1 bit": (Image.fromarray(GREY > 128), "x.png", {}, three((GREY > 128) * 255)),
    "16 bits, PNG": (Image.fromarray(GREY * np.uint16(257)), "x.png", {}, three(GREY)),
    "16 bits, TIFF": (Image.fromarray(GREY * np.uint16(257)), "x.tif", {}, three(GREY)),
    "16 bits, rounded": (Image.fromarray(GREY // 2 * np.uint16(257) + np.uint16(129)), "x.png", {},
                         three(GREY // 2 + 1)),
    "32 bits, values of 16": (Image.fromarray(GREY * np.int32(257)), "x.tif", {}, three(GREY)),
    "alpha": (Image.fromarray(np.dstack([colours(), OPAQUE_RIGHT])), "x.png", {},
              np.where(LEFT[None, :, None], 255, colours()).astype(np.uint8)),
    "half transparent": (Image.new("RGBA", (20, 12), (*RED, 128)), "x.png", {},
                         halves((255, 127, 127), (255, 127, 127))),
    "grey with alpha": (Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(OPAQUE_RIGHT)]),
                        "x.png", {}, three(np.where(LEFT, 255, GREY))),
    "palette": (palette(), "x.png", {}, halves(RED, BLUE)),
    "palette, one colour transparent": (palette(), "x.png", {"transparency": 0}, halves(WHITE, BLUE)),
    "palette with alpha": (palette(), "x.png", {"transparency": bytes([0, 255])}, halves(WHITE, BLUE)),
    "one colour transparent": (Image.fromarray(halves(RED, BLUE)), "x.png", {"transparency": RED},
                               halves(WHITE, BLUE)),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_the_rgb_that_a_viewer_shows_on_white(tmp_path: Path, mode: str) -> None:
    image, name, options, expected = MODES[mode]
    image.save(tmp_path / name, **options)
    assert np.array_equal(decoded(tmp_path / name), squashed(expected))


def test_sixteen_bits_of_colour_are_scaled(tmp_path: Path) -> None:
    """PIL writes no such PNG, so this one is put together by hand: header, pixels, end."""
    samples = colours().astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in samples.astype(">u2"))

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return len(data).to_bytes(4) + kind + data + checksum.to_bytes(4)

    header = (20).to_bytes(4) + (12).to_bytes(4) + bytes([16, 2, 0, 0, 0])
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert np.array_equal(decoded(tmp_path / "x.png"), squashed(colours()))


@pytest.mark.parametrize("values", [np.full((9, 9), 70_000, np.int32), np.ones((9, 9), np.float32)])
def test_pixels_without_a_known_range_are_refused(tmp_path: Path, values: NDArray[np.generic]) -> None:
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match="32-bit pixels have no known range"):
        decoded(tmp_path / "x.tif")


@pytest.mark.parametrize("name", ["x.jpg", "x.tif"])
def test_cmyk_becomes_the_colours_of_ink(tmp_path: Path, name: str) -> None:
    Image.new("CMYK", (20, 12), (255, 0, 0, 0)).save(tmp_path / name)
    ours = decoded(tmp_path / name)[:, 8, 8]
    assert np.abs(ours.astype(int) - [0, 255, 255]).max() <= 3


def test_a_photograph_held_sideways_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the right side of what is stored is the bottom of what was seen
    Image.fromarray(colours()).save(tmp_path / "x.png", exif=exif)
    store = open_store(table_of(tmp_path, "x.png"), SIDE, tmp_path, silent)
    assert np.array_equal(store.pixels[0], squashed(np.rot90(colours(), -1)))
    assert store.sizes.tolist() == [[20, 12]]


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(tmp_path: Path) -> None:
    fine = Image.fromarray(colours(45, 60)).resize((800, 600), Image.Resampling.BICUBIC)
    fine.save(tmp_path / "x.jpg", quality=95)
    store = open_store(table_of(tmp_path, "x.jpg"), 100, tmp_path, silent)
    whole = np.asarray(Image.open(tmp_path / "x.jpg").resize((100, 100), Image.Resampling.BICUBIC))
    assert np.abs(store.pixels[0].astype(int) - whole.transpose(2, 0, 1)).mean() < 1
    assert store.sizes.tolist() == [[600, 800]]


def test_the_photographs_of_the_package_are_all_whole(tmp_path: Path) -> None:
    root = Path(comkd_ray.__file__).parent / "assets" / "caltech20"
    if not root.is_dir():
        pytest.skip("the package was built without its photographs")
    table = open_dataset(Data(dataset="caltech101", root=str(root)), root)
    store = open_store(table, 32, tmp_path, silent)
    assert len(store.pixels) == len(table.paths)
    assert store.broken == ()
