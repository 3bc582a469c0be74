"""Optuna's journal file: opened after any crash, and cut where it is damaged.

A journal is a log: what follows a line that is lost may speak of trials that nobody knows any more.
So a damaged journal is kept up to its first bad line, the rest goes to quarantine, and what the
records know is told again (`OptunaArms.reconcile`).
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from comkd_ray import quarantine
from comkd_ray.results import write_atomic


def open_journal(path: Path) -> JournalStorage:
    """Open a journal that a killed process may have left locked, torn or damaged.

    Call it only while holding the run directory's own lock: then no living process writes here.
    """
    for lock in path.parent.glob(f"{path.name}.lock*"):
        lock.unlink()
    storage = _sound(path)
    if storage is None:
        mend(path)
        storage = _replay(path)
    return storage


def mend(path: Path) -> str | None:
    """Cut a journal before its first bad line; returns what was found, None where it is sound."""
    if not path.exists() or _sound(path) is not None:
        return None
    lines = path.read_bytes().splitlines(keepends=True)
    bad = (index for index, line in enumerate(lines) if not _is_entry(line))
    first = next(bad, 0)  # entries that are whole and make no sense together: none can be trusted
    place = quarantine.free_place(path.parent, path.name)
    write_atomic(place, b"".join(lines[first:]))
    write_atomic(path, b"".join(lines[:first]))
    words = (
        f"{path.name}: damaged in line {first + 1} of {len(lines)}: from there on it lies in "
        f"{quarantine.FOLDER}/{place.name}, and what the records know is told again"
    )
    return "; ".join(filter(None, (words, mend(path))))


def _sound(path: Path) -> JournalStorage | None:
    """The journal as Optuna reads it; None where it is damaged. Optuna passes over a bad last line."""
    content = path.read_bytes() if path.exists() else b""
    if content and not _is_entry(content[content.rfind(b"\n", 0, -1) + 1 :]):
        return None
    try:
        return _replay(path)
    except Exception:  # whatever Optuna stumbles over
        return None


def _is_entry(line: bytes) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and isinstance(entry, dict) and {"op_code", "worker_id"} <= entry.keys()


def _replay(path: Path) -> JournalStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return JournalStorage(JournalFileBackend(str(path)))
