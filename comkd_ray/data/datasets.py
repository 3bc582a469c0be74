"""Data sets as one table of rows: every image with its label and its part.

`open_dataset("caltech101", root, seed)` reads a data set in CoOp's layout with CoOp's split file
(PAPER 6.16); `open_dataset("folder", root, seed)` reads `root/<class>/*` or
`root/{train,test[,val]}/<class>/*`. Whatever is wrong with the files is said here, once, before
anything is computed.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comkd_ray.data import splits
from comkd_ray.errors import UserError

TRAIN, VAL, TEST = 0, 1, 2
PARTS = splits.PARTS
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
SPLIT_FILES = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"

_Scan = tuple[tuple[str, ...], NDArray[np.int64]]  # paths, labels


@dataclass(frozen=True, slots=True)
class ImageTable:
    """Every image of a data set; rows of `paths`, `labels` and `parts` belong together."""

    root: Path
    """Folder that the paths are relative to."""
    paths: tuple[str, ...]
    """Relative, with `/`, each only once."""
    labels: NDArray[np.int64]
    """[N]"""
    parts: NDArray[np.int8]
    """[N] TRAIN, VAL or TEST"""
    classes: tuple[str, ...]
    """Names as prompts use them, by label."""
    split: str
    """One line for the report: where the parts come from."""

    def select(self, part: int) -> NDArray[np.int64]:
        """Indices of the images of a part, ascending."""
        return np.flatnonzero(self.parts == part)


@dataclass(frozen=True, slots=True)
class Row:
    """A data set with a split file: where its images lie and how a prompt names them."""

    images: str
    """Folder inside the root that the paths of the split file are relative to."""
    split: str
    """Split file inside the root."""
    template: str
    """Prompt of zero-shot classification (PAPER section 6)."""


ROWS = {
    "caltech101": Row(
        images="101_ObjectCategories",
        split="split_zhou_Caltech101.json",
        template="a photo of a {}.",
    ),
}


def open_dataset(name: str, root: Path, split_seed: int) -> ImageTable:
    """The checked table of a data set; `split_seed` matters only where no parts are given."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; data.root must be the folder of the data set")
    if name == "folder":
        table = _open_folder(root, split_seed)
    elif name in ROWS:
        table = _open_split_file(root, ROWS[name])
    else:
        raise UserError(f"data.dataset '{name}' is unknown; known are folder, {', '.join(ROWS)}")
    _check_classes(table)
    return table


def _check_classes(table: ImageTable) -> None:
    """Every class is in every part: else its accuracy, or its training, would be of nothing."""
    if len(table.classes) < 2:
        raise UserError(f"{table.root}: only one class; a classifier needs at least two")
    seen: dict[str, int] = {}
    for label, name in enumerate(table.classes):
        if seen.setdefault(name, label) != label:
            raise UserError(f"{table.root}: two classes are called '{name}'; rename one of them")
    for part, part_name in enumerate(PARTS):
        counts = np.bincount(table.labels[table.parts == part], minlength=len(table.classes))
        if not counts.all():
            name = table.classes[int(np.argmin(counts))]
            raise UserError(
                f"{table.root}: class '{name}' has no {part_name} image; every class needs images "
                f"in {', '.join(PARTS)}"
            )


def _open_split_file(root: Path, row: Row) -> ImageTable:
    images, file = root / row.images, root / row.split
    if not file.is_file():
        raise UserError(f"{file}: no such split file; CoOp's docs link to it: {SPLIT_FILES}")
    if not images.is_dir():
        raise UserError(f"{images}: no such folder; put the images of the data set there")
    listed = splits.read_split_file(file)
    entries = [entry for part in PARTS for entry in listed[part]]
    paths = tuple(path for path, _, _ in entries)
    _check_images(images, paths, file)
    return ImageTable(
        root=images,
        paths=paths,
        labels=np.array([label for _, label, _ in entries], dtype=np.int64),
        parts=np.repeat(np.arange(3, dtype=np.int8), [len(listed[part]) for part in PARTS]),
        classes=_prompt_names(splits.class_names(file, entries)),
        split=f"split file {row.split}",
    )


def _check_images(root: Path, paths: Sequence[str], file: Path) -> None:
    """Every listed image is a file inside the root. One listing a folder: quick for 100k images."""
    real_root = root.resolve()
    listings: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = posixpath.split(path)
        if folder not in listings:
            listings[folder] = _files_inside(real_root, folder, file)
        if name not in listings[folder]:
            missing.append(path)
    if missing:
        raise UserError(
            f"{file}: {len(missing)} of {len(paths)} listed images are missing, the first is "
            f"{root / missing[0]}; the download may be incomplete"
        )


