"""One page over the runs of an ablation on several materials: data sets, draws of the shots, teachers.

    reports/<name>/joint.json               which runs belong together
    reports/<name>/<material>/report.html   each material's own report
    reports/<name>/report.html              this one

A material counts once: its seeds are averaged first. Settings are compared at the fixed knobs of each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from comkd_ray.across_datasets import Ranks, Scores, rank, scores_of
from comkd_ray.arms import full_budget
from comkd_ray.cd_plots import cd_plot
from comkd_ray.claims import at_values
from comkd_ray.designs import setting_names, settings
from comkd_ray.document import Section, document
from comkd_ray.errors import UserError
from comkd_ray.markup import Html, join, paragraph, tag
from comkd_ray.report_figures import figure
from comkd_ray.report_tables import explained_table, plain_table, titled
from comkd_ray.results import JOINT, write_atomic
from comkd_ray.run import Run, read
from comkd_ray.stats import estimate
from comkd_ray.tables import Table, spread
from comkd_ray.words import counted, signed


class Joined(NamedTuple):
    """The runs that have arms, and the scores of settings that all of them have."""

    runs: dict[str, Run]
    """By material."""
    names: list[str]
    """Of the settings, the reference first."""
    rows: pl.DataFrame
    """`material`, `setting`, `score` (percent): one row an arm."""
    missing: list[str]
    """Materials without a score yet."""


def announce(folder: Path, materials: Sequence[str]) -> None:
    """Name the runs that belong together, before any of them begins."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / JOINT, json.dumps({"materials": list(materials)}, indent=1).encode())


def is_joint(folder: Path) -> bool:
    """Whether a folder holds runs that are reported together."""
    return (folder / JOINT).is_file()


def build(folder: Path) -> Path:
    """Write `folder`/report.html from the runs in it; its path. UserError without any arm."""
    target = folder / "report.html"
    write_atomic(target, page(folder.name, read_runs(folder)).encode())
    return target


