"""The report's plain facts: what an arm failed of, what time went into, and where numbers come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from comkd_ray.arms import searched_keys
from comkd_ray.findings import Findings
from comkd_ray.markup import Html, breakable, details, join, paragraph, table, tag
from comkd_ray.words import duration, plain_count, shown

DEMO_NOTICE = (
    "demo weights (ImageNet + MiniLM joint space), not CLIP: the numbers show that the tool works; they say "
    "nothing about CLIP or about the paper."
)
FAILURES = 20
"""Failed arms listed."""
FOLD = 4
"""Longer lists of the provenance open on a click."""


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
        values = [f"{key} {shown(row[key])}" for key in keys if key in (row["searched"] or ())]
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


def cost_lines(arms: pl.DataFrame, provenance: Mapping[str, Any]) -> list[str]:
    """Time in sentences: the search, its rate, and the peak of memory. arms: those trained in this run."""
    stages = provenance.get("stages") or {}
    spent = float(arms["seconds"].sum() or 0.0)
    search = stages.get("search") or 0.0
    lines = []
    if search:
        rate = 3600 * len(arms) / search
        lines.append(
            f"The search took {duration(search)} for {len(arms)} arms: {plain_count(rate)} arms an hour. "
            f"Their own times add up to {duration(spent)}."
        )
    elif spent:
        rate = 3600 * len(arms) / spent
        lines.append(f"{len(arms)} arms took {duration(spent)} in all, {plain_count(rate)} an hour.")
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
