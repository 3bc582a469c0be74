"""Looking after the banks of a cache: list them, read them whole, remove what is not needed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from comkd_ray import bank_store
from comkd_ray.bank_store import CARD, Damage
from comkd_ray.errors import UserError

DAY = 24 * 3600


@dataclass(frozen=True)
class Entry:
    """One bank of the cache, whole or not."""

    key: str
    state: str
    """whole; damaged: shards are missing and will be made again; building: a process works on it;
    unfinished: its build was killed, or it is of another version."""
    of: dict[str, Any]
    """What it is of; empty where there is no card."""
    images: int | None
    views: int | None
    width: int | None
    shards: int
    bytes: int
    created: float | None
    used: float
    """When it was last opened, or for one without a card, written; seconds since 1970."""


def entries(cache: Path) -> list[Entry]:
    """Every bank of the cache, the last used first."""
    found = []
    for folder in (cache / "banks").glob("*"):
        if folder.is_dir():
            with suppress(FileNotFoundError):  # somebody removes the bank just now
                found.append(_entry(folder))
    return sorted(found, key=lambda entry: -entry.used)


def _entry(folder: Path) -> Entry:
    card, sizes = bank_store.read_card(folder), [bank_store.size_of(path) for path in folder.iterdir()]
    shards, built = len(bank_store.shards_there(folder)), bank_store.is_being_built(folder)
    size = sum(filter(None, sizes))
    if card is None:
        state = "building" if built else "unfinished"
        used = folder.stat().st_mtime  # of the last file that was made, renamed or removed in it
        return Entry(folder.name, state, {}, None, None, None, shards, size, None, used)
    state = "whole" if shards == len(card.shards) else "building" if built else "damaged"
    used = (folder / CARD).stat().st_mtime
    counts = card.images, len(card.views), card.width, shards, size
    return Entry(folder.name, state, card.of, *counts, card.created, used)


def chosen(cache: Path, keys: Sequence[str]) -> list[Entry]:
    """The banks whose keys begin so, or all. UserError for a beginning that no bank, or several, have."""
    known = entries(cache)
    if not keys:
        return known
    found = []
    for key in keys:
        fits = [entry for entry in known if entry.key.startswith(key)]
        if len(fits) != 1:
            raise UserError(
                f"bank {key}: {len(fits)} of the {len(known)} banks in {cache} have a key that begins so;"
                " see comkd-ray bank ls"
            )
        found += fits
    return found


def verify(cache: Path, entry: Entry, progress: Callable[[str, int, int], None]) -> list[Damage]:
    """Read a whole bank, or what there is of one, and compare every shard's checksum.

    What is damaged is set aside: the next study that needs the bank makes those shards again.
    """
    folder = cache / "banks" / entry.key
    card = bank_store.read_card(folder)
    if card is None:
        there = bank_store.shards_there(folder).values()
        damages = [damage for path in there for damage in bank_store.check_shard(path)]
    else:
        damages = bank_store.find_damage(
            folder, card, tell=lambda done, total: progress(f"verify {entry.key}", done, total)
        )
    bank_store.set_aside(damages)
    return damages


def collect(cache: Path, keep_days: float, dry_run: bool) -> list[Entry]:
    """Remove unfinished banks and those not opened for so many days; returns what was, or would be, removed.

    A bank that a process is building stays.
    """
    oldest = time.time() - keep_days * DAY
    old = [entry for entry in entries(cache) if entry.state == "unfinished" or entry.used < oldest]
    return [entry for entry in old if _remove(cache / "banks" / entry.key, dry_run)]


def _remove(folder: Path, dry_run: bool) -> bool:
    """Remove a bank unless somebody builds it; whether it is gone, or would be."""
    with FileLock(f"{folder}.lock"):
        if bank_store.is_being_built(folder):
            return False
        if not dry_run:
            (folder / CARD).unlink(missing_ok=True)  # first: a removal that is cut off leaves no bank
            shutil.rmtree(folder)
    return True
