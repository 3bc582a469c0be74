"""A finished or unfinished study as a reader finds it: its tables, its study file, its provenance.

Only the `arms` table has to be there; what else is missing or broken is said, not fatal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from comkd_ray import study_file
from comkd_ray.arms import Scores, scores_of
from comkd_ray.config import Study
from comkd_ray.errors import UserError
from comkd_ray.protocols import explain
from comkd_ray.results import EPOCHS, read_arms, read_epochs

Provenance = Mapping[str, Any]


class Run(NamedTuple):
    """All that a report is made of."""

    name: str
    arms: pl.DataFrame
    epochs: pl.DataFrame
    scores: Scores
    study: Study | None
    study_text: str
    """study.yaml as it stands; empty where there is none."""
    provenance: Provenance
    troubles: list[str]
    """What could not be read, a line each."""

    @property
    def enumerated(self) -> bool | None:
        """Whether all arms were known beforehand (a grid or a list); None without a study file."""
        return self.study.search.is_enumerated if self.study is not None else None

    @property
    def images(self) -> dict[str, int]:
        """Images of the parts train, val, test and teacher, where they were counted."""
        data = self.provenance.get("data") or {}
        parts = ("train", "val", "test", "teacher")
        return {part: data[part] for part in parts if isinstance(data.get(part), int)}

    def explained(self) -> list[tuple[str, str]]:
        """(what, from what): who learned from which images, what chose, and what was tested."""
        if self.study is not None:
            return explain(self.study, self.images)
        kind = f"{self.scores.rules.title}, selection {self.scores.selection}"
        return [("protocol", kind), ("epochs and arms chosen by", self.scores.objective)]


def read(folder: Path) -> Run:
    """The tables and files of a run directory. UserError without arms."""
    arms, troubles = read_arms(folder), []
    try:
        epochs = read_epochs(folder)
    except UserError:
        epochs = pl.DataFrame(schema=EPOCHS)
    study, path, words = None, folder / "study.yaml", ""
    if path.exists():
        words = path.read_text(encoding="utf-8", errors="replace")
        try:
            study = study_file.load(path)
        except UserError as error:
            troubles.append(f"study.yaml does not fit this version: {error}")
    else:
        troubles.append("study.yaml is missing: ranges of the search are taken from the rows.")
    provenance: Provenance = {}
    try:
        found = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        provenance = found if isinstance(found, dict) else {}
    except FileNotFoundError:
        troubles.append("provenance.json is missing: versions, machine and hashes are unknown.")
    except ValueError:
        troubles.append("provenance.json is no valid JSON: versions, machine and hashes are unknown.")
    name = study.study if study is not None else folder.resolve().name
    return Run(name, arms, epochs, scores_of(arms), study, words, provenance, troubles)
