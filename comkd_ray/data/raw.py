"""The downloads behind CoOp's split files, for a split of our own where the published one is missing.

Class names and label order follow CoOp (PAPER 6.18); which image falls into which part does not, so
numbers from such a split compare with no published ones (6.17). Nothing is written.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from comkd_ray.data import folders, splits
from comkd_ray.data.layouts import Listing, listing_of
from comkd_ray.data.splits import PARTS, TEST, Entry
from comkd_ray.errors import UserError


@dataclass(frozen=True, slots=True)
class Raw:
    """What a download says: images without an official part, or its training and its test images."""

    images: list[Entry]
    test: list[Entry]
    """Official test images; empty where there is no official split."""
    file: Path
    """What an error about labels or images names."""


Reader = Callable[[Path], Raw]
"""Called with the root of the data set; paths are those that its split file would hold."""


def own_split(root: Path, home: str, read: Reader, seed: int) -> Listing:
    """A seeded split: 50/20/30 of each class, or 80/20 of the official training images (6.17).

    home: folder inside `root` that the paths are relative to.
    """
    raw = read(root)
    splits.check_once(raw.file, {"the images": raw.images, "the test images": raw.test})
    classes = splits.class_names(raw.file, [*raw.images, *raw.test])
    labels = np.array([label for _, label, _ in raw.images], dtype=np.int64)
    fractions = (0.8, 0.2) if raw.test else (0.5, 0.2, 0.3)
    parts = splits.split_by_class(labels, seed, fractions, classes).tolist()
    listed: dict[str, list[Entry]] = {part: [] for part in PARTS}
    for entry, part in zip(raw.images, parts, strict=True):
        listed[PARTS[part]].append(entry)
    listed[PARTS[TEST]] += raw.test
    how = "80/20 of the official training images" if raw.test else "50/20/30 of every class"
    split = f"a split of our own, {how} (split_seed {seed}); it does not compare with published numbers"
    return listing_of(root / home, listed, classes, split, raw.file)


# Readers ----------------------------------------------------------------------------------------


def class_folders(
    images: str, dropped: Iterable[str] = (), renamed: Mapping[str, str] | None = None
) -> Reader:
    """A reader of `<images>/<class>/*`; labels follow the sorted names of the folders that are kept."""
    left_out, new = frozenset(dropped), renamed or {}

    def read(root: Path) -> Raw:
        names = [name for name in folders.subfolders(root / images) if name not in left_out]
        paths, labels = folders.scan(root / images, names)
        named = [new.get(name, name) for name in names]
        entries = [(path, label, named[label]) for path, label in zip(paths, labels.tolist(), strict=True)]
        return Raw(entries, [], root / images)

    return read


def pets(root: Path) -> Raw:
    """Oxford Pets: lines "<image> <class id> <species> <breed id>"; the name is the image's, lower case."""

    def entries(file: Path) -> list[Entry]:
        found = []
        for place, line in splits.read_lines(file):
            match = re.fullmatch(r"(\S+)_\d+ (\d+) \d+ \d+", line)
            if match is None:
                raise UserError(f"{place}: must be an image and three numbers, not {line[:80]!r}")
            image = splits.inside(line.split()[0] + ".jpg", place)
            found.append((image, int(match[2]) - 1, match[1].lower()))
        return found

    lists = root / "annotations"
    return Raw(entries(lists / "trainval.txt"), entries(lists / "test.txt"), lists)


def sun397(root: Path) -> Raw:
    """SUN397: lines "/<letter>/<class>[/<kind>]/<image>"; names are the parts of the class, reversed."""
    file = root / "ClassName.txt"
    known = {line.strip("/"): label for label, (_, line) in enumerate(splits.read_lines(file))}

    def entries(file: Path) -> list[Entry]:
        found = []
        for place, line in splits.read_lines(file):
            path = splits.inside(line.lstrip("/"), place)
            folder = posixpath.dirname(path)
            if folder not in known:
                raise UserError(f"{place}: /{folder} is not in ClassName.txt; fetch both again")
            found.append((path, known[folder], " ".join(reversed(folder.split("/")[1:]))))
        return found

    return Raw(entries(root / "Training_01.txt"), entries(root / "Testing_01.txt"), file)


