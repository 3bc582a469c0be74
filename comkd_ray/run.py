"""A finished or unfinished study as a reader finds it: its tables, its study file, its provenance.

Only the `arms` table has to be there; what else is missing or broken is said, not fatal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from comkd_ray import quarantine, study_file
from comkd_ray.arms import Scores, scores_of
from comkd_ray.config import Study
from comkd_ray.errors import UserError
from comkd_ray.pairing import FIXED, Rule
from comkd_ray.protocols import explain
from comkd_ray.results import EPOCHS, read_arms, read_epochs
from comkd_ray.retuned import fixed_arms
from comkd_ray.study_tree import ASSETS

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
    def rule(self) -> Rule:
        """What is claimed of settings against the first, whether seeds were added, and what is crossed."""
        if self.study is None:
            return FIXED
        crossed, block = frozenset(self.study.search.space), self.study.ablate
        if block is None:
            return Rule(crossed=crossed)
        if block.design == "factorial":
            crossed |= frozenset(block.factors)  # a re-tuned one is a list
        asked = self.provenance.get("arms_asked", math.inf)  # arms that ended, and those still wanted
        compares = block.design != "fractional"
        return Rule(block.direction, block.max_seeds, len(self.arms) < asked, compares, crossed)

    @property
    def fixed(self) -> pl.DataFrame:
        """Arms at fixed values: of an ablation that was re-tuned, without those at re-tuned ones."""
        return fixed_arms(self.arms, self.study)

    @property
    def trained(self) -> pl.DataFrame:
        """Arms that were trained, and paid for, in this run: without those taken from another, or forked."""
        arms = self.arms
        for origin in ("taken_from", "from"):
            if origin in arms.columns:
                arms = arms.filter(pl.col(origin).is_null())
        return arms

    @property
    def is_demo(self) -> bool:
        """Whether teacher or student ship with the package, by what was recorded, the study or the rows."""
        named = "student.model" in self.arms.columns
        models = [str(model) for model in self.arms["student.model"].unique()] if named else []
        if self.study is not None:
            models += [self.study.teacher.model, self.study.student.model]
        return bool(self.provenance.get("demo_weights")) or any(one.startswith(ASSETS) for one in models)

    @property
    def data(self) -> Mapping[str, Any]:
        """What was recorded of the data set: its split, classes and counts; empty where nothing was."""
        return self.provenance.get("data") or {}

    @property
    def images(self) -> dict[str, int]:
        """Images of the parts train, val, test and teacher, where they were counted."""
        parts = ("train", "val", "test", "teacher")
        return {part: self.data[part] for part in parts if isinstance(self.data.get(part), int)}

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
    try:
        words = path.read_text(encoding="utf-8", errors="replace")
        study = study_file.load(path)
    except FileNotFoundError:
        troubles.append("study.yaml is missing: ranges of the search are taken from the rows.")
    except OSError as error:
        troubles.append(f"study.yaml cannot be read: {error.strerror}.")
    except UserError as error:
        troubles.append(f"study.yaml does not fit this version: {error}")
    provenance = _provenance(folder / "provenance.json", troubles)
    if damaged := quarantine.held(folder):
        troubles.append(f"{quarantine.FOLDER}/ holds what could not be read: {', '.join(damaged)}.")
    name = study.study if study is not None else folder.resolve().name
    return Run(name, arms, epochs, scores_of(arms), study, words, provenance, troubles)


def _provenance(path: Path, troubles: list[str]) -> Provenance:
    """What `path` says of the run. What cannot be read or used is left out, and told in `troubles`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        troubles.append("provenance.json is missing: versions, machine and hashes are unknown.")
        return {}
    except OSError as error:
        troubles.append(f"provenance.json cannot be read: {error.strerror}.")
        return {}
    except (ValueError, RecursionError):
        troubles.append("provenance.json is no valid JSON: versions, machine and hashes are unknown.")
        return {}
    if not isinstance(found, dict):
        troubles.append("provenance.json is no JSON object: versions, machine and hashes are unknown.")
        return {}
    odd = [key for key, fits in _FACTS.items() if found.get(key) is not None and not fits(found[key])]
    troubles += [f"provenance.json: {key} cannot be {str(found[key])[:80]!r} and is left out." for key in odd]
    return {key: value for key, value in found.items() if key not in odd}


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf


_FACTS: Mapping[str, Callable[[Any], bool]] = {
    "wall_seconds": _is_amount,
    "peak_memory_bytes": _is_amount,
    "arms_asked": _is_amount,
    "stages": lambda found: isinstance(found, dict) and all(map(_is_amount, found.values())),
    "data": lambda found: isinstance(found, dict),
    "notes": lambda found: isinstance(found, list),
}
"""Facts that a report counts with, and what they have to be."""
