"""The few ways in which data sets lie on disk. Each reads a root into one `Listing` and looks at no pixel.

class_folders   root/<class>/*, or root/{train,test[,val]}/<class>/*
split_file      CoOp's JSON (PAPER 6.16)
aircraft        variants.txt and images_variant_{train,val,test}.txt (6.7)
imagenet        images/{train,val}/<wnid>/* and classnames.txt (6.1, 6.19, 6.20)
wnid_folders    <wnid>/* and classnames.txt; test images only (6.13-6.15, 6.19)
index_folders   <index of the sorted wnid>/* and classnames.txt; test images only (6.12)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comkd_ray.data import folders, splits
from comkd_ray.data.folders import Progress
from comkd_ray.data.splits import PARTS, TEST, TRAIN, VAL, Entry
from comkd_ray.errors import UserError

CLASS_NAMES = "classnames.txt"
TEST_ONLY = "test images only, as published"


@dataclass(frozen=True, slots=True)
class Listing:
    """What a layout says; `paths`, `labels` and `parts` belong together."""

    root: Path
    """Folder that the paths are relative to."""
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    """[N]"""
    parts: NDArray[np.int8]
    """[N]"""
    classes: tuple[str, ...]
    """Names as prompts use them, by label."""
    split: str
    """One line for the report: where the parts come from."""
    listed_by: Path | None = None
    """File that names the images, some of which may be missing; None where they were found on disk."""
    has_wnids: bool = False
    """Classes are told apart by wnid: ImageNet's published names hold `missile` and `sunglasses` twice."""


def prompt_names(names: Iterable[str]) -> tuple[str, ...]:
    """Underscores become spaces (PAPER 6.18)."""
    return tuple(name.replace("_", " ") for name in names)


def listing_of(
    root: Path, listed: Mapping[str, Sequence[Entry]], classes: Sequence[str], split: str, file: Path
) -> Listing:
    """A listing of the entries of every part, which `file` names."""
    entries = [entry for part in PARTS for entry in listed[part]]
    return Listing(
        root=root,
        paths=tuple(path for path, _, _ in entries),
        labels=np.array([label for _, label, _ in entries], dtype=np.int64),
        parts=np.repeat(np.arange(3, dtype=np.int8), [len(listed[part]) for part in PARTS]),
        classes=prompt_names(classes),
        split=split,
        listed_by=file,
    )


# Folders ----------------------------------------------------------------------------------------


def class_folders(root: Path, seed: int, progress: Progress) -> Listing:
    """`root/<class>/*`, which is split, or `root/{train,test[,val]}/<class>/*`, which is taken as it is."""
    if (root / "train").is_dir() and folders.subfolders(root / "train"):
        return _part_folders(root, seed, progress)
    names = folders.subfolders(root)
    if not names:
        raise UserError(f"{root}: no class folders; expected root/<class>/<image>")
    paths, labels = folders.scan(root, names, progress)
    parts = splits.split_by_class(labels, seed, (0.5, 0.2, 0.3), names)
    split = f"seeded split of every class, 50/20/30 into train/val/test (split_seed {seed})"
    return Listing(root, paths, labels, parts, prompt_names(names), split)


def _part_folders(root: Path, seed: int, progress: Progress) -> Listing:
    found = folders.subfolders(root)
    if "test" not in found:
        raise UserError(f"{root}: has train/ but no test/; add test/, or move the classes up")
    if odd := sorted(set(found) - set(PARTS)):
        raise UserError(f"{root / odd[0]}: beside train, val and test no folder may stand; move it")
    names = folders.subfolders(root / "train")
    there = [part for part in PARTS if part in found]
    paths, labels, parts = _scan_parts(root, {part: PARTS.index(part) for part in there}, names, progress)
    split = "folders train, val and test"
    if "val" not in found:
        train = parts == TRAIN
        parts[train] = splits.split_by_class(labels[train], seed, (0.8, 0.2), names)
        split = f"folders train and test; val is a seeded 20% of train (split_seed {seed})"
    return Listing(root, paths, labels, parts, prompt_names(names), split)


