"""The tables that the HTML report and its Markdown share: a head, and rows of plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from comkd_ray.arms import METHODS, Paired, Scores, verdict
from comkd_ray.published import ABLATIONS, Value
from comkd_ray.published_gap import Gap
from comkd_ray.reference_rows import ReferenceRow
from comkd_ray.stats import Estimate
from comkd_ray.words import DASH, plain, signed

INTERVAL = "95 % t-interval"


class Table(NamedTuple):
    """Cells of text, the first column in words."""

    head: list[str]
    rows: list[list[str]]


def spread(found: Estimate | None) -> str:
    """`82.41 ± 0.30`, without the sd where there is none."""
    if found is None:
        return DASH
    return f"{found.mean:.2f}" + ("" if found.sd is None else f" \u00b1 {found.sd:.2f}")


def interval(found: Estimate | None) -> str:
    """`81.60 to 83.22`, or a dash for fewer than two values."""
    if found is None or found.low is None or found.high is None:
        return DASH
    return f"{found.low:.2f} to {found.high:.2f}"


def signed_interval(found: Estimate | None) -> str:
    """`+0.10 to +0.90`, or why there is no interval."""
    if found is None:
        return DASH
    if found.low is None or found.high is None:
        return "n = 1: no interval"
    return f"{signed(found.low, 2)} to {signed(found.high, 2)}"


def reference_table(rows: Sequence[ReferenceRow], scores: Scores) -> Table:
    """The eight rows, mean and sd of every test score."""
    cells = [[row.name, str(row.n), *(spread(found) for found in row.estimates)] for row in rows]
    return Table(["test (%)", "n", *scores.names], cells)


def paired_table(paired: Sequence[Paired], scores: Scores) -> Table:
    """Differences by seed in the headline score, with what the design could have shown."""
    head = ["n", "mean", INTERVAL, "sign-flip p", "smallest p", "p (Holm)", "verdict"]
    rows = []
    for pair in paired:
        n = pair.estimate.n
        numbers = [f"{p:.3g}" for p in (pair.p, pair.smallest_p, pair.p_holm)]
        words = verdict(pair) if pair.decidable else f"not decidable with n = {n}"
        mean = signed(pair.estimate.mean, 2)
        rows.append([METHODS[pair.method], str(n), mean, signed_interval(pair.estimate), *numbers, words])
    baseline = METHODS[paired[0].baseline] if paired else ""
    return Table([f"minus {baseline}, points of {scores.name}", *head], rows)


def published_table(gaps: Sequence[Gap], scores: Scores) -> Table:
    """Published scores beside ours, and the gap in the headline."""
    order = " / ".join(scores.names)
    head = ["method", f"published: {order}", f"ours: {order}", "n", f"gap in {scores.names[-1]}", INTERVAL]
    rows = []
    for each in gaps:
        means = [DASH] if each.ours is None else [_mean(found) for found in each.ours.estimates]
        cells = [each.published.method, printed(each.published.values)]
        cells += [" / ".join(means) if each.ours is not None and each.ours.n else DASH]
        cells += [str(each.ours.n) if each.ours is not None else DASH]
        cells += [signed(each.gap.mean if each.gap is not None else None, 2), signed_interval(each.gap)]
        rows.append([*cells, statuses(each.published.values), f"PAPER {each.published.source}"])
    return Table([*head, "status", "source"], rows)


def ablation_table() -> Table:
    """The published ablations, which no study here repeats exactly."""
    rows = [
        [row.item, row.setting, printed(row.values), statuses(row.values), f"PAPER {row.source}"]
        for row in ABLATIONS
    ]
    return Table(["item", "setting", "base / novel / harmonic mean", "status", "source"], rows)


def _mean(found: Estimate | None) -> str:
    return plain(found.mean if found is not None else None, 2)


def printed(values: Sequence[Value]) -> str:
    """`83.69 / 81.54 / 82.60`; a star for a harmonic mean that does not follow from the others."""
    return " / ".join(plain(value.number, 2) + "*" * (not value.follows) for value in values)


def statuses(values: Sequence[Value]) -> str:
    """One status for all, or each in turn."""
    found = [value.status for value in values]
    return found[0] if len(set(found)) == 1 else " / ".join(found)
