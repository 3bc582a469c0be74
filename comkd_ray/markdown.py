"""A study's tables as Markdown, for a page of results or an issue: what the HTML report says, shorter."""

from __future__ import annotations

from comkd_ray.arms import full_budget
from comkd_ray.collapse import among, tally
from comkd_ray.components import components
from comkd_ray.main_effects import further_effects
from comkd_ray.pairing import is_seeded_grid, paired_by_seed
from comkd_ray.published_gap import comparison
from comkd_ray.reference_rows import reference_rows, remarks
from comkd_ray.report_facts import DEMO_NOTICE
from comkd_ray.run import Run
from comkd_ray.tables import (
    FLAG_NOTE,
    Table,
    components_notes,
    effects_notes,
    effects_of,
    effects_table,
    paired_notes,
    paired_table,
    published_table,
    reference_table,
    shapley_table,
    variants_notes,
    variants_table,
)
from comkd_ray.variants import variants


def tables(run: Run) -> str:
    """What was tested on what, the eight rows, variants, differences, effects, and published numbers."""
    rows = reference_rows(run.arms, run.study)
    parts = ["\n".join(f"- {what}: {words}" for what, words in run.explained())]
    if run.is_demo:
        parts.append(f"**{DEMO_NOTICE}**")
    if run.scores.warning:
        parts.append(f"**All scores of arms: {run.scores.warning}.**")
    parts += _flags(run)
    parts += [as_markdown(reference_table(rows, run.scores)), *remarks(run.arms, run.study, rows)]
    parts += [*_differences(run), *_components(run)]
    found = comparison(run.study, run.data, rows)
    if found.gaps:
        parts.append(as_markdown(published_table(found.gaps, run.scores)))
    return "\n\n".join([*parts, *found.words])


def _flags(run: Run) -> list[str]:
    """How many full-budget arms collapsed or peaked at once, and how they are treated."""
    flags = among(run.arms).flags
    return (
        [f"**Of {len(full_budget(run.arms))} full-budget arms {tally(flags)}.** {FLAG_NOTE}"] if flags else []
    )


def _differences(run: Run) -> list[str]:
    """Variants against the first, methods against the 2x2's both-off, and how to read each."""
    arms, scores = run.fixed, run.scores
    parts: list[str] = []
    if (found := variants(arms, run.enumerated, run.rule)) is not None:
        parts += [as_markdown(variants_table(found, scores)), *variants_notes(found, scores)]
        parts += paired_notes(scores, run.rule)
    paired = paired_by_seed(arms, scores.headline, run.rule) if is_seeded_grid(arms, run.enumerated) else []
    if paired:
        parts += [as_markdown(paired_table(paired, scores)), *paired_notes(scores, run.rule.of_methods)]
    return parts


def _components(run: Run) -> list[str]:
    """What each module is worth, where the study is a full factorial, and each factor of an ablation."""
    parts = []
    if further := further_effects(run.fixed, run.study, run.enumerated):
        parts += [as_markdown(effects_of(further, run.scores)), *effects_notes(run.rule)]
    found = components(run.fixed, run.study, run.enumerated)
    if found is not None:
        parts += [as_markdown(made(found, run.scores)) for made in (effects_table, shapley_table)]
        parts += components_notes(found, run.rule)
    return parts


def as_markdown(table: Table) -> str:
    """A table in pipes."""
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
