"""Folders of images: one listing a folder and no `stat` of a file, so that a million images take seconds."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comkd_ray.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
LISTING = "list images"
"""Stage of the progress of this room."""

Progress = Callable[[str, int, int], None]
"""Called with stage, done, total; here they are folders."""


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones."""
    return sorted(e.name for e in _entries(folder) if e.is_dir() and e.name[0] != ".")


def scan(
    root: Path, folders: Sequence[str], progress: Progress = silent
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Images of class folders, sorted in each: paths from `root`, and `[N]` the place of each's folder."""
    paths: list[str] = []
    counts = []
    for done, folder in enumerate(folders):
        progress(LISTING, done, len(folders))
        images = sorted(e.name for e in _entries(root / folder) if _is_image(e))
        if not images:
            raise UserError(f"{root / folder}: no images; add some or remove the class")
        paths += [f"{folder}/{name}" for name in images]
        counts.append(len(images))
    progress(LISTING, len(folders), len(folders))
    return tuple(paths), np.repeat(np.arange(len(folders)), counts)


def missing(
    root: Path, homes: Sequence[str], paths: Sequence[str], file: Path, progress: Progress = silent
) -> list[str]:
    """Those of the listed paths, relative to `root`, that are no file, in their order.

    homes: the image folders inside `root`, which may be links. UserError where any other link leads out
    of them; `file` is what lists the paths.
    """
    homes_there = [(root / home).resolve() for home in homes]
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(path.rpartition("/")[0], []).append(path)
    absent: set[str] = set()
    for done, (folder, listed) in enumerate(by_folder.items()):
        progress(LISTING, done, len(by_folder))
        there = _files_inside(root / folder, homes_there, file)
        absent.update(path for path in listed if path.rpartition("/")[2] not in there)
    progress(LISTING, len(by_folder), len(by_folder))
    return [path for path in paths if path in absent]


def _files_inside(folder: Path, homes: Sequence[Path], file: Path) -> set[str]:
    try:
        if not folder.is_dir():
            return set()
    except OSError as error:  # a path too long, or a folder closed to us
        raise UserError(f"{file}: folder ...{str(folder)[-60:]}: {error.strerror}") from None
    files = [entry for entry in _entries(folder) if entry.is_file()]
    for path in [folder, *(Path(entry.path) for entry in files if entry.is_symlink())]:
        real = path.resolve()
        if not any(real.is_relative_to(home) for home in homes):
            raise UserError(f"{file}: {path} is a link out of {homes[0]}; put the files inside")
    return {entry.name for entry in files}


def _is_image(entry: os.DirEntry[str]) -> bool:
    if entry.name[0] == "." or posixpath.splitext(entry.name)[1].lower() not in SUFFIXES:
        return False
    if entry.is_symlink() and not Path(entry.path).exists():
        raise UserError(f"{entry.path}: link to a file that does not exist; repair or remove it")
    return entry.is_file()


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        raise UserError(f"{folder}: no such folder; put the images of the data set there") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from None
