"""A study's tables as Markdown, for a page of results or an issue: what the HTML report says, shorter."""

from __future__ import annotations

from comkd_ray.arms import is_seeded_grid, paired_by_seed
from comkd_ray.published_gap import comparison
from comkd_ray.reference_rows import reference_rows, remarks
from comkd_ray.run import Run
from comkd_ray.tables import Table, paired_table, published_table, reference_table


def tables(run: Run) -> str:
    """What was tested on what, the eight rows, differences paired by seed, and the published numbers."""
    rows = reference_rows(run.arms, run.study)
    parts = ["\n".join(f"- {what}: {words}" for what, words in run.explained())]
    if run.scores.warning:
        parts.append(f"**All scores of arms: {run.scores.warning}.**")
    parts += [_table(reference_table(rows, run.scores)), *remarks(run.arms, run.study, rows)]
    if is_seeded_grid(run.arms, run.sampler):
        parts.append(_table(paired_table(paired_by_seed(run.arms, run.scores.headline), run.scores)))
    found = comparison(run.study, run.images.get("test"), rows)
    if found.gaps:
        parts.append(_table(published_table(found.gaps, run.scores)))
    return "\n\n".join([*parts, *found.words])


def _table(table: Table) -> str:
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