def read_runs(folder: Path) -> Joined:
    """The runs that joint.json names. UserError where none has arms, or where they do not belong together."""
    try:
        names = list(json.loads((folder / JOINT).read_text(encoding="utf-8"))["materials"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / JOINT}: missing or damaged; the same ablation makes it again") from None
    runs: dict[str, Run] = {}
    for name in names:
        if (folder / name / "results").is_dir():
            runs[name] = read(folder / name)
    if not runs:
        raise UserError(f"{folder}: none of {', '.join(names)} has arms yet; run `comkd-ray ablate` first")
    kinds = {run.scores for run in runs.values()}
    called = {tuple(setting_names(run.study)) for run in runs.values() if run.study is not None}
    if len(kinds) > 1 or len(called) != 1:
        raise UserError(
            f"{folder}: its runs differ in protocol, selection or settings, so nothing joins them"
        )
    rows = pl.concat([_rows(name, run) for name, run in runs.items()])
    found = set(rows["material"])
    return Joined(runs, list(*called), rows, [name for name in names if name not in found])


def _rows(material: str, run: Run) -> pl.DataFrame:
    """Scores of every setting at fixed knobs, one row a full-budget arm."""
    assert run.study is not None
    score = run.scores.headline
    arms = full_budget(run.fixed).drop_nulls([score])
    parts = [
        at_values(arms, setting).select(
            pl.lit(material).alias("material"), pl.lit(name).alias("setting"), pl.col(score).alias("score")
        )
        for name, setting in zip(setting_names(run.study), settings(run.study), strict=True)
    ]
    return pl.concat(parts)


def complete_scores(joined: Joined) -> Scores | None:
    """Materials that have every setting; None for fewer than two of them."""
    filled = joined.rows.group_by("material").agg(pl.col("setting").n_unique())
    whole = filled.filter(pl.col("setting") == len(joined.names))["material"]
    if len(whole) < 2:
        return None
    return scores_of(
        joined.rows.filter(pl.col("material").is_in(whole.implode())), "material", "setting", "score"
    )


def page(name: str, joined: Joined) -> str:
    """The whole document."""
    run = next(iter(joined.runs.values()))
    kind = paragraph(f"comkd-ray ablation over {counted(len(joined.runs), 'material')}", class_="kind")
    return document(name, kind, [_result(joined, run), *_ranks(joined), _sources(joined)])


def _result(joined: Joined, run: Run) -> Section:
    content = [
        paragraph(line, class_="notice")
        for line in [run.scores.warning, *(f"{name} has no score yet." for name in joined.missing)]
        if line
    ]
    shown = plain_table(scores_table(joined))
    note = (
        "Mean \u00b1 sd (ddof = 1) over the seeds of each material, full-budget arms at fixed knobs. What "
        "seeds vary is the student's start and the order of images; what materials vary stands below."
    )
    content += [titled(f"{run.scores.name} (%)", run.scores), shown, paragraph(note, class_="caution")]
    return "result", "Result", join(content)


def scores_table(joined: Joined) -> Table:
    """Materials by settings, and each setting's mean difference to the first."""
    lines = []
    for material in joined.runs:
        own = joined.rows.filter(pl.col("material") == material)
        values = [own.filter(pl.col("setting") == name)["score"].to_list() for name in joined.names]
        lines.append([material, *(spread(estimate(one)) for one in values)])
    found = complete_scores(joined)
    if found is not None:
        means = found.values.mean(axis=0)
        places = [found.methods.index(name) for name in joined.names]
        first = means[places[0]]
        gaps = [f"{means[place]:.2f} ({signed(float(means[place] - first), 2)})" for place in places]
        lines.append([f"mean of {counted(len(found.datasets), 'material')} (minus the first)", *gaps])
    return Table(["material", *joined.names], lines)


def _ranks(joined: Joined) -> list[Section]:
    """Average ranks and tests over materials."""
    found = complete_scores(joined)
    if found is None or len(joined.names) < 2:
        return []
    ranks = rank(found)
    drawn = figure(
        "ranks",
        lambda: cd_plot(ranks),
        "Average rank of each setting over the materials. A bar joins settings of which no pair differs by "
        "Wilcoxon's signed-rank test with Holm's correction.",
    )
    lines = [paragraph(line, class_="caution") for line in ranks_notes(ranks)]
    pairs = plain_table(pairs_table(ranks))
    return [("ranks", "Ranks", join([drawn, tag("h3", "Pairs of settings"), pairs, *lines]))]


def pairs_table(ranks: Ranks) -> Table:
    """Wilcoxon's test of every pair over the materials."""
    rows = [
        [
            f"{pair.first} minus {pair.second}",
            signed(pair.mean_difference, 2),
            f"{pair.wins} of {ranks.datasets}",
            *(f"{p:.3g}" for p in (pair.p, ranks.smallest_p, pair.p_holm)),
        ]
        for pair in ranks.pairs
    ]
    return Table(["pair, points", "mean", "wins", "Wilcoxon p", "smallest p", "p (Holm)"], rows)


def ranks_notes(ranks: Ranks) -> list[str]:
    """How the tests are to be read."""
    asked = (
        "" if ranks.friedman is None else f"Friedman's test of all settings: p = {ranks.friedman[1]:.3g}. "
    )
    return [
        f"{asked}A material counts once. With {counted(ranks.datasets, 'material')} no pair can have a p "
        f"below {ranks.smallest_p:.3g}. The tests take materials for independent: data sets are, draws of "
        "one data set and teachers of one pair are only in what they draw."
    ]


def _sources(joined: Joined) -> Section:
    parts: list[Html] = []
    for name, run in joined.runs.items():
        link = tag("a", "its own report", href=f"{name}/report.html")
        parts += [tag("h3", name), paragraph(link), explained_table(run.explained())]
    return "materials", "Materials", join(parts)
