"""Runs on several data sets as one question: which of the methods that all of them have is better?

A data set counts once. Arms of a method are averaged over seeds inside each data set, and the data sets
are what `across_datasets.py` ranks and tests over: seeds of one data set share its luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import polars as pl

from comkd_ray import across_datasets
from comkd_ray.across_datasets import Ranks
from comkd_ray.arms import METHODS, SEED, Scores, full_budget, has_modules, of_method
from comkd_ray.collapse import Flagged, among
from comkd_ray.config import Study
from comkd_ray.errors import UserError
from comkd_ray.reference_rows import REFERENCES, at_own_values, reference_score
from comkd_ray.run import Run
from comkd_ray.stats import Estimate, estimate
from comkd_ray.study_file import SEARCHABLE
from comkd_ray.variants import named
from comkd_ray.words import counted, shown

Arms = Mapping[str, pl.DataFrame]
"""Full-budget arms with a headline score, by the name of their method."""


class Cell(NamedTuple):
    """A method on a data set: its headline score over seeds, in percent, and its flagged arms."""

    estimate: Estimate
    flagged: Flagged


class Joint(NamedTuple):
    """All that the joint report shows."""

    scores: Scores
    runs: Mapping[str, Run]
    """By the name of their data set, in the order given."""
    cells: Mapping[tuple[str, str], Cell]
    """By data set and method."""
    references: Mapping[str, tuple[float | None, ...]]
    """Headline scores of zero-shot and teacher, one a data set."""
    ranks: Ranks
    left_out: list[str]
    """Methods that some run lacks, and which."""
    differing: list[str]
    """Keys that the same method has at other values in other runs, a phrase each."""


def join_runs(runs: Sequence[Run]) -> Joint:
    """Put runs together. UserError where they are not one question, or have no two methods in common."""
    known = _comparable(runs)
    named_runs = _by_dataset(known)
    score = runs[0].scores.headline
    arms = {name: _methods(run) for name, run in named_runs.items()}
    common = [method for method in next(iter(arms.values())) if all(method in one for one in arms.values())]
    if len(common) < 2:
        raise UserError(_too_few(arms, common))
    cells = {
        (dataset, method): Cell(_estimate(found[method], score), among(found[method]))
        for dataset, found in arms.items()
        for method in common
    }
    rows = pl.concat(
        found[method].select(pl.lit(dataset).alias("dataset"), pl.lit(method).alias("method"), score)
        for dataset, found in arms.items()
        for method in common
    )
    references = {
        name: tuple(reference_score(run.arms, prefix, score) for run in runs)
        for name, prefix in REFERENCES.items()
    }
    ranks = across_datasets.rank(across_datasets.scores_of(rows, "dataset", "method", score))
    return Joint(
        runs[0].scores,
        named_runs,
        cells,
        references,
        ranks,
        _left_out(arms, common),
        _differing(arms, common),
    )


def _estimate(rows: pl.DataFrame, score: str) -> Estimate:
    found = estimate(rows[score].to_list())
    assert found is not None  # a method without an arm is in no list of methods
    return found


def _comparable(runs: Sequence[Run]) -> list[tuple[Run, Study]]:
    """Runs with their studies. UserError for another protocol, selection or tower than the first's."""
    known = []
    for run in runs:
        if run.study is None:
            raise UserError(
                f"{run.name}: study.yaml is missing or unfit, so its towers are unknown; leave it out"
            )
        known.append((run, run.study))
    first, study = known[0]
    for run, other in known[1:]:
        for key, one, two in zip(_KEYS, _kind(study), _kind(other), strict=True):
            if one != two:
                raise UserError(
                    f"{first.name} has {key} {one} and {run.name} has {two}: join runs of one kind"
                )
    return known


_KEYS = (
    "protocol",
    "selection",
    "teacher.model",
    "teacher.pretrained",
    "student.model",
    "student.pretrained",
)


def _kind(study: Study) -> tuple[str | None, ...]:
    towers = (study.teacher, study.student)
    weights = [value for tower in towers for value in (tower.model, tower.pretrained)]
    return (study.protocol, study.selection, *weights)


def _by_dataset(known: Sequence[tuple[Run, Study]]) -> dict[str, Run]:
    """Runs by what their data set is called. UserError where one data set stands twice."""
    seen: dict[object, Run] = {}
    for run, study in known:
        data = study.data
        own = (data.root, data.split) if data.dataset in _NAMELESS else data.dataset
        marks = (own, (run.provenance.get("hashes") or {}).get("data"))
        for mark in marks:
            if mark is not None and mark in seen:
                raise UserError(
                    f"{seen[mark].name} and {run.name} are on the same data set, {_called(run, study)}: "
                    "a data set counts once, leave one out"
                )
        seen |= {mark: run for mark in marks if mark is not None}
    names = [_called(*each) for each in known]
    return {
        name if names.count(name) == 1 else f"{name} ({place})": run
        for place, (name, (run, _)) in enumerate(zip(names, known, strict=True), 1)
    }


_NAMELESS = ("folder", "split_file")
"""Values of data.dataset that say nothing of what the images are; such a run is called by its study."""


def _called(run: Run, study: Study) -> str:
    return run.name if study.data.dataset in _NAMELESS else study.data.dataset


def _methods(run: Run) -> Arms:
    """Of a grid or a list every setting by its name, of a search the methods at the study's own values."""
    if run.enumerated:
        found = {name: rows for name, _, rows in named(run.fixed)}
    elif has_modules(run.arms):
        own = at_own_values(run.fixed, run.study)
        found = {name: of_method(own, method) for method, name in METHODS.items()}
    else:
        found = {}
    score = run.scores.headline
    scored = {name: full_budget(rows).filter(pl.col(score).is_finite()) for name, rows in found.items()}
    return {name: rows for name, rows in scored.items() if len(rows)}


def _too_few(arms: Mapping[str, Arms], common: Sequence[str]) -> str:
    has = "; ".join(f"{name} has {', '.join(found) or 'none'}" for name, found in arms.items())
    return f"{counted(len(common), 'method')} trained in every run, and a ranking takes two: {has}"


def _left_out(arms: Mapping[str, Arms], common: Sequence[str]) -> list[str]:
    every = dict.fromkeys(method for found in arms.values() for method in found)
    return [
        f"{method} (not in {', '.join(name for name, found in arms.items() if method not in found)})"
        for method in every
        if method not in common
    ]


def _differing(arms: Mapping[str, Arms], common: Sequence[str]) -> list[str]:
    """Values of student, loss and train, the seed apart, that a method does not have in all runs alike."""
    phrases: dict[str, str] = {}
    for method in common:
        keys = [key for key in next(iter(arms.values()))[method].columns if key.startswith(SEARCHABLE)]
        for key in keys:
            values = {
                dataset: shown(found[method][key][0]) if key in found[method].columns else "unknown"
                for dataset, found in arms.items()
            }
            if key != SEED and len(set(values.values())) > 1 and key not in phrases:
                phrases[key] = f"{key}: " + ", ".join(f"{name} {value}" for name, value in values.items())
    return list(phrases.values())
