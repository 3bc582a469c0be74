"""Which images teach, choose and test: split files, and draws that every machine repeats.

The draws sort images by a hash instead of asking a random generator, whose stream may change with
the version of a library.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from comkd_ray.errors import UserError

PARTS = ("train", "val", "test")
"""Their positions are the numbers of the parts."""
TRAIN, VAL, TEST = range(3)
SOURCES = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
"""Where every file of a data set is to be had, and where it belongs."""
HELD_OUT = 50
"""Images a class that become validation where a large data set has none (PAPER 6.20)."""
LONGEST_NAME = 255
"""Bytes of a file's or folder's name on common file systems."""

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
    listed: dict[str, list[Entry]] = {}
    for part in PARTS:
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not rows:
            raise UserError(f"{file}: '{part}' must be a list of images; fetch it again")
        listed[part] = [_entry(row, f"{file}: {part}[{i}]") for i, row in enumerate(rows)]
    check_once(file, listed)
    return listed


def check_once(file: Path, listed: Mapping[str, Iterable[Entry]]) -> None:
    """Every image is listed in one part, and there once."""
    seen: dict[str, str] = {}
    for part, entries in listed.items():
        for path, _, _ in entries:
            if other := seen.get(path):
                raise UserError(f"{file}: {path} is in {other} and again in {part}; keep it in one")
            seen[path] = part


def _entry(row: object, place: str) -> Entry:
    match row:
        case [str(path), int(label), str(name)] if path and name and not isinstance(label, bool):
            pass
        case _:
            raise UserError(f"{place} must be [image path, label, class name], not {str(row)[:80]}")
    _check_text(name, place)
    return inside(path, place), label, name


def inside(path: str, place: str) -> str:
    """A listed path in its plain form; `place` says where it stands. UserError if it leads out."""
    if posixpath.isabs(path) or ".." in path.split("/") or "\\" in path or "\0" in path:
        raise UserError(f"{place}: {path!r} leaves the image folder; paths must stay inside it")
    _check_text(path, place)
    if max(len(name.encode()) for name in path.split("/")) > LONGEST_NAME:
        raise UserError(
            f"{place}: {path[:40]!r}...: no file system takes a name of over {LONGEST_NAME} bytes; correct it"
        )
    return posixpath.normpath(path)


def _check_text(text: str, place: str) -> None:
    """JSON can write half of a pair of surrogates, which no file and no screen can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{place}: {ascii(text)[:80]} is no valid Unicode; correct it") from None


def read_lines(file: Path) -> list[tuple[str, str]]:
    """(place for an error, line) of every line of a text file that is not blank."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; {SOURCES} says where to get it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as text ({error}); fetch it again") from None
    return [(f"{file}: line {i}", line.strip()) for i, line in enumerate(lines, 1) if line.strip()]


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
    key: str = "data.shots",
) -> NDArray[np.int64]:
    """Indices, ascending, of `shots` candidates of every class that occurs in them (PAPER 5.17).

    A smaller number of shots is a subset of a larger one with the same seed. key: where a person
    wrote the number, for the error.
    """
    drawn = []
    for label, places in _members(labels[candidates]):
        members = candidates[places]
        if len(members) < shots:
            raise UserError(
                f"class '{classes[label]}' has {len(members)} training images, {key} asks for "
                f"{shots}: lower {key} or add images"
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
    for label, places in _members(labels):
        members = _shuffled(places, seed, label)
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


def held_out(labels: NDArray[np.int64], seed: int, classes: Sequence[str]) -> NDArray[np.bool_]:
    """Which training images become validation: `HELD_OUT` a class, at most a fifth of it, one at least."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label, places in _members(labels):
        if len(places) < 2:
            raise UserError(f"class '{classes[label]}' has 1 training image, 2 are needed to hold one out")
        chosen[_shuffled(places, seed, label)[: max(1, min(HELD_OUT, len(places) // 5))]] = True
    return chosen


def parts_of_test_only(labels: NDArray[np.int64], seed: int, classes: Sequence[str]) -> NDArray[np.int8]:
    """Train, val and test, 50/20/30 of every class, for a data set that was published as test images only.

    With it a student never trains on the images it is tested on; the test part is then 30 % of the published.
    """
    return split_by_class(labels, seed, (0.5, 0.2, 0.3), classes)


def _members(labels: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(label, its places in `labels`, ascending). One sort: a pass a class is slow on ImageNet."""
    order = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[order], return_index=True)
    pieces = np.split(order, starts[1:])  # one, and empty, where there are no labels
    yield from zip(found.tolist(), pieces, strict=False)


def _shuffled(members: NDArray[np.int64], seed: int, label: int) -> NDArray[np.int64]:
    """The images of a class in seeded order. It hangs on their number, not on other classes."""
    places = mix64(np.arange(len(members)))
    return np.sort(members)[np.argsort(mix64(places ^ mix64(mix64(label) ^ mix64(seed) * _GOLDEN)))]
