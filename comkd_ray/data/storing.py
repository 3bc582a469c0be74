"""The making of a folder of pixels: all images are decoded once, under a lock, and never half.

It is filled beside its place and renamed when it is whole, so a killed build leaves nothing that looks
like one. What lies in it is told in `pixels.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from comkd_ray.data.datasets import ImageTable
from comkd_ray.data.decoding import FORMAT, decode
from comkd_ray.data.folders import Progress
from comkd_ray.errors import UserError

BATCH = 64  # images between two calls of progress
STORED, INDEX = "pixels.npy", "store.json"


def store_bytes(images: int, side: int) -> int:
    """Size of the store of so many images."""
    return images * 3 * side * side


@contextmanager
def lock(folder: Path, progress: Progress) -> Iterator[None]:
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


def build(folder: Path, table: ImageTable, side: int, progress: Progress, skip: bool, stored: bool) -> None:
    """Decode into a temporary folder, and rename it when it is whole."""
    needed, free = store_bytes(len(table.paths), side), shutil.disk_usage(folder.parent).free
    if stored and needed > free:
        raise UserError(
            f"{folder.parent}: the decoded images need {needed:,} bytes, {free:,} are free; make "
            "room, lower data.side, set data.pixels: stream, or move the cache with COMKD_CACHE"
        )
    partial = folder.with_suffix(".partial")
    partial.mkdir(exist_ok=True)
    try:
        _write(partial, table, side, progress, skip, stored)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged store
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, table: ImageTable, side: int, progress: Progress, skip: bool, stored: bool) -> None:
    """Decode all images in the order of the table; their squares stay in `folder` where they are stored."""
    total, stage = len(table.paths), "storing images" if stored else "reading images"
    digest = hashlib.blake2b(f"{FORMAT} {side}".encode(), digest_size=16)
    sizes: list[tuple[int, int]] = []
    broken: list[str] = []
    reason = ""  # of the first
    with _Squares(folder / STORED, total, side, stored) as squares, ThreadPoolExecutor() as pool:
        for start in range(0, total, BATCH):
            progress(stage, start, total)
            paths = table.paths[start : start + BATCH]
            pictures = pool.map(lambda path: decode(table.root / path, side), paths)
            for path, picture in zip(paths, pictures, strict=True):
                if isinstance(picture, str):
                    broken.append(path)
                    reason = reason or picture
                else:
                    squares.add(picture.square)
                    sizes.append(picture.size)
                    digest.update(os.fsencode(path) + b"\0" + picture.digest)
            if broken and (not skip or len(broken) == total):
                raise broken_error(table, broken, reason)
        squares.end(len(sizes))
    np.save(folder / "sizes.npy", np.array(sizes, dtype=np.int32))
    (folder / INDEX).write_text(json.dumps({"digest": digest.hexdigest(), "broken": broken}))
    progress(stage, total, total)


class _Squares:
    """`pixels.npy` as it grows, or nothing at all where squares are not stored.

    Written, not mapped: a full disk is then an error that can be caught, not a dead process.
    """

    def __init__(self, path: Path, count: int, side: int, stored: bool) -> None:
        self.side = side
        self.file: BinaryIO | None = path.open("wb") if stored else None
        self._header(count)

    def __enter__(self) -> _Squares:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def _header(self, count: int) -> None:
        """Header of a .npy file; numpy pads it so that its length does not hang on `count`."""
        if self.file is not None:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, self.side, self.side)}
            self.file.seek(0)
            np.lib.format.write_array_header_1_0(self.file, header)

    def add(self, square: NDArray[np.uint8]) -> None:
        """The next one."""
        if self.file is not None:
            self.file.write(square.tobytes())

    def end(self, count: int) -> None:
        """All that could be decoded were added."""
        self._header(count)
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())


def broken_error(table: ImageTable, broken: list[str], reason: str) -> UserError:
    """What is told where images cannot be decoded; reason: why the first cannot."""
    return UserError(
        f"{table.root / broken[0]}: cannot be decoded{reason and f' ({reason})'}; {len(broken)} "
        f"broken of {len(table.paths)} images so far: replace them or set data.skip_broken: true"
    )
