"""Two views of the search: history and parallel coordinates. They are Optuna's own, over a rebuilt study."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import optuna
import plotly.graph_objects as go
import polars as pl
from plotly.colors import sample_colorscale

from comkd_ray.arms import full_budget, scores_of, searched_keys
from comkd_ray.collapse import FLAG, flagged
from comkd_ray.figure import BLUE, GREY, INK, MUTED, ORANGE, RED, NoFigure, dress, hover, rings, symbols
from comkd_ray.protocols import OBJECTIVE
from comkd_ray.search_study import Space, quiet, rebuild_study

LINE_SCALE = [[0.0, "#b9a58a"], [0.5, "#8f98a3"], [1.0, "#1f83e0"]]
"""Low to high, readable on white and on black, and by blue-blind readers through lightness."""


def objective_label(arms: pl.DataFrame) -> str:
    """What the search maximised, as an axis names it."""
    scores = scores_of(arms)
    return scores.axis(scores.objective)


class HistoryInfo(NamedTuple):
    """Optuna's study with the arms it leaves out: those pruned (at their own budget) or failed."""

    label: str
    study: optuna.Study
    numbers: list[int]
    """`number` of every trial: the search may have gaps, Optuna's numbers have none."""
    hovers: list[str]
    pruned: list[int]
    failed: list[int]
    pruned_values: list[float | None]
    marks: list[str]
    """Flag of every trial's arm, or empty (`collapse.py`)."""


def history_info(arms: pl.DataFrame, space: Space) -> HistoryInfo:
    """What the history needs. NoFigure where no arm reached its full budget."""
    if full_budget(arms).is_empty():
        raise NoFigure("No arm reached its full budget, so there is no history of best values.")
    keys = searched_keys(arms)
    rows = list(flagged(arms).iter_rows(named=True))
    pruned = [index for index, row in enumerate(rows) if row["status"] == "pruned"]
    failed = [index for index, row in enumerate(rows) if row["status"] == "failed"]
    return HistoryInfo(
        objective_label(arms),
        rebuild_study(arms, space),
        [row["number"] for row in rows],
        [hover(row, keys) for row in rows],
        pruned,
        failed,
        [rows[index][OBJECTIVE] for index in pruned],
        [row[FLAG] for row in rows],
    )


def history_plot(info: HistoryInfo) -> go.Figure:
    """Value over arms with best so far; pruned arms hollow, failed ones crosses at the bottom."""
    with quiet():
        figure = optuna.visualization.plot_optimization_history(info.study, target_name=info.label)
    marked: list[go.Scatter] = []
    for trace in figure.data:
        indices = [int(x) for x in trace.x]
        trace.x = [info.numbers[index] for index in indices]
        if trace.mode == "markers":
            trace.update(marker={"color": BLUE, "size": 8}, name="full budget")
            trace.update(text=[info.hovers[index] for index in indices])
            trace.update(hovertemplate=f"%{{text}}<br>{info.label}: %{{y:.2f}}<extra></extra>")
            marked += rings(trace.x, trace.y, [info.marks[index] for index in indices])
        else:
            trace.update(line={"color": ORANGE, "width": 2, "shape": "hv"}, name="best so far")
            trace.y = [None if y is None or math.isinf(y) else y for y in trace.y]
    figure.data = [trace for trace in figure.data if trace.showlegend is not False]
    figure.add_traces(marked)
    if info.pruned:
        figure.add_scatter(**_left_early(info))
    if info.failed:
        figure.add_scatter(**_failures(info, figure))
    dress(figure, 380).update_layout(xaxis_title_text="arm (number)", yaxis_title_text=info.label)
    return figure


def _left_early(info: HistoryInfo) -> dict[str, Any]:
    return {
        "x": [info.numbers[index] for index in info.pruned],
        "y": info.pruned_values,
        "text": [info.hovers[index] for index in info.pruned],
        "mode": "markers",
        "name": "pruned (smaller budget)",
        "marker": {"color": GREY, "symbol": symbols(["pruned"])[0], "size": 8},
        "hovertemplate": "%{text}<br>when pruned: %{y:.2f}<extra></extra>",
    }


def _failures(info: HistoryInfo, figure: go.Figure) -> dict[str, Any]:
    values = [y for trace in figure.data for y in trace.y if y is not None]
    return {
        "x": [info.numbers[index] for index in info.failed],
        "y": [min(values)] * len(info.failed),
        "text": [info.hovers[index] for index in info.failed],
        "mode": "markers",
        "name": "failed (no value)",
        "marker": {"color": RED, "symbol": symbols(["failed"])[0], "size": 9},
        "hovertemplate": "%{text}<extra></extra>",
    }


FLAGS = {"True": "true", "False": "false", "None": "off"}
"""Optuna's words, and ours: flags as in a study file, and keys that an arm does not have active."""


class ParallelInfo(NamedTuple):
    """A study of full-budget arms and the names of its axes, in Optuna's order."""

    study: optuna.Study
    labels: list[str]
    marks: list[str]
    """Flag of every arm, or empty (`collapse.py`)."""


def parallel_info(arms: pl.DataFrame, space: Space) -> ParallelInfo:
    """What the parallel coordinates need. NoFigure for fewer than two arms or no searched key."""
    rows = full_budget(arms)
    if len(rows) < 2:
        raise NoFigure(f"Parallel coordinates need two full-budget arms; there are {len(rows)}.")
    study = rebuild_study(rows, space)
    keys = sorted({key for trial in study.get_trials(deepcopy=False) for key in trial.params})
    if not keys:
        raise NoFigure("No key was searched, so there is nothing to draw in parallel.")
    marks = flagged(rows)[FLAG].to_list()
    return ParallelInfo(study, [f"{scores_of(arms).objective} (%)", *keys], marks)


def parallel_plot(info: ParallelInfo) -> go.Figure:
    """One line an arm through its values: Optuna's, in colours for both schemes, names whole.

    Flagged arms are red and dashed.
    """
    with quiet():
        figure = optuna.visualization.plot_parallel_coordinate(info.study, target_name=info.labels[0])
    marks = iter(info.marks)  # Optuna draws the trials in their order
    for trace in figure.data:
        if trace.mode == "lines":
            high = min(1.0, max(0.0, float(trace.y[0])))  # the first axis is the value, 0 to 1
            trace.update(line={"color": sample_colorscale(LINE_SCALE, [high])[0]})
            trace.update(line_width=1.2 + 1.6 * high, opacity=0.75 + 0.25 * high)
            if next(marks):
                trace.update(line={"color": RED, "dash": "dash"}, opacity=0.9)
        else:
            trace.marker.update(colorscale=LINE_SCALE, showscale=False)
    dress(figure, 450).update_layout(margin_r=64)  # names stand clear of the buttons
    score, _, last = info.labels[0].rpartition("_")  # whole, it would stick out on the left and be hidden
    names = [f"{score}_<br>{last}", *(label.replace(".", ".<br>") for label in info.labels[1:])]
    figure.update_xaxes(
        ticktext=[name.replace(" ", "<br>") for name in names],
        side="top",
        showline=False,
        tickangle=0,
        range=(-0.45, len(info.labels) - 0.8),
    )
    figure.update_shapes(line_color=MUTED)
    figure.update_annotations(font={"color": INK, "size": 11})
    figure.for_each_annotation(lambda note: note.update(text=FLAGS.get(note.text, note.text)))
    return figure