def ucf101(root: Path) -> Raw:
    """UCF101: lines "<Action>/<video>.avi[ <label>]"; the middle frame lies at <Act_Ion>/<video>.jpg."""
    lists = root / "ucfTrainTestlist"
    known: dict[str, int] = {}
    for place, line in splits.read_lines(lists / "classInd.txt"):
        match = re.fullmatch(r"(\d+) (\w+)", line)
        if match is None:
            raise UserError(f"{place}: must be a number and an action, not {line[:80]!r}")
        known[match[2]] = int(match[1]) - 1

    def entries(file: Path) -> list[Entry]:
        found = []
        for place, line in splits.read_lines(file):
            action, _, video = line.split()[0].partition("/")
            if action not in known or not video.endswith(".avi"):
                raise UserError(f"{place}: must be <action of classInd.txt>/<video>.avi, not {line[:80]!r}")
            name = "_".join(re.findall("[A-Z][^A-Z]*", action))
            path = splits.inside(f"{name}/{video.removesuffix('.avi')}.jpg", place)
            found.append((path, known[action], name))
        return found

    return Raw(entries(lists / "trainlist01.txt"), entries(lists / "testlist01.txt"), lists)


def cars(root: Path) -> Raw:
    """Stanford Cars: annotations in MATLAB files; the year moves to the front of a name."""
    meta = root / "devkit" / "cars_meta.mat"
    names = [str(name) for name in np.atleast_1d(_matlab(meta, "class_names"))]

    def entries(folder: str, file: Path) -> list[Entry]:
        try:
            rows = [
                (int(row["class"]) - 1, row["fname"]) for row in np.atleast_1d(_matlab(file, "annotations"))
            ]
        except (IndexError, TypeError, ValueError, OverflowError):
            raise UserError(
                f"{file}: 'annotations' must hold 'class' and 'fname' of every image; fetch it again"
            ) from None
        found = []
        for label, image in rows:
            if not 0 <= label < len(names):
                raise UserError(f"{file}: class {label + 1} is not in {meta}; fetch both again")
            model, _, year = names[label].rpartition(" ")
            found.append((splits.inside(f"{folder}/{image}", str(file)), label, f"{year} {model}"))
        return found

    train = entries("cars_train", root / "devkit" / "cars_train_annos.mat")
    return Raw(train, entries("cars_test", root / "cars_test_annos_withlabels.mat"), meta)


def flowers(root: Path) -> Raw:
    """Oxford Flowers: labels by number of image in a MATLAB file, names in cat_to_name.json."""
    file = root / "cat_to_name.json"
    text = " ".join(line for _, line in splits.read_lines(file))
    try:
        names = {int(number) - 1: str(name) for number, name in json.loads(text).items()}
    except (ValueError, AttributeError):
        raise UserError(f"{file}: must be a JSON object of number and name; fetch it again") from None
    listed = root / "imagelabels.mat"
    try:
        labels = [int(number) - 1 for number in np.atleast_1d(_matlab(listed, "labels")).tolist()]
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{listed}: 'labels' must be one row of class numbers; fetch it again") from None
    entries = []
    for i, label in enumerate(labels, 1):
        if label not in names:
            raise UserError(f"{file}: no name for class {label + 1}; fetch it again")
        entries.append((f"image_{i:05}.jpg", label, names[label]))
    return Raw(entries, [], listed)


def _matlab(file: Path, name: str) -> Any:
    """A variable of a MATLAB file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not file.is_file():
        raise UserError(f"{file}: no such file; {splits.SOURCES} says where to get it")
    try:
        return loadmat(file, squeeze_me=True)[name]
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError, MatReadError) as error:
        raise UserError(f"{file}: no MATLAB file with '{name}' ({error}); fetch it again") from None
