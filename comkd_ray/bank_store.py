"""A bank on disk: shards that vouch for themselves, and a card that says that all are there.

    $COMKD_CACHE/banks/<key>/00000-1a2b3c4d.npy   float16 [V, m, D]: a block of images under all views
    $COMKD_CACHE/banks/<key>/rows.npy             int64 [n]: the image of each row, ascending
    $COMKD_CACHE/banks/<key>/card.json            what it is of, names and sizes; written last

A shard's name is its number and the CRC-32 of its file. It is written aside, fsynced and renamed, so
one that is there is whole, and a build that was killed goes on with the shards that are missing. Any
number of processes may build at once: each claims a shard by a lock. Locks only save work; what is
on disk is right without them. Needs no torch.

Shapes: V views, n images, m images of a shard, D width.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from comkd_ray.errors import UserError
from comkd_ray.results import write_atomic

FORMAT = 2
"""Raised when files or features change: part of every key."""
BATCH = 64
"""Images that the tower is asked for at once; shards hold whole batches, but for the last."""
SHARD = 512
"""Batches of a shard, all views counted: 50 MB at D = 768; ImageNet under 20 views has 801 shards."""
CHECKED = 64 << 20
"""Bytes that opening a bank reads to check them: all of a small bank, a shard or two of a large one."""
POLL = 0.5  # seconds between two looks at what other builders have done
CARD, ROWS, MARK = "card.json", "rows.npy", ".builder"


@dataclass(frozen=True)
class Layout:
    """How n images under V views lie in shards."""

    images: int
    views: int
    block: int
    """Images of a shard; the last may have fewer."""

    @staticmethod
    def of(images: int, views: int) -> Layout:
        """The layout that is built."""
        return Layout(images, views, BATCH * max(1, SHARD // views))

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.images // self.block)

    def part(self, shard: int) -> range:
        """Rows of a shard."""
        return range(shard * self.block, min(self.images, (shard + 1) * self.block))


@dataclass(frozen=True)
class Card:
    """`card.json`: that a bank is whole, and what it is."""

    format: int
    of: dict[str, Any]
    """For people: model, data set and so on."""
    views: list[int]
    images: int
    block: int
    """Images of a shard."""
    width: int
    shards: list[str]
    sizes: list[int]
    """Bytes of each shard's file."""
    rows_crc32: str
    seconds_per_image: float
    """What one forward cost the process that ended the build, batch included."""
    created: float
    """Seconds since 1970."""

    @property
    def layout(self) -> Layout:
        """How its rows lie in shards."""
        return Layout(self.images, len(self.views), self.block)


@dataclass(frozen=True)
class Damage:
    """A file of a bank that is not as it was written."""

    file: Path
    expected: str
    actual: str

    def __str__(self) -> str:
        return f"{self.file.name}: expected {self.expected}, found {self.actual}"


# Opening ----------------------------------------------------------------------------------------


def read_card(folder: Path) -> Card | None:
    """The card, or None where there is none that this version can read."""
    try:
        card = Card(**json.loads((folder / CARD).read_text(encoding="utf-8")))
        whole = len(card.shards) == len(card.sizes) == card.layout.shards and card.format == FORMAT
    except (OSError, ValueError, TypeError, ZeroDivisionError):
        return None
    return card if whole else None


def read_rows(folder: Path) -> NDArray[np.int64]:
    """The image of each row `[n]`."""
    return np.load(folder / ROWS)


