"""Which images teach, choose and test: split files, and draws that every machine repeats.

The draws sort images by a hash instead of asking a random generator, whose stream may change with
the version of a library.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from comkd_ray.errors import UserError

PARTS = ("train", "val", "test")
"""Their positions are the numbers of the parts."""

Entry = tuple[str, int, str]  # image path, label, class name

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix64(values: ArrayLike) -> NDArray[np.uint64]:
    """SplitMix64: spreads counters or keys over all 64 bits, each value on its own."""
    x = np.atleast_1d(np.asarray(values, dtype=np.uint64))
    x = x + _GOLDEN  # products and sums wrap around at 2^64, as the hash wants
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def read_split_file(file: Path) -> dict[str, list[Entry]]:
    """The three lists of a split file in CoOp's form (PAPER 6.16), each image in one place."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not readable as JSON ({error}); fetch it again") from None
    seen: dict[str, str] = {}
    listed: dict[str, list[Entry]] = {}
    for part in PARTS:
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not rows:
            raise UserError(f"{file}: '{part}' must be a list of images; fetch it again")
        listed[part] = [_entry(row, f"{file}: {part}[{i}]") for i, row in enumerate(rows)]
        for path, _, _ in listed[part]:
            if other := seen.get(path):
                raise UserError(f"{file}: {path} is in {other} and again in {part}; keep it in one")
            seen[path] = part
    return listed


def _entry(row: object, place: str) -> Entry:
    match row:
        case [str(path), int(label), str(name)] if path and name and not isinstance(label, bool):
            pass
        case _:
            raise UserError(f"{place} must be [image path, label, class name], not {str(row)[:80]}")
    if posixpath.isabs(path) or ".." in path.split("/") or "\\" in path or "\0" in path:
        raise UserError(f"{place}: {path!r} leaves the image folder; paths must stay inside it")
    return posixpath.normpath(path), label, name


def class_names(file: Path, entries: Iterable[Entry]) -> tuple[str, ...]:
    """Class names by label; labels are 0 ... N-1 without gap, and each has one name."""
    names: dict[int, str] = {}
    for path, label, name in entries:
        if names.setdefault(label, name) != name:
            raise UserError(
                f"{file}: label {label} is called '{names[label]}' and, at {path}, '{name}'; "
                "a label must have one name"
            )
    if gap := sorted(set(range(len(names))) - set(names)):
        raise UserError(f"{file}: no image has label {gap[0]}; labels must run from 0 without gap")
    return tuple(names[label] for label in range(len(names)))


def base_count(classes: int) -> int:
    """Number of base classes, ceil(N / 2); the other classes are novel (PAPER 5.11)."""
    return (classes + 1) // 2


def few_shot(
    labels: NDArray[np.int64],
    candidates: NDArray[np.int64],
    shots: int,
    seed: int,
    classes: Sequence[str],
) -> NDArray[np.int64]:
    """Indices, ascending, of `shots` candidates of every class that occurs in them (PAPER 5.17).

    A smaller number of shots is a subset of a larger one with the same seed.
    """
    drawn = []
    for label in np.unique(labels[candidates]):
        members = candidates[labels[candidates] == label]
        if len(members) < shots:
            raise UserError(
                f"class '{classes[label]}' has {len(members)} training images, data.shots asks for "
                f"{shots}: lower data.shots or add images"
            )
        drawn.append(_shuffled(members, seed, label)[:shots])
    return np.sort(np.concatenate(drawn)) if drawn else np.empty(0, dtype=np.int64)


def split_by_class(
    labels: NDArray[np.int64], seed: int, fractions: Sequence[float], classes: Sequence[str]
) -> NDArray[np.int8]:
    """Part 0, 1, ... of every image; each class is cut on its own, at `fractions` of its images.

    Every part with a fraction above 0 gets at least one image of each class; what rounding leaves
    goes to part 0.
    """
    parts = np.zeros(len(labels), dtype=np.int8)
    needed = sum(fraction > 0 for fraction in fractions)
    for label in np.unique(labels):
        members = _shuffled(np.flatnonzero(labels == label), seed, label)
        if len(members) < needed:
            raise UserError(
                f"class '{classes[label]}' has {len(members)} images, {needed} are needed to give "
                f"every part one: add images or remove the class"
            )
        start = 0
        for part, fraction in list(enumerate(fractions))[1:]:
            count = max(1, int(len(members) * fraction + 0.5)) if fraction > 0 else 0
            parts[members[start : start + count]] = part
            start += count
    return parts


def _shuffled(members: NDArray[np.int64], seed: int, label: int) -> NDArray[np.int64]:
    """The images of a class in seeded order. It hangs on their number, not on other classes."""
    places = mix64(np.arange(len(members)))
    return np.sort(members)[np.argsort(mix64(places ^ mix64(mix64(label) ^ mix64(seed) * _GOLDEN)))]
