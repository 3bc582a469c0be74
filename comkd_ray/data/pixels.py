"""Photographs as uint8 squares: decoded once into a memory-mapped store that all studies share.

    cache/pixels/<key>/pixels.npy    [N, 3, S, S] uint8, the whole image squashed to a square
    cache/pixels/<key>/sizes.npy     [N, 2] int32, height and width before squashing
    cache/pixels/<key>/store.json    digest and broken images

Without `pixels.npy` it is an index: all images were decoded once, to find the broken ones and to know the
digest, and `stream.py` decodes them again whenever they are used.

The key needs only `stat` of the images. `storing.py` makes these folders.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from comkd_ray.data.datasets import PARTS, ImageTable
from comkd_ray.data.decoding import FORMAT, decode
from comkd_ray.data.storing import INDEX, STORED, broken_error, build, lock
from comkd_ray.data.views import image_keys
from comkd_ray.errors import UserError

Images = NDArray[np.int64]
"""Rows of `kept(table, pixels)`."""
Progress = Callable[[str, int, int], None]
"""Called with stage, done, total."""

SAMPLE = 8  # images decoded again to verify a store
TOLERANCE = 4.0  # mean difference of a sample; decoders of JPEG differ by less than 1 of 255


class Pixels(Protocol):
    """Photographs as squares `[3, S, S]`, wherever they come from: the same bytes from a store and a stream.

    A view is cropped from the square by `views.render`, on the device, so (image, view) shows the same too.
    """

    @property
    def sizes(self) -> NDArray[np.int32]:
        """[N, 2] height and width of the originals."""

    @property
    def keys(self) -> NDArray[np.uint64]:
        """[N] hash of each path: the identity of an image in `views`."""

    @property
    def digest(self) -> str:
        """Hash of contents, paths, side: the same photographs have it on every machine."""

    @property
    def broken(self) -> tuple[str, ...]:
        """Paths of images left out."""

    @property
    def stored(self) -> bool:
        """Whether nothing has to be decoded any more."""

    def take(self, images: Images) -> NDArray[np.uint8]:
        """Squares `[len(images), 3, S, S]`; do not write into them."""

    def expect(self, batches: Iterable[Images]) -> None:
        """What `take` is asked for next, in this order; what was expected before is forgotten."""


@dataclass(frozen=True, slots=True)
class Index:
    """What is known of images without their pixels; see `Pixels`."""

    sizes: NDArray[np.int32]
    keys: NDArray[np.uint64]
    digest: str
    broken: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PixelStore:
    """Images as squares in memory-mapped pages; see `Pixels`."""

    pixels: NDArray[np.uint8]  # [N, 3, S, S], memory-mapped; writing into it changes no file
    sizes: NDArray[np.int32]
    keys: NDArray[np.uint64]
    digest: str
    broken: tuple[str, ...]
    stored: ClassVar[bool] = True

    def take(self, images: Images) -> NDArray[np.uint8]:
        """Squares `[len(images), 3, S, S]`."""
        return self.pixels[images]

    def expect(self, batches: Iterable[Images]) -> None:
        """Nothing to do: all squares are there."""


Found = TypeVar("Found", PixelStore, Index)


def open_store(
    table: ImageTable, side: int, cache: Path, progress: Progress, skip_broken: bool = False
) -> PixelStore:
    """Open the store of these images, and build it first where there is none that is whole.

    An image that cannot be decoded is a UserError, or left out with `skip_broken`.
    """
    read = partial(_read_store, table=table, side=side)
    return _open(read, True, table, side, cache, progress, skip_broken)


def open_index(
    table: ImageTable, side: int, cache: Path, progress: Progress, skip_broken: bool = False
) -> Index:
    """The same without keeping pixels; of a store that is there, its index."""
    read = partial(_read_index, table=table)
    return _open(read, False, table, side, cache, progress, skip_broken)


def _open(
    read: Callable[[Path], Found | None],
    stored: bool,
    table: ImageTable,
    side: int,
    cache: Path,
    progress: Progress,
    skip_broken: bool,
) -> Found:
    folder = place(table, side, cache)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        found = read(folder)
        if found is None:
            with lock(folder, progress):
                if read(folder) is None:  # no other process has built it meanwhile
                    build(folder, table, side, progress, skip_broken, stored)
            found = read(folder)
    except OSError as error:
        where = error.filename or folder.parent
        raise UserError(f"{where}: {error.strerror}; COMKD_CACHE moves the cache") from None
    if found is None:
        raise UserError(f"{table.root}: images changed while they were stored; start again")
    if found.broken and not skip_broken:
        raise broken_error(table, list(found.broken), "")
    return found


def kept(table: ImageTable, pixels: Pixels | Index) -> ImageTable:
    """The table without the broken images: its rows are those of `pixels`."""
    if not pixels.broken:
        return table
    broken = set(pixels.broken)
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


def place(table: ImageTable, side: int, cache: Path) -> Path:
    """Folder of these images: its name changes with their list, and with the size or time of any file."""
    found = hashlib.blake2b(f"{FORMAT} {side}".encode(), digest_size=10)
    for path in table.paths:
        try:
            stat = (table.root / path).stat()
        except OSError as error:
            raise UserError(f"{table.root / path}: {error.strerror}; restore the image") from None
        found.update(os.fsencode(f"{path}\0{stat.st_size} {stat.st_mtime_ns}\0"))
    return cache / "pixels" / found.hexdigest()


def _read_index(folder: Path, table: ImageTable) -> Index | None:
    """The index, or None where it is absent, or is not of this table."""
    try:
        about = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        sizes = np.load(folder / "sizes.npy")
        digest, broken = str(about["digest"]), tuple(map(str, about["broken"]))
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    paths = _without(table, broken)
    return Index(sizes, image_keys(paths), digest, broken) if sizes.shape == (len(paths), 2) else None


def _read_store(folder: Path, table: ImageTable, side: int) -> PixelStore | None:
    """The store, or None where it is absent, cut off, or not what the images decode to."""
    index = _read_index(folder, table)
    if index is None:
        return None
    try:
        pixels = np.load(folder / STORED, mmap_mode="c")  # refuses a file that is cut off
    except (OSError, ValueError, EOFError):
        return None
    paths = _without(table, index.broken)
    if pixels.shape != (len(paths), 3, side, side):
        return None
    store = PixelStore(pixels, index.sizes, index.keys, index.digest, index.broken)
    return store if _sample_agrees(store, table.root, paths) else None


def _without(table: ImageTable, broken: tuple[str, ...]) -> list[str]:
    left_out = set(broken)
    return [path for path in table.paths if path not in left_out]


def _sample_agrees(store: PixelStore, root: Path, paths: list[str]) -> bool:
    for row in np.unique(np.linspace(0, len(paths) - 1, SAMPLE).astype(int)):
        picture = decode(root / paths[row], store.pixels.shape[2])
        if isinstance(picture, str) or picture.size != tuple(store.sizes[row]):
            return False
        if np.abs(picture.square.astype(np.float32) - store.pixels[row]).mean() > TOLERANCE:
            return False
    return True