def find_damage(
    folder: Path,
    card: Card,
    budget: float = float("inf"),
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[Damage]:
    """What is missing, of another size, or of another checksum. tell(bytes read, of how many).

    Sizes and rows are always looked at. Shards are read whole, in an order drawn anew at every call,
    until `budget` bytes are read: of a large bank, each opening checks another part.
    """
    found = _other_sizes(folder, card)
    with suppress(OSError):
        actual = _crc32_of(folder / ROWS)
        if actual != card.rows_crc32:
            found.append(Damage(folder / ROWS, f"CRC-32 {card.rows_crc32}", actual))
    known, spent = {damage.file.name for damage in found}, 0
    for index in random.sample(range(len(card.shards)), len(card.shards)):
        if spent >= budget:
            break
        if card.shards[index] not in known:
            spent += card.sizes[index]
            found += check_shard(folder / card.shards[index])
            tell(spent, sum(card.sizes))
    return sorted(found, key=lambda damage: damage.file)


def _other_sizes(folder: Path, card: Card) -> list[Damage]:
    expected = dict(zip(card.shards, card.sizes, strict=True)) | {ROWS: 128 + 8 * card.images}
    sizes = [size_of(folder / name) for name in expected]
    return [
        Damage(folder / name, f"{size} bytes", "no such file" if found is None else f"{found} bytes")
        for (name, size), found in zip(expected.items(), sizes, strict=True)
        if found != size
    ]


def size_of(path: Path) -> int | None:
    """Bytes of a file; None where there is none: marks and locks of builders come and go."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def check_shard(path: Path) -> list[Damage]:
    """Compare a shard's bytes with the checksum in its name."""
    expected, actual = path.stem.partition("-")[2], _crc32_of(path)
    return [] if actual == expected else [Damage(path, f"CRC-32 {expected}", actual)]


def set_aside(damages: list[Damage]) -> None:
    """Take damaged files away, so that whoever comes next finds them missing and makes them again."""
    for damage in damages:
        with suppress(OSError):
            damage.file.replace(damage.file.with_suffix(".damaged"))


def touch(folder: Path) -> None:
    """Remember that the bank was used; not where the cache may only be read."""
    with suppress(OSError):
        os.utime(folder / CARD)


# Building ---------------------------------------------------------------------------------------


@contextmanager
def building(folder: Path) -> Iterator[None]:
    """While a process is in here nobody removes the bank; any number may be."""
    mark = folder / f".{uuid.uuid4().hex}{MARK}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            folder.mkdir(exist_ok=True)
            lock = FileLock(mark)
            lock.acquire()
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; COMKD_CACHE moves the cache") from None
    try:
        yield
    finally:
        lock.release()
        mark.unlink(missing_ok=True)


def is_being_built(folder: Path) -> bool:
    """Whether a living process is in `building`."""
    return any(_is_held(mark) for mark in folder.glob(f".*{MARK}"))


def _is_held(path: Path) -> bool:
    try:
        with FileLock(path, blocking=False):
            return False
    except Timeout:
        return True


def shards_there(folder: Path) -> dict[int, Path]:
    """Finished shards by number."""
    return {int(path.name[:5]): path for path in sorted(folder.glob("[0-9]*-*.npy"))}


def fill(
    folder: Path, layout: Layout, rows: NDArray[np.int64], make: Callable[[int], NDArray[np.float16]]
) -> int:
    """Make what is missing, beside others who may do the same; ends when all is there.

    make(shard) -> `[V, m, D]`. Returns how many shards this process made. UserError for a full disk.
    """
    content = _npy(rows)
    with FileLock(f"{folder}.lock"):  # all begin here at once
        if not (folder / ROWS).exists() or (folder / ROWS).read_bytes() != content:
            _write(folder / ROWS, content)
    for shard, path in shards_there(folder).items():
        if _shape(path)[:2] != (layout.views, len(layout.part(shard))):
            path.unlink()
    made = 0
    while missing := sorted(set(range(layout.shards)) - shards_there(folder).keys()):
        now = sum(_claim(folder, shard, make) for shard in missing)
        made += now
        if not now:
            time.sleep(POLL)
    return made


def _claim(folder: Path, shard: int, make: Callable[[int], NDArray[np.float16]]) -> bool:
    """Make one shard unless another process does, or did meanwhile."""
    try:
        with FileLock(folder / f".{shard:05}.lock", blocking=False):
            if shard in shards_there(folder):
                return False
            for leftover in folder.glob(f".{shard:05}-*"):  # of a process that was killed
                leftover.unlink()
            content = _npy(make(shard))
            _write(folder / f"{shard:05}-{_crc32(content)}.npy", content)
            return True
    except Timeout:
        return False


def check_room(folder: Path, layout: Layout, width: int) -> None:
    """UserError where what is missing of a bank does not fit on the disk."""
    there = shards_there(folder)
    missing = sum(len(layout.part(shard)) for shard in range(layout.shards) if shard not in there)
    need, free = 2 * missing * layout.views * width, shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{folder.parent}: the bank needs {need:,} bytes, {free:,} are free; make room, lower"
            " data.views, or set COMKD_CACHE"
        )


def end(folder: Path, layout: Layout, views: list[int], of: dict[str, Any], seconds: float) -> None:
    """Write the card unless another builder did, and remove what is no part of the bank; after `fill`.

    Nothing where a reader has set a shard aside since: whoever opens the bank next misses it.
    """
    with FileLock(f"{folder}.lock"):
        there = shards_there(folder)
        if len(there) < layout.shards:
            return
        paths = [there[shard] for shard in range(layout.shards)]
        names, before = [path.name for path in paths], read_card(folder)
        if before is None or before.shards != names:
            card = Card(
                format=FORMAT,
                of=of,
                views=views,
                images=layout.images,
                block=layout.block,
                width=_shape(paths[0])[2],
                shards=names,
                sizes=[path.stat().st_size for path in paths],
                rows_crc32=_crc32_of(folder / ROWS),
                seconds_per_image=seconds,
                created=time.time(),
            )
            _write(folder / CARD, json.dumps(asdict(card), indent=1).encode())
        for path in folder.iterdir():
            if path.name not in (CARD, ROWS, *names) and not (path.suffix == MARK and _is_held(path)):
                path.unlink(missing_ok=True)


def forget(folder: Path) -> None:
    """Remove card and shards, so that all is made again."""
    for path in (folder / CARD, *shards_there(folder).values()):
        path.unlink(missing_ok=True)


# Bytes ------------------------------------------------------------------------------------------


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    """A full disk is an error that a person can read; what was begun is removed. UserError for it."""
    try:
        write_atomic(path, content)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"{path.parent}: {error.strerror} ({len(content):,} bytes to write, {free:,} are free); make"
            " room or set COMKD_CACHE"
        ) from None


def _shape(path: Path) -> tuple[int, ...]:
    """Shape of a shard; () for a file that is cut off or no array."""
    try:
        shape: tuple[int, ...] = np.load(path, mmap_mode="r").shape
    except (OSError, ValueError, EOFError):
        return ()
    return shape


def _crc32(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"


def _crc32_of(path: Path) -> str:
    """CRC-32 of a file, through one small buffer: fresh memory for a whole shard costs as much again."""
    value, buffer = 0, memoryview(bytearray(1 << 20))
    with path.open("rb") as file:
        while count := file.readinto(buffer):
            value = zlib.crc32(buffer[:count], value)
    return f"{value:08x}"
