"""The bank: features of a frozen tower for every (image, view), computed once and memory-mapped.

A bank is keyed by everything that its numbers depend on and lies in shards (`bank_store.py`), each a
block of images under all views, so that whoever decodes an image does it once. It is made where it is
missing, also in part, by any number of processes at once. Arms map it copy-on-write; none of them ever
runs the teacher.

What is checked: every opening looks at all names, sizes and rows, and reads at most a few shards whole
(all, of a small bank). `build_bank`, where the tower is at hand, also asks it for a few rows again.
`comkd-ray bank verify` reads everything.

Shapes: V views, n images, m images of a shard, D width.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comkd_ray import bank_store
from comkd_ray.bank_store import BATCH, Card, Layout
from comkd_ray.data.pixels import Pixels, Progress
from comkd_ray.data.views import center_boxes, render, view_boxes
from comkd_ray.errors import UserError
from comkd_ray.study_file import digest

CENTER = 0
"""View of evaluation: resize and centre crop. Seeded views count from 1."""
ATTEMPTS = 3  # times a bank that is damaged is made again before the disk is blamed
SAMPLE_VIEWS, SAMPLE_IMAGES = 2, 4  # asked again where a bank is found
TOLERANCE = {"cpu": 0.005}
"""Share of a row's largest feature by which it may differ when asked again: what float16 takes."""
BFLOAT16 = 0.05  # the same where the tower computes in bfloat16

Images = NDArray[np.int64]
Encode = Callable[[Images, int], Tensor]
"""(images, view) -> features `[len(images), D]`, not normalised."""
Expect = Callable[[Iterable[Images]], None]
"""Is told which images are encoded next, in this order: `Pixels.expect`."""


@dataclass(frozen=True)
class Bank:
    """Features of some images under some views."""

    folder: Path
    card: Card
    rows: Images
    """Image of each row, as an index into the pixel store, ascending."""
    maps: dict[int, NDArray[np.float16]] = field(default_factory=dict, repr=False, compare=False)
    """Shards that were asked for, `[V, m, D]` float16, mapped copy-on-write."""

    @property
    def key(self) -> str:
        """Name of the bank: hash of what its numbers depend on."""
        return self.folder.name

    @property
    def views(self) -> int:
        """V."""
        return len(self.card.views)

    @property
    def width(self) -> int:
        """D."""
        return self.card.width

    @property
    def seconds_per_image(self) -> float:
        """What one forward cost when the bank was made, batch included."""
        return self.card.seconds_per_image

    def touch(self) -> None:
        """Remember that the bank is in use; `comkd-ray bank gc` goes by that."""
        bank_store.touch(self.folder)

    def take(self, view: int, images: Images, device: torch.device) -> Tensor:
        """Features `[len(images), D]` of one view in float32; an image not in the bank is an error.

        view: its place among the views of the bank, from 0.
        """
        places = np.searchsorted(self.rows, images)
        assert (self.rows[places] == images).all(), "image is not in the bank"
        if len(self.card.shards) == 1:
            found = self.shard(0)[view][places]
        else:
            found = self._gather(view, *np.divmod(places, self.card.block))
        return _sent(found, device).float()

    def _gather(self, view: int, shards: Images, inside: Images) -> NDArray[np.float16]:
        """Row by row: the same cost for two shards and for thousands."""
        parts = {shard: self.shard(shard)[view] for shard in set(shards.tolist())}
        found = np.empty((len(shards), self.width), np.float16)
        for row, (shard, place) in enumerate(zip(shards.tolist(), inside.tolist(), strict=True)):
            found[row] = parts[shard][place]
        return found

    def shard(self, number: int) -> NDArray[np.float16]:
        """One shard `[V, m, D]`. Once mapped it keeps no file open, so thousands may be."""
        if number not in self.maps:
            shape = self.views, len(self.card.layout.part(number)), self.width
            path, whole = self.folder / self.card.shards[number], self.card.sizes[number] // 2
            try:
                flat = torch.from_file(str(path), shared=False, size=whole, dtype=torch.float16)
            except RuntimeError as error:
                if "allocate memory" in str(error):
                    raise
                raise OSError(f"{path}: {error}") from None  # no fault of the arm that asks
            self.maps[number] = flat[whole - math.prod(shape) :].view(shape).numpy()
        return self.maps[number]


def pixels_of(store: Pixels, images: NDArray[np.int64], view: int, size: int, device: torch.device) -> Tensor:
    """Pixels in 0..1 `[len(images), 3, size, size]` of one view: the same everywhere, for everyone."""
    raw, sizes = _sent(store.take(images), device), store.sizes[images]
    if view == CENTER:
        return render(raw, _sent(center_boxes(sizes), device), None, size)
    boxes, flips = view_boxes(store.keys[images], sizes, view)
    return render(raw, _sent(boxes, device), _sent(flips, device), size)