def _files_inside(real_root: Path, folder: str, file: Path) -> set[str]:
    """Names of the files in a folder of the root; UserError where a link leads out of the root."""
    path = real_root / folder
    if not path.is_dir():
        return set()
    entries = [entry for entry in _entries(path) if entry.is_file()]
    for link in [path, *(Path(entry.path) for entry in entries if entry.is_symlink())]:
        if not link.resolve().is_relative_to(real_root):
            raise UserError(f"{file}: {link} is a link out of {real_root}; put the files inside")
    return {entry.name for entry in entries}


def _open_folder(root: Path, seed: int) -> ImageTable:
    has_parts = (root / "train").is_dir() and bool(_subfolders(root / "train"))
    return _open_part_folders(root, seed) if has_parts else _open_class_folders(root, seed)


def _open_class_folders(root: Path, seed: int) -> ImageTable:
    folders = _subfolders(root)
    if not folders:
        raise UserError(f"{root}: no class folders; expected root/<class>/<image>")
    paths, labels = _scan(root, folders, folders)
    parts = splits.split_by_class(labels, seed, (0.5, 0.2, 0.3), folders)
    split = f"seeded split of every class, 50/20/30 into train/val/test (split_seed {seed})"
    return ImageTable(root, paths, labels, parts, _prompt_names(folders), split)


def _open_part_folders(root: Path, seed: int) -> ImageTable:
    found = _subfolders(root)
    if "test" not in found:
        raise UserError(f"{root}: has train/ but no test/; add test/, or move the classes up")
    if odd := sorted(set(found) - set(PARTS)):
        raise UserError(f"{root / odd[0]}: beside train, val and test no folder may stand; move it")
    folders = _subfolders(root / "train")
    names = [part for part in PARTS if part in found]
    for part in names:
        _check_part(root, part, folders)
    scans = [_scan(root, [f"{part}/{name}" for name in folders], folders) for part in names]
    labels = np.concatenate([labels for _, labels in scans])
    codes = np.array([PARTS.index(part) for part in names], dtype=np.int8)
    parts = np.repeat(codes, [len(paths) for paths, _ in scans])
    split = "folders train, val and test"
    if "val" not in found:
        train = parts == TRAIN
        parts[train] = splits.split_by_class(labels[train], seed, (0.8, 0.2), folders)
        split = f"folders train and test; val is a seeded 20% of train (split_seed {seed})"
    paths = tuple(path for paths, _ in scans for path in paths)
    return ImageTable(root, paths, labels, parts, _prompt_names(folders), split)


def _check_part(root: Path, part: str, known: list[str]) -> None:
    """The class folders of a part must be those of train."""
    found = _subfolders(root / part)
    if extra := sorted(set(found) - set(known)):
        raise UserError(f"{root / part / extra[0]}: class is not in train; add it or remove this")
    if missing := sorted(set(known) - set(found)):
        raise UserError(f"{root / part / missing[0]}: no such folder; each class of train has one")


def _subfolders(folder: Path) -> list[str]:
    return sorted(e.name for e in _entries(folder) if e.is_dir() and not e.name.startswith("."))


def _scan(root: Path, folders: Sequence[str], classes: Sequence[str]) -> _Scan:
    """Images of class folders, sorted; the last part of a folder's path is its class."""
    paths: list[str] = []
    labels: list[int] = []
    for folder in folders:
        images = sorted(e.name for e in _entries(root / folder) if _is_image(e))
        if not images:
            raise UserError(f"{root / folder}: no images; add some or remove the class")
        paths += [f"{folder}/{name}" for name in images]
        labels += [classes.index(posixpath.basename(folder))] * len(images)
    return tuple(paths), np.array(labels, dtype=np.int64)


def _is_image(entry: os.DirEntry[str]) -> bool:
    if entry.name[0] == "." or posixpath.splitext(entry.name)[1].lower() not in SUFFIXES:
        return False
    if entry.is_symlink() and not Path(entry.path).exists():
        raise UserError(f"{entry.path}: link to a file that does not exist; repair or remove it")
    return entry.is_file()


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from None


def _prompt_names(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.replace("_", " ") for name in names)
