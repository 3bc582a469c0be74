"""The tables and tiles of the report: rows in, escaped HTML out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from comkd_ray.arms import (
    METHODS,
    Scores,
    method_values,
    module_cells,
    of_method,
    ranking,
    scores_of,
    searched_keys,
)
from comkd_ray.collapse import AT_ONCE, COLLAPSED, FLAG, among, flagged
from comkd_ray.components import Components
from comkd_ray.findings import NAMED, Compared, Findings
from comkd_ray.markup import Html, breakable, join, paragraph, table, tag
from comkd_ray.pairing import FIXED, Paired, Rule
from comkd_ray.protocols import OBJECTIVE
from comkd_ray.stats import estimate
from comkd_ray.tables import (
    FLAG_NOTE,
    INTERVAL,
    Table,
    components_notes,
    effects_table,
    interval,
    n_of,
    paired_notes,
    paired_table,
    shapley_table,
    spread,
    without,
)
from comkd_ray.words import count, duration, gap, percent, plain, shown

TOP = 8
"""Arms in the table of the best."""


def titled(title: str, scores: Scores) -> Html:
    """A heading above scores of arms; it says so where test labels chose them."""
    mark = tag("small", scores.warning, class_="warned") if scores.warning else ""
    return tag("h3", title, mark)


def plain_table(shared: Table, class_: str = "") -> Html:
    """A table that Markdown has too; what it says of flagged arms is red."""
    return table(shared.head, [[_reddened(cell) for cell in row] for row in shared.rows], class_=class_)


def _reddened(cell: str) -> object:
    """`3 (1 collapsed)` with its bracket in red, on a line of its own where numbers stand."""
    place = cell.rfind("; with ") if "; with " in cell else cell.find(" (")
    if place < 0 or not any(flag in cell[place:] for flag in (COLLAPSED, AT_ONCE)):
        return cell
    return join([cell[:place], tag("span", cell[place:].lstrip("; "), class_="bad")], " ")


def flagged_table(found: Findings) -> Html:
    """Every flagged arm beside what its flag is made of; nothing where there is none."""
    if not found.flagged:
        return Html("")
    score, lines = found.scores.headline, []
    for name, rows in found.flagged.items():
        for row in rows:
            keys = row["searched"] or ()
            named = join(
                [tag("code", row["arm"]), tag("small", ", ".join(f"{k} {shown(row[k])}" for k in keys))]
            )
            known = [plain(row[key]) for key in (score, f"zero_shot_{score}", f"teacher_{score}")]
            epoch = f"{shown(row['best_epoch'])} of {shown(row['epochs_done'])}"
            lines.append([row["number"], named, name, *known, epoch])
    head = ["number", "arm", "flag", breakable(score), "its zero-shot", "tuned teacher", "best epoch"]
    return join([table(head, lines, words=3, class_="flagged"), paragraph(FLAG_NOTE, class_="caution")])


def explained_table(rows: Sequence[tuple[str, str]]) -> Html:
    """Who learned from which images, what chose, and what was tested."""
    return table([], rows, words=2, class_="explained")


def tiles(found: Findings, provenance: Mapping[str, Any]) -> Html:
    """The few figures that a reader takes away."""
    pairs = []
    if found.best is not None:
        ours = found.best[found.scores.headline]
        chosen = ", chosen on the test set" * found.scores.on_test
        pairs.append((percent(ours), f"{found.scores.headline} of the best arm{chosen}"))
        for line in found.compared:
            if line.label in NAMED:
                pairs.append((gap(ours, line.headline), f"points from the {line.label}"))
        size, teacher = found.best["total_parameters"], found.best["teacher_parameters"]
        if size and teacher:
            pairs.append((count(size), f"parameters at inference; the teacher has {count(teacher)}"))
    pairs.append((f"{found.full} of {found.ended}", "arms had their full budget"))
    if provenance.get("wall_seconds"):
        pairs.append((duration(provenance["wall_seconds"]), "wall time"))
    items = [tag("div", tag("dt", label), tag("dd", value)) for value, label in pairs]
    return tag("dl", *items, class_="tiles")


def compared_table(lines: Sequence[Compared], scores: Scores) -> Html:
    """Test scores of the best arm and of what it is read against."""
    ours = lines[0].headline
    head = ["test scores (%)", *scores.names, "best arm minus this"]
    rows = [
        [
            line.label,
            *(plain(score) for score in line.scores),
            "" if line is lines[0] else gap(ours, line.headline),
        ]
        for line in lines
    ]
    return table(head, rows, class_="first")


def top_table(arms: pl.DataFrame) -> Html:
    """The best full-budget arms with the values they searched; a dot where a key was not active."""
    scores, keys = scores_of(arms), searched_keys(arms)
    tests = [test for test in (scores.headline, *scores.tests[:-1]) if test != scores.objective]
    head = ["number", "arm", *map(breakable, [scores.objective, *tests]), "best epoch", *map(breakable, keys)]
    rows = []
    for row in flagged(ranking(arms).head(TOP)).iter_rows(named=True):
        values = [plain(row[key]) for key in (OBJECTIVE, *tests)]
        epoch: object = f"{shown(row['best_epoch'])} of {shown(row['epochs_done'])}"
        epoch = join([epoch, tag("span", f" {row[FLAG]}", class_="bad")], "") if row[FLAG] else epoch
        searched = [shown(row[key]) if key in (row["searched"] or ()) else "\u00b7" for key in keys]
        rows.append([row["number"], tag("code", row["arm"]), *values, epoch, *searched])
    return table(head, rows, words=2, class_="first")


def module_table(arms: pl.DataFrame) -> Html:
    """Mean, sd and n of each cell of the 2x2 in every test score."""
    scores, rows, held = scores_of(arms), [], []
    for method in module_cells(arms):
        cells = [estimate(method_values(arms, method, test)) for test in scores.tests]
        held.append(among(of_method(arms, method)))
        n = n_of(cells[-1].n if cells[-1] is not None else 0, held[-1].flags)
        rows.append([METHODS[method], n, *(spread(found) for found in cells), interval(cells[-1])])
    extra = without(held, scores.names[-1])
    rows = [[*row, *others] for row, others in zip(rows, extra.rows, strict=True)]
    return plain_table(Table(["full-budget arms, test (%)", "n", *scores.names, INTERVAL, *extra.head], rows))


def paired_tables(paired: Sequence[Paired], scores: Scores, rule: Rule = FIXED) -> Html:
    """Differences by seed with what the design could have shown, and how to read them."""
    notes = (paragraph(line, class_="caution") for line in paired_notes(scores, rule.of_methods))
    return join([plain_table(paired_table(paired, scores)), *notes])


def component_tables(found: Components, scores: Scores, rule: Rule = FIXED) -> Html:
    """Effects and Shapley values of a full factorial, and how to read them."""
    tables = [plain_table(effects_table(found, scores)), plain_table(shapley_table(found, scores))]
    return join([*tables, *(paragraph(line, class_="caution") for line in components_notes(found, rule))])
