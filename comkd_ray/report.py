"""One offline HTML file that says what a study found, how sure that is, and what it cost.

    from comkd_ray import report; report.build(Path("reports/quickstart"))

Reads results/*.parquet, study.yaml and provenance.json of a run, and nothing else: any machine can
rebuild a report. The file carries its own plotly.js, and its content policy forbids every request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
import polars as pl
from plotly.offline import get_plotlyjs

from comkd_ray import cost_plots, plots, search_plots, study_file
from comkd_ray.config import Study
from comkd_ray.errors import UserError
from comkd_ray.figure import DASH, NoFigure
from comkd_ray.findings import Findings, findings, sentences
from comkd_ray.markup import Html, details, join, paragraph, tag, text
from comkd_ray.report_tables import (
    arms_by_status,
    compared_table,
    cost_lines,
    failed_table,
    module_table,
    paired_table,
    provenance_tables,
    tiles,
    top_table,
)
from comkd_ray.results import EPOCHS, read_arms, read_epochs, write_atomic
from comkd_ray.stats import has_modules, searched_keys

Provenance = Mapping[str, Any]

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


class Run(NamedTuple):
    """All a report is made of."""

    name: str
    arms: pl.DataFrame
    epochs: pl.DataFrame
    study: Study | None
    study_text: str
    """study.yaml as it stands; empty where there is none."""
    provenance: Provenance
    troubles: list[str]
    """What could not be read, a line each."""


def build(run: Path) -> Path:
    """Write `run`/report.html from the tables of `run`; its path. UserError without arms."""
    target = run / "report.html"
    write_atomic(target, page(read(run)).encode())
    return target


def read(run: Path) -> Run:
    """The tables and files of a run; only the `arms` table has to be there."""
    arms, troubles = read_arms(run), []
    try:
        epochs = read_epochs(run)
    except UserError:
        epochs = pl.DataFrame(schema=EPOCHS)
    study, study_path, study_text = None, run / "study.yaml", ""
    if study_path.exists():
        study_text = study_path.read_text(encoding="utf-8", errors="replace")
        try:
            study = study_file.load(study_path)
        except UserError as error:
            troubles.append(f"study.yaml does not fit this version: {error}")
    else:
        troubles.append("study.yaml is missing: ranges of the search are taken from the rows.")
    provenance: Provenance = {}
    try:
        found = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
        provenance = found if isinstance(found, dict) else {}
    except FileNotFoundError:
        troubles.append("provenance.json is missing: versions, machine and hashes are unknown.")
    except ValueError:
        troubles.append("provenance.json is no valid JSON: versions, machine and hashes are unknown.")
    name = study.study if study is not None else run.resolve().name
    return Run(name, arms, epochs, study, study_text, provenance, troubles)


def page(run: Run) -> str:
    """The whole document."""
    sections = [
        _headline(run),
        *_search(run),
        _modules(run),
        *_method(run),
        _cost(run),
        _source(run),
    ]
    links = [tag("a", title, href=f"#{ident}") for ident, title, _ in sections]
    body = [tag("section", tag("h2", title), content, id=ident) for ident, title, content in sections[1:]]
    head = tag("header", tag("h1", run.name), _note(run), tag("nav", join(links, " ")))
    first = tag("section", sections[0][2], id=sections[0][0])
    return join(
        [
            Html("<!doctype html>"),
            Html('<html lang="en">'),
            Html('<head><meta charset="utf-8">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html('<meta name="color-scheme" content="light dark">'),
            tag("title", f"{run.name} {DASH} comkd-ray"),
            tag("style", Html(_shipped("report.css"))),
            tag("script", Html(get_plotlyjs())),
            Html("</head>"),
            tag("body", head, tag("main", first, *body), tag("script", Html(_shipped("report.js")))),
            Html("</html>\n"),
        ]
    )


def _shipped(name: str) -> str:
    return (files("comkd_ray") / name).read_text(encoding="utf-8")


Section = tuple[str, str, Html]
"""Identifier, title, content."""


def figure(ident: str, make: Callable[[], go.Figure], caption: object, columns: int = 0) -> Html:
    """A figure with its data embedded, or the one line why there is none.

    `columns` > 0 keeps that many columns readable: the figure scrolls sideways in its own box.
    """
    try:
        data = make().to_json().replace("<", "\\u003c")
    except NoFigure as reason:
        return paragraph(str(reason), class_="none")
    width = f"min-width: {columns * 6.6:.0f}rem" if columns else ""
    spec = Html(f'<script type="application/json">{data}</script>')
    plot = tag("div", spec, class_="plot", id=f"plot-{ident}", style=width)
    return tag("figure", tag("div", plot, class_="scroll"), tag("figcaption", caption))


def _note(run: Run) -> Html:
    note = run.study.note if run.study is not None else ""
    finished = str(run.provenance.get("finished") or run.provenance.get("created") or "")[:10]
    kind = f"comkd-ray study{', ' * bool(finished)}{finished}"
    return join([paragraph(kind, class_="kind"), paragraph(note, class_="note") if note else ""])


def _headline(run: Run) -> Section:
    found = findings(run.arms, _sampler(run))
    words = [paragraph(line, class_="lead" if k == 0 else "") for k, line in enumerate(sentences(found))]
    best = Html("")
    if found.compared:
        best = join(
            [
                compared_table(found.compared),
                tag("h3", "Best arms by val_harmonic_mean"),
                top_table(run.arms),
            ]
        )
    content = [_notices(run), *words, tiles(found, run.provenance), _remarks(run, found), best]
    return "result", "Result", join([*content, failed_table(run.arms)])


def _sampler(run: Run) -> str | None:
    return run.study.search.sampler if run.study is not None else None


def _notices(run: Run) -> Html:
    """What the reader has to know before the first number."""
    lines = []
    if run.provenance.get("demo_weights"):
        lines.append(
            "demo weights (ImageNet + MiniLM joint space), not CLIP: the numbers show that the "
            "tool works; they say nothing about CLIP or about the paper."
        )
    if run.provenance.get("sample"):
        lines.append("A sample that ships with the source; the command under Provenance makes it again.")
    return join(paragraph(line, class_="notice") for line in (*lines, *run.troubles))


def _remarks(run: Run, found: Findings) -> Html:
    """What qualifies the numbers, a line each."""
    lines = [arms_by_status(found, run.provenance.get("arms_asked"))]
    data = run.provenance.get("data") or {}
    if data.get("test"):
        one = 100 / data["test"]
        lines.append(f"The test split has {data['test']} images: one image is {one:.2g} points or more.")
    best = found.best
    if best is not None and (best["epochs_done"] or 0) > 1 and best["best_epoch"] == best["epochs_done"]:
        lines.append("The best arm was best in its last epoch: more train.epochs may still help.")
    lines += [str(line) for line in run.provenance.get("notes") or ()]
    return tag("ul", *(tag("li", line) for line in lines))


def _search(run: Run) -> list[Section]:
    space = run.study.search.space if run.study is not None else {}
    arms = run.arms
    axes = len(searched_keys(arms)) + 1
    history = figure(
        "history",
        lambda: search_plots.history_plot(search_plots.history_info(arms, space)),
        "Validation score in the order in which the search asked for the arms. Hollow arms left "
        "early, with a smaller budget; they never count as best.",
    )
    parallel = figure(
        "parallel",
        lambda: search_plots.parallel_plot(search_plots.parallel_info(arms, space)),
        "Full-budget arms, one line each: the stronger and bluer, the higher its score. "
        "“None” marks a key that is not searched under the other values of the arm.",
        columns=axes,
    )
    importance = figure(
        "importance",
        lambda: search_plots.importance_plot(search_plots.importance_info(arms, space)),
        "How far each key separates the best full-budget arms from the rest (PED-ANOVA). This is "
        "no ablation verdict: it depends on the ranges searched and on where the sampler looked, "
        "and a module that helps everywhere by half a point can rank last. See the modules below.",
    )
    return [
        ("history", "Search history", history),
        ("parallel", "Parallel coordinates", parallel),
        ("importance", "Importance", importance),
    ]


def _modules(run: Run) -> Section:
    found = findings(run.arms, _sampler(run))
    drawn = figure(
        "modules",
        lambda: plots.modules_plot(plots.modules_info(run.arms)),
        "Every arm is a point; the bar is the mean of the full-budget arms with its 95 % "
        "t-interval (ddof = 1). Test labels took no part in the search.",
    )
    parts: list[Html] = [drawn]
    if found.best is not None and has_modules(run.arms):
        parts.append(module_table(run.arms))
    if found.paired:
        parts += [tag("h3", "Paired by seed: each cell minus both off"), paired_table(found.paired)]
    elif found.best is not None:
        parts.append(
            paragraph(
                "The arms of these cells were chosen by the search: cells are not balanced and "
                "their other values differ, so a difference between means is no effect of a "
                "module. A grid with train.seed in its space gives paired differences here.",
                class_="caution",
            )
        )
    return "modules", "IFAlign \u00d7 EduAttention", join(parts)


def _method(run: Run) -> list[Section]:
    curves = figure(
        "curves",
        lambda: plots.curves_plot(plots.curves_info(run.arms, run.epochs)),
        "One line an arm; pruned arms end early. The loss is a sum of weighted terms, so arms with "
        "other loss weights or temperatures cannot be compared by it.",
    )
    size = figure(
        "size",
        lambda: cost_plots.size_plot(cost_plots.size_info(run.arms)),
        "Full-budget arms against the parameters they train and those that run at inference (image "
        "tower, prompts, projector, EduAttention). Zero-shot stands at total minus trainable. The "
        "front is drawn after the search, on test scores, to describe; it chose nothing.",
    )
    return [("curves", "Learning curves", curves), ("size", "Accuracy and size", size)]


def _cost(run: Run) -> Section:
    stages = run.provenance.get("stages") or {}
    drawn = figure(
        "cost",
        lambda: cost_plots.cost_plot(cost_plots.cost_info(run.arms, stages)),
        "Above, wall time of each arm: its share of the cohort it trained in. Below, wall time of "
        "each stage.",
    )
    lines = [paragraph(line) for line in cost_lines(run.arms, run.provenance)]
    return "cost", "Cost", join([*lines, drawn])


def _source(run: Run) -> Section:
    shown = _without_home(run.study_text)
    parts: list[object] = [provenance_tables(_plain(run.provenance))]
    if shown:
        parts.append(details("study.yaml, resolved", tag("pre", shown)))
    parts.append(
        paragraph(
            "All numbers on this page come from results/arms/*.parquet and "
            "results/epochs/*.parquet beside it.",
        )
    )
    return "provenance", "Provenance", join([text(part) for part in parts])


def _plain(value: Any) -> Any:
    """Provenance without the path of anybody's home."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return _without_home(value) if isinstance(value, str) else value


def _without_home(words: str) -> str:
    home = str(Path.home())
    return words.replace(home, "~") if len(home) > 1 else words