def _sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array on the device. A GPU gets it from pinned memory, and nobody waits for what it does before."""
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def build_bank(
    identity: Sequence[object],
    encode: Encode,
    rows: Images,
    views: Sequence[int],
    cache: Path,
    progress: Progress,
    of: dict[str, Any] | None = None,
    expect: Expect = lambda batches: None,
) -> Bank:
    """The bank of `identity` (tower, data, size), made with `encode` as far as it is not there yet.

    Other processes may build it at the same time. Damage that is found is mended, shard by shard.
    of: what people are told about it, no part of the key. UserError if a feature is not finite, or
    the disk is full.
    """
    key = digest(bank_store.FORMAT, *identity, list(views), zlib.crc32(np.ascontiguousarray(rows).tobytes()))
    build = _Build(cache / "banks" / key, encode, rows, list(views), of or {}, progress, expect)
    with bank_store.building(build.folder):
        for _ in range(ATTEMPTS):
            made = build.complete()
            try:
                bank = read_bank(cache, key)
            except UserError as error:  # damaged: set aside by now
                build.say(str(error))
                continue
            if made or not build.is_stale(bank):
                return bank
    raise UserError(f"{build.folder}: damaged again each time that it was made; check the disk")


def read_bank(cache: Path, key: str) -> Bank:
    """Open a bank that is there. UserError where it is missing or damaged; what is, is set aside."""
    folder = cache / "banks" / key
    card, problem = bank_store.read_card(folder), "no card"
    if card is not None:
        damages = bank_store.find_damage(folder, card, bank_store.CHECKED)
        if not damages:
            bank_store.touch(folder)
            return Bank(folder, card, bank_store.read_rows(folder))
        bank_store.set_aside(damages)
        problem = str(damages[0])
    raise UserError(f"{folder}: missing or damaged ({problem}); the same command makes it again")


@dataclass
class _Build:
    """The making of one bank in this process."""

    folder: Path
    encode: Encode
    rows: Images
    views: list[int]
    of: dict[str, Any]
    progress: Progress
    expect: Expect
    seconds: float = 0.0
    forwards: int = 0

    @property
    def layout(self) -> Layout:
        return Layout.of(len(self.rows), len(self.views))

    def say(self, line: str) -> None:
        self.progress(line, 1, 1)

    def complete(self) -> bool:
        """Make what is missing, and the card; whether there was anything to make."""
        card = bank_store.read_card(self.folder)
        if card is not None and all(
            (self.folder / name).exists() for name in (*card.shards, bank_store.ROWS)
        ):
            return False
        before = None if card is None else card.seconds_per_image
        bank_store.fill(self.folder, self.layout, self.rows, self.make)
        seconds = before or self.rate()
        bank_store.end(self.folder, self.layout, self.views, self.of, seconds)
        return True

    def rate(self) -> float:
        """Seconds a forward; where others made every shard, one batch is asked for to know."""
        if not self.forwards:
            self.ask(range(min(BATCH, len(self.rows))), self.views[0])
        return self.seconds / self.forwards

    def make(self, shard: int) -> NDArray[np.float16]:
        """Features `[V, m, D]` of one shard."""
        part, features = self.layout.part(shard), np.empty(0, np.float16)
        there = sum(len(self.layout.part(other)) for other in bank_store.shards_there(self.folder))
        done, total = there * len(self.views), len(self.rows) * len(self.views)
        batches = [range(k, min(k + BATCH, part.stop)) for k in range(part.start, part.stop, BATCH)]
        self.expect(self.rows[places.start : places.stop] for places in batches)
        for places in batches:
            for slot, view in enumerate(self.views):  # all views of a batch in turn: it is decoded once
                said = self.ask(places, view)
                if not features.size:
                    bank_store.check_room(self.folder, self.layout, said.shape[1])
                    features = np.empty((len(self.views), len(part), said.shape[1]), np.float16)
                features[slot, places.start - part.start : places.stop - part.start] = said.numpy()
                done += len(places)
                self.progress("bank", done, total)
        return features

    def ask(self, places: range, view: int) -> Tensor:
        """What the tower says of a batch, in float16 on the CPU. UserError if it is not finite."""
        images, start = self.rows[places.start : places.stop], time.perf_counter()
        said = self.encode(images, view).half()
        if not bool(said.isfinite().all()):
            where = f"image {images[0]}, view {view}"
            raise UserError(f"bank: the tower gives NaN or infinity for {where} (in float16)")
        said = said.cpu()
        self.seconds += time.perf_counter() - start
        self.forwards += len(images)
        return said

    def is_stale(self, bank: Bank) -> bool:
        """Ask the tower again for a few rows, and set aside what it would not say again.

        That is a damaged shard alone, or the whole bank where files are as they were written.
        """
        wrong = self.disagreeing(bank)
        damages = [d for n in wrong for d in bank_store.check_shard(self.folder / bank.card.shards[n])]
        if damages:
            bank_store.set_aside(damages)
            self.say(f"bank {bank.key}: {damages[0]}; made again")
        elif wrong:
            bank_store.forget(self.folder)
            self.say(f"bank {bank.key}: the tower no longer says what was stored; made again")
        return bool(wrong)

    def disagreeing(self, bank: Bank) -> list[int]:
        """Shards with a row, of a sample that hangs on the key, that the tower would not say again."""
        stream, cpu = np.random.default_rng(int(bank.key, 16)), torch.device("cpu")
        wrong: set[int] = set()
        for slot in stream.permutation(len(self.views))[:SAMPLE_VIEWS]:
            places = np.sort(stream.permutation(len(self.rows))[:SAMPLE_IMAGES])
            said = self.encode(self.rows[places], self.views[slot])
            kept = bank.take(int(slot), self.rows[places], cpu)
            allowed = TOLERANCE.get(said.device.type, BFLOAT16) * kept.abs().amax(1)
            off = ~((said.float().cpu() - kept).abs().amax(1) <= allowed)  # also where one is NaN
            wrong |= {int(place) // bank.card.block for place in places[off.numpy()]}
        return sorted(wrong)
