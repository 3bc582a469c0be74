"""The report's tables as Markdown, for a page of results or an issue. Reads the `arms` table only."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from comkd_ray.results import REFERENCES, SCORES
from comkd_ray.stats import CELLS, SEED, cell_values, estimate, paired_by_seed, searched_keys, verdict

NAMES = {
    "teacher": "tuned teacher",
    "teacher_zero_shot": "teacher, zero-shot",
    "zero_shot": "student, zero-shot",
}


def tables(arms: pl.DataFrame) -> str:
    """The 2x2 beside its references and, where seeds were searched, the differences paired by seed."""
    parts = [_cells(arms)]
    if SEED in searched_keys(arms):
        parts.append(_differences(arms))
    return "\n\n".join(parts)


def _cells(arms: pl.DataFrame) -> str:
    rows = [[name, str(_count(arms, cell)), *_scores(arms, cell)] for cell, name in CELLS.items()]
    first = arms.row(0, named=True)
    for reference in REFERENCES:
        values = [first[f"{reference}_test_{score}"] for score in SCORES]
        rows.append([NAMES[reference], "1", *("-" if v is None else f"{v:.2f}" for v in values)])
    return _table(["test, %", "n", "base", "novel", "harmonic mean"], rows)


def _count(arms: pl.DataFrame, cell: tuple[bool, bool]) -> int:
    return len(cell_values(arms, cell, "test_harmonic_mean"))


def _scores(arms: pl.DataFrame, cell: tuple[bool, bool]) -> list[str]:
    found = [estimate(cell_values(arms, cell, f"test_{score}")) for score in SCORES]
    return ["-" if e is None else f"{e.mean:.2f}" + ("" if e.sd is None else f" ± {e.sd:.2f}") for e in found]


def _differences(arms: pl.DataFrame) -> str:
    rows = []
    for pair in paired_by_seed(arms):
        found = pair.estimate
        span = "-" if found.low is None else f"{found.low:+.2f} to {found.high:+.2f}"
        numbers = [f"{found.mean:+.2f}", span, f"{pair.p:.3g}", f"{pair.smallest_p:.3g}"]
        rows.append([CELLS[pair.cell], str(found.n), *numbers, verdict(pair)])
    head = ["minus both off, points of test harmonic mean", "n", "mean", "95 % t-interval"]
    return _table([*head, "sign-flip p", "smallest p", "verdict"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
