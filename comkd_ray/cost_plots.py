"""What the accuracy takes: parameters against the references, seconds by arm and by stage.

Pairs of `x_info` and `x_plot`, as in plots.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from comkd_ray.arms import METHODS, Method, full_budget, has_modules, method_of, scores_of, searched_keys
from comkd_ray.collapse import FLAG, flagged
from comkd_ray.figure import (
    BLUE,
    GREY,
    INK,
    MUTED,
    ORANGE,
    RED,
    NoFigure,
    dress,
    hover,
    rings,
    style,
    symbols,
)
from comkd_ray.reference_rows import REFERENCES, reference_score
from comkd_ray.stats import pareto


class Point(NamedTuple):
    """A model in the plane of size and accuracy: parameters, and its headline test score in percent."""

    label: str
    trainable: int | None
    total: int | None
    score: float
    method: Method | None
    mark: str = ""
    """Flag of the arm, or empty (`collapse.py`)."""


class SizeInfo(NamedTuple):
    """Full-budget arms and the references they are read against."""

    axis: str
    arms: list[Point]
    references: list[Point]
    front_trainable: list[int]
    front_total: list[int]
    """Indices into `arms`: no other arm is both smaller and better."""


def size_info(arms: pl.DataFrame) -> SizeInfo:
    """Accuracy against parameters. Zero-shot stands at the tower alone: total minus trainable."""
    scores_here = scores_of(arms)
    score = scores_here.headline
    needed = [score, "trainable_parameters", "total_parameters"]
    rows = full_budget(arms).drop_nulls(needed)
    if rows.is_empty():
        raise NoFigure("No full-budget arm has a test score and its parameters counted.")
    keys, flags = searched_keys(arms), has_modules(arms)
    points = [
        Point(
            hover(row, keys),
            row["trainable_parameters"],
            row["total_parameters"],
            row[score],
            method_of(row) if flags else None,
            row[FLAG],
        )
        for row in flagged(rows).iter_rows(named=True)
    ]
    first = rows.row(0, named=True)
    tower = min(point.total - point.trainable for point in points)  # type: ignore[operator]
    teacher = first["teacher_parameters"]
    references = []
    for name, prefix in REFERENCES.items():
        trainable, total = (0, tower) if name == "student zero-shot" else (None, teacher)
        found = reference_score(arms, prefix, score)
        if found is not None:
            references.append(Point(name, trainable, total, found, None))
    scores = [point.score for point in points]
    return SizeInfo(
        scores_here.axis(score),
        points,
        references,
        pareto([point.trainable or 0 for point in points], scores),
        pareto([point.total or 0 for point in points], scores),
    )


def size_plot(info: SizeInfo) -> go.Figure:
    """Trainable parameters above; below, all parameters that run at inference, on a log axis."""
    figure = make_subplots(rows=2, cols=1, vertical_spacing=0.17)
    seen: set[str] = set()
    fronts = (1, "trainable", info.front_trainable), (2, "total", info.front_total)
    first_line = next((row for row, _, front in fronts if len(front) > 1), None)  # one point is no line
    for row, field, front in fronts:
        chosen = [info.arms[index] for index in front]
        figure.add_scatter(
            x=[getattr(point, field) for point in chosen],
            y=[point.score for point in chosen],
            mode="lines",
            line={"color": ORANGE, "width": 1.5, "shape": "hv"},
            name="Pareto front of the arms",
            showlegend=row == first_line,
            hoverinfo="skip",
            row=row,
            col=1,
        )
        for trace in _points(info, field, seen):
            figure.add_trace(trace, row=row, col=1)
        marked = [point for point in info.arms if point.mark and getattr(point, field)]
        for ring in rings(
            [getattr(point, field) for point in marked],
            [point.score for point in marked],
            [point.mark for point in marked],
        ):
            figure.add_trace(ring.update(showlegend=row == 1), row=row, col=1)
    dress(figure, 620)
    figure.update_yaxes(title_text=info.axis)
    figure.update_xaxes(title_text="trainable_parameters", rangemode="tozero", row=1, col=1)
    sizes = [point.total for point in (*info.arms, *info.references) if point.total]
    figure.update_xaxes(
        title_text="total_parameters (log)",
        type="log",
        tickvals=_log_ticks(min(sizes), max(sizes)),
        tickformat="~s",
        row=2,
        col=1,
    )
    return figure


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times the powers of ten around a range; all digits where it is less than a decade."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if high / low > 5 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    return [digit * 10.0**decade for decade in decades for digit in digits]


def _points(info: SizeInfo, field: str, seen: set[str]) -> list[go.Scatter]:
    """One trace a cell and one a reference; names in `seen` are already in the legend."""
    groups: dict[str, tuple[list[Point], str, str]] = {}
    for point in info.arms:
        color, symbol = style(point.method) if point.method else (BLUE, "circle")
        name = METHODS[point.method] if point.method else "arm"
        groups.setdefault(name, ([], color, symbol))[0].append(point)
    for point in info.references:
        symbol = "star" if "teacher" in point.label else "cross"
        color = MUTED if point.label == "teacher zero-shot" else INK
        if getattr(point, field) is not None:
            groups[point.label] = ([point], color, symbol)
    traces = [
        go.Scatter(
            x=[getattr(point, field) for point in points],
            y=[point.score for point in points],
            text=[point.label for point in points],
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 10, "opacity": 0.85},
            cliponaxis=False,
            name=name,
            legendgroup=name,
            showlegend=name not in seen,
            hovertemplate="%{text}<br>%{x:,} parameters: %{y:.2f} %<extra></extra>",
        )
        for name, (points, color, symbol) in groups.items()
    ]
    seen.update(groups)
    return traces


class CostInfo(NamedTuple):
    """Where the time went, in seconds of wall time."""

    numbers: list[int]
    seconds: list[float]
    statuses: list[str]
    hovers: list[str]
    stages: dict[str, float]
    """Seconds by stage, in the order they ran."""


def cost_info(arms: pl.DataFrame, stages: Mapping[str, float]) -> CostInfo:
    """Seconds of every arm and of every stage. NoFigure where neither was measured."""
    rows, keys = arms.drop_nulls(["seconds"]), searched_keys(arms)
    if rows.is_empty() and not stages:
        raise NoFigure("No time was measured.")
    return CostInfo(
        rows["number"].to_list(),
        rows["seconds"].to_list(),
        rows["status"].to_list(),
        [hover(row, keys) for row in rows.iter_rows(named=True)],
        dict(stages),
    )


def cost_plot(info: CostInfo) -> go.Figure:
    """Seconds by arm above, by stage below."""
    both = bool(info.numbers and info.stages)
    figure = make_subplots(rows=1 + both, cols=1, vertical_spacing=0.24, row_heights=[0.6, 0.4][: 1 + both])
    colors = {"complete": BLUE, "pruned": GREY, "failed": RED}
    for status in dict.fromkeys(info.statuses):
        chosen = [index for index, other in enumerate(info.statuses) if other == status]
        figure.add_scatter(
            x=[info.numbers[index] for index in chosen],
            y=[info.seconds[index] for index in chosen],
            text=[info.hovers[index] for index in chosen],
            mode="markers",
            marker={"color": colors.get(status, GREY), "symbol": symbols([status])[0], "size": 8},
            name="full budget" if status == "complete" else status,
            hovertemplate="%{text}<br>%{y:.1f} s<extra></extra>",
            row=1,
            col=1,
        )
    if info.stages:
        figure.add_bar(
            x=list(info.stages.values())[::-1],
            y=list(info.stages)[::-1],
            orientation="h",
            marker_color=BLUE,
            width=0.6,
            showlegend=False,
            hovertemplate="%{y}: %{x:.1f} s<extra></extra>",
            row=1 + both,
            col=1,
        )
    dress(figure, 480 if both else 300)
    if info.numbers:
        figure.update_xaxes(title_text="arm (number)", row=1, col=1)
        figure.update_yaxes(title_text="seconds", rangemode="tozero", row=1, col=1)
    if info.stages:
        figure.update_xaxes(title_text="seconds", row=1 + both, col=1)
    return figure
