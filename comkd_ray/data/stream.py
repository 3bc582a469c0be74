"""Photographs that are too many to store: decoded from their files whenever they are used, ahead of time.

The squares are those that a store would hold, byte for byte, so views, features and arms are the same.
Threads decode: PIL lets other threads run meanwhile, and what is expected next is decoded while the
present batch is trained on. `open_pixels` says for each data set whether it is stored or streamed.

Shapes: B images, S side.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from comkd_ray.config import Data
from comkd_ray.data.datasets import ImageTable
from comkd_ray.data.decoding import decode
from comkd_ray.data.pixels import Images, Pixels, Progress, kept, open_index, open_store, place
from comkd_ray.data.storing import INDEX, STORED, store_bytes
from comkd_ray.errors import UserError

AHEAD = 256
"""Images that are decoded before they are asked for, or one batch where that is more: 50 MB at side 256."""
SHARE = 0.5
"""Of the disk's free bytes and of the machine's memory: a store that takes more is not built unasked."""


class ChangedImage(UserError, OSError):
    """An image is gone, or is another than when the study began: no fault of the arm that asked for it."""


class Choice(NamedTuple):
    """Whether images are stored, and why."""

    stored: bool
    why: str


def choose(data: Data, table: ImageTable, cache: Path) -> Choice:
    """What `data.pixels` means here. `auto` goes on as it began, on every machine of a cluster."""
    if data.pixels != "auto":
        return Choice(data.pixels == "store", f"data.pixels: {data.pixels}")
    need = store_bytes(len(table.paths), data.side)
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    room = {
        "free disk": shutil.disk_usage(existing).free,
        "memory": psutil.virtual_memory().total,
    }
    lacking = [name for name, size in room.items() if need > SHARE * size]
    folder = place(table, data.side, cache)
    if (folder / STORED).exists():
        return Choice(True, "they are stored already")
    if (folder / INDEX).exists():
        return Choice(False, "they were streamed before")
    if lacking:
        return Choice(
            False, f"a store would take more than {SHARE:.0%} of the {' and of the '.join(lacking)}"
        )
    return Choice(True, f"a store takes less than {SHARE:.0%} of the free disk and of the memory")


def open_pixels(data: Data, table: ImageTable, cache: Path, progress: Progress) -> Pixels:
    """The pixels of a data set, all decoded once before anything is trained; its rows are `kept`.

    UserError for an image that cannot be decoded, unless `data.skip_broken`.
    """
    if choose(data, table, cache).stored:
        return open_store(table, data.side, cache, progress, data.skip_broken)
    index = open_index(table, data.side, cache, progress, data.skip_broken)
    return PixelStream(kept(table, index), data.side, index.sizes, index.keys, index.digest, index.broken)


class _Batch:
    """Squares `[B, 3, S, S]` in the making."""

    def __init__(self, images: Images, side: int) -> None:
        self.images = images.copy()
        self.squares = np.empty((len(images), 3, side, side), np.uint8)
        self.tasks: list[Future[None]] = []

    def wait(self) -> NDArray[np.uint8]:
        """All squares, or the error of the first that failed."""
        for task in self.tasks:
            task.result()
        return self.squares

    def drop(self) -> None:
        """Nobody wants it any more."""
        for task in self.tasks:
            task.cancel()


class PixelStream:
    """Images as squares, decoded when they are used; see `Pixels`.

    It keeps the last batch, as the views of a batch are asked for one after the other.
    """

    stored: ClassVar[bool] = False

    def __init__(
        self,
        table: ImageTable,
        side: int,
        sizes: NDArray[np.int32],
        keys: NDArray[np.uint64],
        digest: str,
        broken: tuple[str, ...],
    ) -> None:
        """table: without broken images."""
        self.root, self.paths, self.side = table.root, table.paths, side
        self.sizes, self.keys, self.digest, self.broken = sizes, keys, digest, broken
        self._pool: ThreadPoolExecutor | None = None
        self._coming: Iterator[Images] = iter(())
        self._ahead: deque[_Batch] = deque()
        self._last: _Batch | None = None

    def take(self, images: Images) -> NDArray[np.uint8]:
        """Squares `[len(images), 3, S, S]`. ChangedImage where a file is not what it was."""
        if self._last is None or not np.array_equal(self._last.images, images):
            expected = self._ahead and np.array_equal(self._ahead[0].images, images)
            batch = self._ahead.popleft() if expected else self._begin(images)
            self._fill()
            batch.wait()
            self._last = batch
        return self._last.squares

    def expect(self, batches: Iterable[Images]) -> None:
        """Begin to decode what comes, in this order."""
        for batch in self._ahead:
            batch.drop()
        self._ahead.clear()
        self._coming = iter(batches)
        self._fill()

    def _fill(self) -> None:
        while sum(len(batch.images) for batch in self._ahead) < AHEAD:
            images = next(self._coming, None)
            if images is None:
                return
            self._ahead.append(self._begin(images))

    def _begin(self, images: Images) -> _Batch:
        if self._pool is None:  # as many threads as the cohort has CPUs
            self._pool = ThreadPoolExecutor(torch.get_num_threads(), "decode")
        batch = _Batch(images, self.side)
        batch.tasks = [self._pool.submit(self._decode, batch, row) for row in range(len(images))]
        return batch

    def _decode(self, batch: _Batch, row: int) -> None:
        image = int(batch.images[row])
        path = self.root / self.paths[image]
        picture = decode(path, self.side)
        if isinstance(picture, str):
            raise ChangedImage(f"{path}: changed since this study began ({picture}); restore it")
        if picture.size != tuple(self.sizes[image]):
            raise ChangedImage(f"{path}: changed its size since this study began; restore it")
        batch.squares[row] = picture.square
