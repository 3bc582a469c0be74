"""Damaged files of a run: out of the way, never deleted. `reports/<study>/quarantine/` holds them."""

from __future__ import annotations

import itertools
from pathlib import Path

from comkd_ray.errors import UserError

FOLDER = "quarantine"


def free_place(run: Path, name: str) -> Path:
    """A path in the quarantine that nothing has yet; the folder is made."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    places = (folder / (f"{name}.{count}" if count else name) for count in itertools.count())
    return next(place for place in places if not place.exists())


def set_aside(run: Path, path: Path) -> Path:
    """Move a damaged file of a run into its quarantine; returns where it lies now."""
    try:
        place = free_place(run, path.name)
        path.replace(place)
    except FileNotFoundError:  # another process was faster
        return run / FOLDER / path.name
    except OSError as error:
        raise UserError(
            f"{path}: is damaged and cannot be moved to {run / FOLDER}: {error.strerror}"
        ) from None
    return place


def held(run: Path) -> list[str]:
    """Names of what the quarantine of a run holds."""
    folder = run / FOLDER
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