def _scan_parts(
    root: Path, parts: Mapping[str, int], names: Sequence[str], progress: Progress
) -> tuple[tuple[str, ...], NDArray[np.int64], NDArray[np.int8]]:
    """Images of `root/<folder>/<class>/*` for every folder of a part: paths, labels and parts."""
    for folder in parts:
        _same_folders(root / folder, set(names), "train")
    places = [(folder, name) for folder in parts for name in names]
    paths, where = folders.scan(root, [f"{folder}/{name}" for folder, name in places], progress)
    codes = np.array(list(parts.values()), dtype=np.int8)
    return paths, where % len(names), codes[where // len(names)]


def _same_folders(folder: Path, known: set[str], by: str) -> None:
    """The class folders here must be the known ones."""
    found = set(folders.subfolders(folder))
    if extra := sorted(found - known):
        raise UserError(f"{folder / extra[0]}: class is not in {by}; add it or remove this")
    if absent := sorted(known - found):
        raise UserError(f"{folder / absent[0]}: no such folder; each class of {by} has one")


# Files that list images -------------------------------------------------------------------------


def split_file(root: Path, images: str, name: str) -> Listing:
    """A split file in CoOp's form, its paths relative to `root/images` (6.16)."""
    file = root / splits.inside(name, "data.split")
    listed = splits.read_split_file(file)
    classes = splits.class_names(file, (entry for part in PARTS for entry in listed[part]))
    return listing_of(root / images, listed, classes, f"split file {name}", file)


def aircraft(root: Path, images: str) -> Listing:
    """FGVC aircraft: lines "<7 digits> <variant>" in a file a part; labels are the lines of variants.txt."""
    variants = [line for _, line in splits.read_lines(root / "variants.txt")]
    known = {variant: label for label, variant in enumerate(variants)}
    listed: dict[str, list[Entry]] = {}
    for part in PARTS:
        listed[part] = []
        for place, line in splits.read_lines(root / f"images_variant_{part}.txt"):
            match = re.fullmatch(r"(\d{7}) +(.+)", line)
            if match is None:
                raise UserError(f"{place}: must be a number of 7 digits and a variant, not {line[:80]!r}")
            if match[2] not in known:
                raise UserError(f"{place}: variant {match[2]!r} is not in variants.txt; fetch both again")
            listed[part].append((f"{match[1]}.jpg", known[match[2]], match[2]))
    file = root / "images_variant_*.txt"
    splits.check_once(file, listed)
    return listing_of(root / images, listed, variants, "official lists images_variant_*.txt", file)


# ImageNet and what is tested beside it ----------------------------------------------------------


def read_class_names(file: Path) -> dict[str, str]:
    """wnid: name, sorted by wnid, of lines "wnid name"."""
    if not file.is_file():
        raise UserError(
            f"{file}: no such file; it names ImageNet's classes by wnid. CoOp links to it: "
            f"{splits.SOURCES}; and a copy belongs into the folder of each ImageNet variant"
        )
    names: dict[str, str] = {}
    for place, line in splits.read_lines(file):
        wnid, _, name = line.partition(" ")
        if not re.fullmatch(r"n\d{8}", wnid) or not name.strip():
            raise UserError(f"{place}: must be a wnid and a class name, not {line[:80]!r}")
        if wnid in names:
            raise UserError(f"{place}: {wnid} stands twice; fetch the file again")
        names[wnid] = name.strip()
    return dict(sorted(names.items()))


def imagenet(root: Path, seed: int, progress: Progress) -> Listing:
    """images/train and images/val; ImageNet's own val is the test part (6.20); val comes from train."""
    names = read_class_names(root / CLASS_NAMES)
    images = root / "images"
    wnids = _wnids(images / "train", names)
    _wnids(images / "val", names)
    paths, labels, parts = _scan_parts(images, {"train": TRAIN, "val": TEST}, wnids, progress)
    train = np.flatnonzero(parts == TRAIN)
    classes = prompt_names(names[wnid] for wnid in wnids)
    parts[train[splits.held_out(labels[train], seed, classes)]] = VAL
    split = (
        f"folder val is the test part; val is a seeded {splits.HELD_OUT} images a class of folder train, "
        f"at most a fifth (split_seed {seed})"
    )
    return Listing(
        root,
        tuple(f"images/{path}" for path in paths),
        labels,
        parts,
        classes,
        split,
        has_wnids=True,
    )


def wnid_folders(root: Path, images: str, progress: Progress) -> Listing:
    """A label is the place of its folder among the sorted folders that are there (6.19)."""
    names = read_class_names(root / CLASS_NAMES)
    wnids = _wnids(root / images, names)
    return _test_images(root / images, wnids, [names[wnid] for wnid in wnids], progress)


def index_folders(root: Path, images: str, progress: Progress) -> Listing:
    """Folders "0", "1", ...: indices into the sorted wnids of classnames.txt (6.12)."""
    names = read_class_names(root / CLASS_NAMES)
    indices = [str(index) for index in range(len(names))]
    _same_folders(root / images, set(indices), CLASS_NAMES)
    return _test_images(root / images, indices, list(names.values()), progress)


def _wnids(folder: Path, names: Mapping[str, str]) -> list[str]:
    found = folders.subfolders(folder)
    if not found:
        raise UserError(f"{folder}: no folders named by wnid; sort the images into one folder a class")
    if unknown := [wnid for wnid in found if wnid not in names]:
        raise UserError(f"{folder / unknown[0]}: not in {CLASS_NAMES}; a folder is named by a wnid of it")
    return found


def _test_images(root: Path, names: Sequence[str], classes: Sequence[str], progress: Progress) -> Listing:
    paths, labels = folders.scan(root, names, progress)
    parts = np.full(len(paths), TEST, dtype=np.int8)
    return Listing(root, paths, labels, parts, prompt_names(classes), TEST_ONLY, has_wnids=True)
