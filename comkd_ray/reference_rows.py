"""Eight rows of one study, side by side: what costs nothing, what PromptKD gives, what each module adds.

    student zero-shot, teacher zero-shot, tuned teacher      one measurement each
    projector only, PromptKD, + IFAlign, + EduAttention, ComKD-CLIP      mean and spread over seeds

The last five hold only arms whose other searched values are those of the study file, so that rows
differ by their method and nothing else: in a grid of methods and seeds that is every arm, in a
search it is the arms listed under `search.first` that set the method alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import polars as pl

from comkd_ray.arms import (
    METHOD_KEYS,
    METHODS,
    PROJECTOR_ONLY,
    PROMPTKD,
    PROMPTS,
    SEED,
    Method,
    full_budget,
    has_modules,
    is_same,
    method_values,
    of_method,
    scores_of,
    searched_keys,
)
from comkd_ray.collapse import Flagged, among
from comkd_ray.config import Study
from comkd_ray.search_space import Scalar
from comkd_ray.stats import Estimate, estimate
from comkd_ray.study_file import flatten, has_effect
from comkd_ray.words import counted

REFERENCES = {
    "student zero-shot": "zero_shot",
    "teacher zero-shot": "teacher_zero_shot",
    "tuned teacher": "teacher",
}
"""Names of the models beside every arm, and what the columns of their scores begin with."""
SHOWN: tuple[Method, ...] = (
    PROJECTOR_ONLY,
    PROMPTKD,
    (True, True, False),
    (True, False, True),
    (True, True, True),
)


class ReferenceRow(NamedTuple):
    """One row: its scores in percent, in the order of `Scores.tests`."""

    name: str
    n: int
    """Arms (they differ by seed alone) with a headline score; 1 for a measured reference."""
    estimates: tuple[Estimate | None, ...]
    flagged: Flagged = Flagged()

    @property
    def headline(self) -> Estimate | None:
        """The last score."""
        return self.estimates[-1]


def reference_score(arms: pl.DataFrame, reference: str, test: str) -> float | None:
    """A score of one of REFERENCES, the same in every arm; None where no arm has it."""
    known = arms[f"{reference}_{test}"].drop_nulls()
    return float(known[0]) if len(known) else None


def reference_rows(arms: pl.DataFrame, study: Study | None) -> list[ReferenceRow]:
    """The eight rows, those without any arm too (n = 0)."""
    tests, rows = scores_of(arms).tests, []
    for name, reference in REFERENCES.items():
        values = [reference_score(arms, reference, test) for test in tests]
        measured = tuple(None if value is None else estimate([value]) for value in values)
        rows.append(ReferenceRow(name, int(measured[-1] is not None), measured))
    if not has_modules(arms):
        return rows
    equal = at_own_values(arms, study)
    for method in SHOWN:
        estimates = tuple(estimate(method_values(equal, method, test)) for test in tests)
        n = estimates[-1].n if estimates[-1] else 0
        rows.append(ReferenceRow(METHODS[method], n, estimates, among(of_method(equal, method))))
    return rows


def other_keys(arms: pl.DataFrame) -> list[str]:
    """Searched keys that neither set the method nor the seed."""
    return [key for key in searched_keys(arms) if key not in METHOD_KEYS | {SEED}]


def at_own_values(arms: pl.DataFrame, study: Study | None) -> pl.DataFrame:
    """Arms whose searched values, method and seed apart, are the study file's own.

    Of a key without effect on an arm (C without EduAttention) any value will do, and arms without prompts
    have no prompt_length to compare. None without a study file, unless no other key was searched.
    """
    own: Mapping[str, Scalar] = flatten(study.model_dump(mode="json")) if study is not None else {}
    length = own.get(PROMPTS) or 0
    kept = []
    for row in arms.iter_rows(named=True):
        searched = row["searched"] or ()
        others = [key for key in searched if key not in METHOD_KEYS | {SEED} and has_effect(key, row)]
        equal = all(key in own and is_same(row[key], own[key]) for key in others)
        kept.append(equal and (row.get(PROMPTS) in (0, length) or not length))
    return arms.filter(pl.Series(kept, dtype=pl.Boolean))


def remarks(arms: pl.DataFrame, study: Study | None, rows: list[ReferenceRow]) -> list[str]:
    """What the rows hold and what they leave out, a line each."""
    others = other_keys(arms)
    lines = [
        "Mean \u00b1 sd (ddof = 1) over full-budget arms, n seeds. Zero-shot and the teacher are one "
        "measurement each."
    ]
    if others:
        lines.append(
            "Only arms at the study file's own values of "
            f"{', '.join(others)} are counted here, so rows differ by their method alone."
        )
    lacking = [row.name for row in rows if row.n == 0]
    if lacking and study is None and others:
        lines.append("Without study.yaml those values are unknown, so no arm is counted.")
    elif lacking:
        lines.append(
            f"No full-budget arm for {', '.join(lacking)}: list such arms under search.first, "
            "or search a grid over student.prompt_length, student.ifalign and student.edu_attention."
        )
    return lines + _left_out(arms)


def _left_out(arms: pl.DataFrame) -> list[str]:
    if not has_modules(arms):
        return []
    left = {name: len(of_method(full_budget(arms), m)) for m, name in METHODS.items() if m not in SHOWN}
    words = ", ".join(f"{name}, {counted(n, 'arm')}" for name, n in left.items() if n)
    return [f"Not among these rows: {words}."] if words else []
