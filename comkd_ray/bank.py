"""The bank: features of a frozen tower for every (image, view), computed once and memory-mapped.

    $COMKD_CACHE/banks/<key>/features.npy   float16 [V, n, D], not normalised
    $COMKD_CACHE/banks/<key>/rows.npy       int64 [n], the image of each row
    $COMKD_CACHE/banks/<key>/card.json      what it holds, its checksum, and the rate it was made at

A bank is keyed by everything that its numbers depend on, built under a lock, renamed when whole and
checked when opened. Arms map it copy-on-write; none of them ever runs the teacher.

Shapes: V views, n images, D width.
"""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from comkd_ray.data.pixels import PixelStore, Progress
from comkd_ray.data.views import center_boxes, render, view_boxes
from comkd_ray.errors import UserError
from comkd_ray.study_file import digest

CENTER = 0
"""View of evaluation: resize and centre crop. Seeded views count from 1."""
BATCH = 64
FORMAT = 1


@dataclass(frozen=True)
class Bank:
    """Features of some images under some views."""

    features: NDArray[np.float16]
    """`[V, n, D]`, memory-mapped copy-on-write; row k belongs to `rows[k]`."""
    rows: NDArray[np.int64]
    """Image of each row, as an index into the pixel store, ascending."""
    key: str
    seconds_per_image: float
    """What one forward cost when the bank was made, batch included."""

    def take(self, view: int, images: NDArray[np.int64], device: torch.device) -> Tensor:
        """Features `[len(images), D]` of one view in float32; an image not in the bank is an error."""
        places = np.searchsorted(self.rows, images)
        assert (self.rows[places] == images).all(), "image is not in the bank"
        return torch.from_numpy(self.features[view][places]).to(device).float()


def pixels_of(
    store: PixelStore, images: NDArray[np.int64], view: int, size: int, device: torch.device
) -> Tensor:
    """Pixels in 0..1 `[len(images), 3, size, size]` of one view: the same everywhere, for everyone."""
    raw = torch.from_numpy(store.pixels[images]).to(device)
    if view == CENTER:
        return render(raw, torch.from_numpy(center_boxes(store.sizes[images])).to(device), None, size)
    boxes, flips = view_boxes(store.keys[images], store.sizes[images], view)
    return render(raw, torch.from_numpy(boxes).to(device), torch.from_numpy(flips).to(device), size)


def build_bank(
    identity: Sequence[object],
    encode: Callable[[NDArray[np.int64], int], Tensor],
    rows: NDArray[np.int64],
    views: Sequence[int],
    cache: Path,
    progress: Progress,
) -> Bank:
    """The bank of `identity` (tower, data, size), made with `encode` if it is not there yet.

    encode(images, view) -> features `[len(images), D]`. UserError if a feature is not finite.
    """
    key = digest(FORMAT, *identity, list(views), zlib.crc32(np.ascontiguousarray(rows).tobytes()))
    folder = cache / "banks" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if _read(folder) is None:
            _build(folder, encode, rows, views, progress)
    return read_bank(cache, key)


def read_bank(cache: Path, key: str) -> Bank:
    """Open a bank that is there. UserError where it is missing or damaged."""
    bank = _read(cache / "banks" / key)
    if bank is None:
        raise UserError(f"{cache}/banks/{key}: missing or damaged; the same command makes it again")
    return bank


def _build(
    folder: Path,
    encode: Callable[[NDArray[np.int64], int], Tensor],
    rows: NDArray[np.int64],
    views: Sequence[int],
    progress: Progress,
) -> None:
    unfinished = folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    total, done, start = len(rows) * len(views), 0, time.perf_counter()
    features: NDArray[np.float16] | None = None
    for slot, view in enumerate(views):
        for first in range(0, len(rows), BATCH):
            images = rows[first : first + BATCH]
            encoded = encode(images, view).half()
            if not bool(encoded.isfinite().all()):
                where = f"image {images[0]}, view {view}"
                raise UserError(f"bank: the tower gives NaN or infinity for {where} (in float16)")
            if features is None:
                shape = (len(views), len(rows), encoded.shape[1])
                features = _create(unfinished / "features.npy", shape)
            features[slot, first : first + len(images)] = encoded.cpu().numpy()
            done += len(images)
            progress("bank", done, total)
    assert features is not None
    features.flush()  # type: ignore[attr-defined]
    np.save(unfinished / "rows.npy", rows)
    card = {
        "shape": features.shape,
        "crc32": _checksum(features, rows),
        "seconds_per_image": (time.perf_counter() - start) / total,
    }
    (unfinished / "card.json").write_text(json.dumps(card), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def _create(path: Path, shape: tuple[int, int, int]) -> NDArray[np.float16]:
    need, free = 2 * int(np.prod(shape)), shutil.disk_usage(path.parent).free
    if need > free:
        raise UserError(f"{path.parent}: the bank needs {need:,} bytes, {free:,} are free; set COMKD_CACHE")
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)


def _read(folder: Path) -> Bank | None:
    """The bank in `folder`, or None where there is none, or a damaged one."""
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        features = np.load(folder / "features.npy", mmap_mode="c")
        rows = np.load(folder / "rows.npy")
        if list(features.shape) != card["shape"] or _checksum(features, rows) != card["crc32"]:
            return None
        return Bank(features, rows, folder.name, float(card["seconds_per_image"]))
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None


def _checksum(features: NDArray[np.float16], rows: NDArray[np.int64]) -> int:
    """CRC-32 of all bytes, view by view, so that memory holds one view at most."""
    value = zlib.crc32(np.ascontiguousarray(rows).tobytes())
    for view in features:
        value = zlib.crc32(np.ascontiguousarray(view).tobytes(), value)
    return value
