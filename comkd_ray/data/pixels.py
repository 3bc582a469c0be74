"""Every image decoded once: a memory-mapped store of uint8 squares, shared by all studies.

    cache/pixels/<key>/pixels.npy    [N, 3, S, S] uint8, the whole image squashed to a square
    cache/pixels/<key>/sizes.npy     [N, 2] int32, height and width before squashing
    cache/pixels/<key>/store.json    digest and broken images

The key needs only `stat` of the images. A store is built under a lock in a temporary folder that is
renamed when it is whole, so a killed build leaves nothing that looks like a store.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image, ImageOps

from comkd_ray.data.datasets import PARTS, ImageTable
from comkd_ray.data.views import image_keys
from comkd_ray.errors import UserError

Progress = Callable[[str, int, int], None]
"""Called with stage, done, total."""

FORMAT = 1  # raise it when decoding changes: it is part of every key and digest
BATCH = 64  # images between two calls of progress
SAMPLE = 8  # images decoded again to verify a store
TOLERANCE = 4.0  # mean difference of a sample; decoders of JPEG differ by less than 1 of 255


@dataclass(frozen=True, slots=True)
class PixelStore:
    """Images as squares; rows are those of `kept(table, store)`."""

    pixels: NDArray[np.uint8]  # [N, 3, S, S], memory-mapped; writing into it changes no file
    sizes: NDArray[np.int32]  # [N, 2] height and width of the originals
    keys: NDArray[np.uint64]  # [N] hash of each path: the identity of an image in `views`
    digest: str  # hash of contents, paths, side: the same photographs have it on every machine
    broken: tuple[str, ...]  # paths of images left out


# A decoded image: pixels [3, S, S], (height, width) of the original, hash of the file.
_Picture = tuple[NDArray[np.uint8], tuple[int, int], bytes]


def open_store(
    table: ImageTable, side: int, cache: Path, progress: Progress, skip_broken: bool = False
) -> PixelStore:
    """Open the store of these images, and build it first where there is none that is whole.

    An image that cannot be decoded is a UserError, or left out with `skip_broken`.
    """
    stores = cache / "pixels"
    folder = stores / _key(table, side)
    try:
        stores.mkdir(parents=True, exist_ok=True)
        store = _read(folder, table, side)
        if store is None:
            with _lock(folder, progress):
                if _read(folder, table, side) is None:  # no other process has built it meanwhile
                    _build(folder, table, side, progress, skip_broken)
            store = _read(folder, table, side)
    except OSError as error:
        place = error.filename or stores
        raise UserError(f"{place}: {error.strerror}; COMKD_CACHE moves the cache") from None
    if store is None:
        raise UserError(f"{table.root}: images changed while they were stored; start again")
    if store.broken and not skip_broken:
        raise _broken_error(table, list(store.broken), "")
    return store


def kept(table: ImageTable, store: PixelStore) -> ImageTable:
    """The table without the broken images: its rows are those of the store."""
    if not store.broken:
        return table
    broken = set(store.broken)
    keep = np.array([path not in broken for path in table.paths])
    paths = tuple(path for path in table.paths if path not in broken)
    rest = replace(table, paths=paths, labels=table.labels[keep], parts=table.parts[keep])
    for part, name in enumerate(PARTS):
        before, after = (set(each.labels[each.select(part)].tolist()) for each in (table, rest))
        if lost := sorted(before - after):
            raise UserError(
                f"{table.root}: all {name} images of class '{table.classes[lost[0]]}' are broken; "
                "replace them or remove the class"
            )
    return rest


def _key(table: ImageTable, side: int) -> str:
    """Name of a store: changes with the list of images, and with the size or time of any file."""
    found = hashlib.blake2b(f"{FORMAT} {side}".encode(), digest_size=10)
    for path in table.paths:
        try:
            stat = (table.root / path).stat()
        except OSError as error:
            raise UserError(f"{table.root / path}: {error.strerror}; restore the image") from None
        found.update(os.fsencode(f"{path}\0{stat.st_size} {stat.st_mtime_ns}\0"))
    return found.hexdigest()


def _read(folder: Path, table: ImageTable, side: int) -> PixelStore | None:
    """The store, or None where it is absent, cut off, or not what the images decode to."""
    try:
        about = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        sizes = np.load(folder / "sizes.npy")
        pixels = np.load(folder / "pixels.npy", mmap_mode="c")  # refuses a file that is cut off
        digest, broken = str(about["digest"]), tuple(map(str, about["broken"]))
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    left_out = set(broken)
    paths = [path for path in table.paths if path not in left_out]
    if pixels.shape != (len(paths), 3, side, side) or sizes.shape != (len(paths), 2):
        return None
    store = PixelStore(pixels, sizes, image_keys(paths), digest, broken)
    return store if _sample_agrees(store, table.root, paths) else None


def _sample_agrees(store: PixelStore, root: Path, paths: list[str]) -> bool:
    for row in np.unique(np.linspace(0, len(paths) - 1, SAMPLE).astype(int)):
        picture = _decode(root / paths[row], store.pixels.shape[2])
        if isinstance(picture, str) or picture[1] != tuple(store.sizes[row]):
            return False
        if np.abs(picture[0].astype(np.float32) - store.pixels[row]).mean() > TOLERANCE:
            return False
    return True


@contextmanager
def _lock(folder: Path, progress: Progress) -> Iterator[None]:
    """Only one process builds a store; what killed builds left, of any store, is removed."""
    for partial in folder.parent.glob("*.partial"):
        with suppress(Timeout), FileLock(partial.with_suffix(".lock"), blocking=False):
            shutil.rmtree(partial, ignore_errors=True)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        progress("waiting for the process that stores these images", 0, 1)
        held = lock.acquire()
    with held:
        yield


def _build(folder: Path, table: ImageTable, side: int, progress: Progress, skip: bool) -> None:
    """Decode into a temporary folder, and rename it when it is whole."""
    needed, free = len(table.paths) * 3 * side * side, shutil.disk_usage(folder.parent).free
    if needed > free:
        raise UserError(
            f"{folder.parent}: the decoded images need {needed:,} bytes, {free:,} are free; make "
            "room, lower data.side, or move the cache with COMKD_CACHE"
        )
    partial = folder.with_suffix(".partial")
    partial.mkdir(exist_ok=True)
    try:
        _write(partial, table, side, progress, skip)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged store
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, table: ImageTable, side: int, progress: Progress, skip: bool) -> None:
    """Decode all images into `folder`, in the order of the table."""
    total = len(table.paths)
    digest = hashlib.blake2b(f"{FORMAT} {side}".encode(), digest_size=16)
    sizes: list[tuple[int, int]] = []
    broken: list[str] = []
    reason = ""  # of the first
    # Written, not mapped: a full disk is then an error that can be caught, not a dead process.
    with (folder / "pixels.npy").open("wb") as file, ThreadPoolExecutor() as pool:
        _write_header(file, total, side)
        for start in range(0, total, BATCH):
            progress("storing images", start, total)
            paths = table.paths[start : start + BATCH]
            pictures = pool.map(lambda path: _decode(table.root / path, side), paths)
            for path, picture in zip(paths, pictures, strict=True):
                if isinstance(picture, str):
                    broken.append(path)
                    reason = reason or picture
                else:
                    file.write(picture[0].tobytes())
                    sizes.append(picture[1])
                    digest.update(os.fsencode(path) + b"\0" + picture[2])
            if broken and (not skip or len(broken) == total):
                raise _broken_error(table, broken, reason)
        _write_header(file, len(sizes), side)
        file.flush()
        os.fsync(file.fileno())
    np.save(folder / "sizes.npy", np.array(sizes, dtype=np.int32))
    (folder / "store.json").write_text(json.dumps({"digest": digest.hexdigest(), "broken": broken}))
    progress("storing images", total, total)


def _write_header(file: BinaryIO, count: int, side: int) -> None:
    """Header of a .npy file; numpy pads it so that its length does not hang on `count`."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, side, side)}
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, header)


def _broken_error(table: ImageTable, broken: list[str], reason: str) -> UserError:
    return UserError(
        f"{table.root / broken[0]}: cannot be decoded{reason and f' ({reason})'}; {len(broken)} "
        f"broken of {len(table.paths)} images so far: replace them or set data.skip_broken: true"
    )


def _decode(path: Path, side: int) -> _Picture | str:
    """The image as a square, or the reason why it cannot be decoded."""
    try:
        content = path.read_bytes()
        with Image.open(BytesIO(content)) as image:
            width, height = image.size
            image.draft(None, (2 * side, 2 * side))  # a large JPEG is decoded at 1/2, 1/4 or 1/8
            drafted = image.size
            upright = ImageOps.exif_transpose(image)
            if upright.size != drafted:  # the camera was held sideways
                width, height = height, width
            square = _to_rgb(upright).resize((side, side), Image.Resampling.BICUBIC)
    except Exception as error:  # decoders raise whatever broken bytes lead them to
        return " ".join(str(error).split()) or type(error).__name__
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return np.asarray(square).transpose(2, 0, 1), (height, width), digest


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: 16 bits are scaled, not clipped, and what is transparent becomes white."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.int64)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels have no known range; convert the image to 8 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
