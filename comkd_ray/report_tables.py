"""The tables and tiles of the report: rows in, escaped HTML out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from comkd_ray.figure import DASH, shown
from comkd_ray.findings import CELL_WORDS, SCORES, Compared, Findings, percent, signed
from comkd_ray.markup import Html, details, join, paragraph, table, tag, text
from comkd_ray.stats import (
    CELLS,
    Estimate,
    Paired,
    Row,
    cell_values,
    estimate,
    ranking,
    searched_keys,
    verdict,
)

TOP = 8
"""Arms in the table of the best."""
FAILURES = 20
"""Failed arms listed."""
FOLD = 4
"""Longer lists of the provenance open on a click."""


def tiles(found: Findings, provenance: Mapping[str, Any]) -> Html:
    """The few figures that a reader takes away."""
    pairs = []
    if found.best is not None:
        mean = found.best["test_harmonic_mean"]
        pairs.append((percent(mean), "test_harmonic_mean of the best arm"))
        for line in found.compared:
            if line.label in ("student zero-shot", "tuned teacher"):
                pairs.append((_gap(mean, line.harmonic_mean), f"points from the {line.label}"))
        size, teacher = found.best["total_parameters"], found.best["teacher_parameters"]
        if size and teacher:
            pairs.append((count(size), f"parameters at inference; the teacher has {count(teacher)}"))
    pairs.append((f"{found.full} of {found.ended}", "arms had their full budget"))
    if provenance.get("wall_seconds"):
        pairs.append((duration(provenance["wall_seconds"]), "wall time"))
    items = [tag("div", tag("dt", label), tag("dd", value)) for value, label in pairs]
    return tag("dl", *items, class_="tiles")


def _gap(ours: float | None, theirs: float | None) -> str:
    return signed(None if ours is None or theirs is None else ours - theirs)


def count(number: float) -> str:
    """`86.2 M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s` or `4.2 s`, in one unbroken piece."""
    if seconds < 60:
        words = f"{seconds:.1f} s"
    elif round(seconds) < 3600:
        words = f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    else:
        minutes = round(seconds / 60)
        words = f"{minutes // 60} h {minutes % 60:02d} min"
    return words.replace(" ", "\u00a0")


def compared_table(lines: Sequence[Compared]) -> Html:
    """Test scores of the best arm and of what it is read against."""
    ours = lines[0].harmonic_mean
    head = ["test scores (%)", "base", "novel", "harmonic mean", "best arm minus this"]
    rows = [
        [
            line.label,
            *(plain(score) for score in line.scores),
            "" if line is lines[0] else _gap(ours, line.harmonic_mean),
        ]
        for line in lines
    ]
    return table(head, rows, class_="first")


def plain(value: float | None, digits: int = 1) -> str:
    """A percentage without its sign, or a dash."""
    return DASH if value is None else f"{value:.{digits}f}"


def top_table(arms: pl.DataFrame) -> Html:
    """The best full-budget arms with the values they searched; a dot where a key was not active."""
    keys = searched_keys(arms)
    head = [
        "number",
        "arm",
        "val HM",
        "test HM",
        "base",
        "novel",
        "best epoch",
        *map(breakable, keys),
    ]
    rows = []
    for row in ranking(arms).head(TOP).iter_rows(named=True):
        scores = [plain(row["val_harmonic_mean"]), plain(row["test_harmonic_mean"])]
        scores += [plain(row["test_base_accuracy"]), plain(row["test_novel_accuracy"])]
        epoch = f"{shown(row['best_epoch'])} of {shown(row['epochs_done'])}"
        values = [_searched(row, key) for key in keys]
        rows.append([row["number"], tag("code", row["arm"]), *scores, epoch, *values])
    return table(head, rows, words=2, class_="first")


def breakable(key: str) -> Html:
    """A dotted key that may break after its dots and underscores."""
    parts = str(text(key)).replace(".", ".<wbr>").replace("_", "_<wbr>")
    return Html(parts)


def _searched(row: Row, key: str) -> str:
    return shown(row[key]) if key in (row["searched"] or ()) else "·"


def arms_by_status(found: Findings, asked: int | None) -> str:
    """How many arms ended how; says so where some never did."""
    words = f"Of {found.ended} arms, {found.full} had their full budget, {found.pruned} were pruned "
    words += f"and {found.failed} failed."
    if asked is not None and asked > found.ended:
        words += f" {asked} were asked for: the study is not finished."
    return words


def failed_table(arms: pl.DataFrame) -> Html:
    """Failed arms, why, and what they were set to; nothing where none failed."""
    rows = arms.filter(pl.col("status") == "failed")
    if rows.is_empty():
        return Html("")
    keys = searched_keys(arms)
    lines = []
    for row in rows.head(FAILURES).iter_rows(named=True):
        values = [f"{key} {_searched(row, key)}" for key in keys if key in (row["searched"] or ())]
        reason = " ".join((row["error"] or "no reason was recorded").split())
        short = reason if len(reason) <= 400 else f"{reason[:400]} …"
        why = join([short, tag("small", ", ".join(values))], "")
        lines.append([row["number"], tag("code", row["arm"]), why])
    more = len(rows) - len(lines)
    parts = [
        tag("h3", f"Failed arms ({len(rows)})", class_="failed"),
        table(["number", "arm", "error"], lines, words=3, class_="failed"),
        paragraph(f"and {more} more, in results/arms.") if more else "",
    ]
    return join(parts)


def module_table(arms: pl.DataFrame) -> Html:
    """Mean, sd and n of each cell of the 2x2 in all three scores."""
    rows = []
    for cell, name in CELLS.items():
        cells = [estimate(cell_values(arms, cell, f"test_{score}")) for score in SCORES]
        n = len(cell_values(arms, cell, "test_harmonic_mean"))
        rows.append([name, n, *(_spread(found) for found in cells), _interval(cells[-1])])
    head = ["full-budget arms, test (%)", "n", "base", "novel", "harmonic mean", "95 % t-interval"]
    return table(head, rows)


def _spread(found: Estimate | None) -> str:
    if found is None:
        return DASH
    return f"{found.mean:.2f}" + ("" if found.sd is None else f" ± {found.sd:.2f}")


def _interval(found: Estimate | None) -> str:
    if found is None or found.low is None or found.high is None:
        return DASH
    return f"{found.low:.2f} to {found.high:.2f}"


def paired_table(paired: Sequence[Paired]) -> Html:
    """Differences by seed in test harmonic mean, with what the design could have shown."""
    head = [
        "minus both off",
        "n",
        "mean",
        "95 % t-interval",
        "p",
        "smallest p",
        "p (Holm)",
        "verdict",
    ]
    rows = []
    for pair in paired:
        found = pair.estimate
        span = DASH if found.low is None else f"{signed(found.low, 2)} to {signed(found.high, 2)}"
        numbers = [f"{p:.3g}" for p in (pair.p, pair.smallest_p, pair.p_holm)]
        words = verdict(pair) if pair.decidable else f"not decidable with n = {found.n}"
        rows.append([CELL_WORDS[pair.cell], found.n, signed(found.mean, 2), span, *numbers, words])
    note = (
        "Points of test_harmonic_mean, one difference a seed; other searched values are matched. "
        "p is the exact two-sided sign-flip test; “smallest p” is 2 / 2ⁿ, the least this n can "
        "reach whatever the data. The verdict is at Holm-adjusted p < 0.05 over these rows. Seeds "
        "vary the student's start and the order of images, not the teacher and not the split: the "
        "intervals cover no more than that."
    )
    return join([table(head, rows), paragraph(note, class_="caution")])


def cost_lines(arms: pl.DataFrame, provenance: Mapping[str, Any]) -> list[str]:
    """Time in sentences: the search, its rate, and what the teacher bank spared."""
    stages = provenance.get("stages") or {}
    spent = float(arms["seconds"].sum() or 0.0)
    search = stages.get("search") or 0.0
    lines = []
    if search:
        rate = 3600 * len(arms) / search
        lines.append(
            f"The search took {duration(search)} for {len(arms)} arms: {rate:.3g} arms an hour. "
            f"Their own times add up to {duration(spent)}."
        )
    elif spent:
        lines.append(
            f"{len(arms)} arms took {duration(spent)} in all, {3600 * len(arms) / spent:.3g} an hour."
        )
    saved = float(arms["teacher_seconds_saved"].sum() or 0.0)
    if saved:
        bank = stages.get("bank")
        price = "" if not bank else f" It took {duration(bank)} to build."
        lines.append(f"The teacher bank spared {duration(saved)} of teacher forward passes.{price}")
    if provenance.get("peak_memory_bytes"):
        lines.append(f"Peak memory: {provenance['peak_memory_bytes'] / 2**30:.3g} GiB.")
    return lines


def provenance_tables(provenance: Mapping[str, Any]) -> Html:
    """Every recorded fact, a row for each key; long lists are folded away below."""
    rows: list[list[object]] = []
    folded = []
    for key, value in provenance.items():
        facts = value if isinstance(value, Mapping) else {"": value}
        for name, fact in facts.items():
            if isinstance(fact, list) and len(fact) > FOLD:
                words = ", ".join(str(item) for item in fact)
                folded.append(details(f"{key}.{name} ({len(fact)})", paragraph(words)))
        known = [_fact(key, name, fact) for name, fact in facts.items()]
        if any(known) and key != "notes":
            rows.append([breakable(key), " · ".join(filter(None, known))])
    if not rows:
        return join([paragraph("Nothing was recorded.", class_="none"), *folded])
    return join([table(["what", "value"], rows, words=2, class_="facts"), *folded])


def _fact(key: str, name: str, value: object) -> str:
    """`name value`, or nothing for what is unknown, empty or folded."""
    if value in (None, "", []) or (isinstance(value, list) and len(value) > FOLD):
        return ""
    words = shown(value)
    if isinstance(value, list):
        words = ", ".join(map(str, value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if key == "stages" or key.endswith("seconds"):
            words = duration(value)
        elif key.endswith("_bytes"):
            words = f"{value / 2**30:.3g} GiB"
    return f"{name} {words}".strip()
