"""The figures of the method itself: the 2x2 of its modules, and the learning curves.

Each figure is a pair: `x_info` computes plain values from the tables (tested), `x_plot` draws them
and decides nothing. An info function raises NoFigure with one line where the rows carry nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from comkd_ray.arms import (
    METHODS,
    Method,
    best_arm,
    full_budget,
    has_modules,
    method_values,
    module_cells,
    of_method,
    scores_of,
    searched_keys,
)
from comkd_ray.collapse import AT_ONCE, COLLAPSED, FLAG, flagged, tally
from comkd_ray.figure import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    RED,
    NoFigure,
    dress,
    hover,
    rings,
    style,
)
from comkd_ray.protocols import OBJECTIVE
from comkd_ray.stats import Estimate, estimate


class CellInfo(NamedTuple):
    """One corner of the 2x2: its full-budget arms and, apart from them, those pruned."""

    method: Method
    values: list[float]
    hovers: list[str]
    pruned_values: list[float]
    pruned_hovers: list[str]
    estimate: Estimate | None
    """Over full-budget arms only, flagged ones too; None where there is none."""
    marks: list[str]
    """Flag of each value's arm, or empty (`collapse.py`)."""


class ModulesInfo(NamedTuple):
    """The 2x2 in the headline score."""

    axis: str
    cells: list[CellInfo]


def modules_info(arms: pl.DataFrame) -> ModulesInfo:
    """The four cells of IFAlign x EduAttention, both-off first. NoFigure unless two have an arm."""
    if not has_modules(arms):
        raise NoFigure("The rows do not say which modules each arm had.")
    scores = scores_of(arms)
    cells = [_cell(arms, method, scores.headline) for method in module_cells(arms)]
    filled = [METHODS[cell.method] for cell in cells if cell.values]
    if not filled:
        raise NoFigure("No full-budget arm has a test score, so the modules cannot be compared.")
    if len(filled) == 1:
        raise NoFigure(f"All full-budget arms are {filled[0]}: the modules cannot be compared.")
    return ModulesInfo(scores.axis(scores.headline), cells)


def _cell(arms: pl.DataFrame, method: Method, score: str) -> CellInfo:
    rows, keys = of_method(flagged(arms.drop_nulls([score])), method), searched_keys(arms)
    pruned = rows.filter(pl.col("status") == "pruned")
    values = method_values(arms, method, score)
    return CellInfo(
        method,
        values,
        [hover(row, keys) for row in full_budget(rows).iter_rows(named=True)],
        pruned[score].to_list(),
        [hover(row, keys) for row in pruned.iter_rows(named=True)],
        estimate(values),
        full_budget(rows)[FLAG].to_list(),
    )


def modules_plot(info: ModulesInfo) -> go.Figure:
    """Every arm as a point beside the mean of its cell; with its 95 % t-interval from three arms on.

    Two arms have an interval so wide that it hides every point.
    """
    figure, cells = go.Figure(), info.cells
    for place, cell in enumerate(cells):
        color, symbol = style(cell.method)
        figure.add_scatter(
            x=_spread(place, len(cell.values)),
            y=cell.values,
            text=cell.hovers,
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 9, "opacity": 0.85},
            name=METHODS[cell.method],
            showlegend=False,
            hovertemplate=f"%{{text}}<br>{info.axis}: %{{y:.2f}}<extra></extra>",
        )
        figure.add_scatter(
            x=_spread(place, len(cell.pruned_values)),
            y=cell.pruned_values,
            text=cell.pruned_hovers,
            mode="markers",
            marker={
                "color": GREY,
                "symbol": f"{symbol.removesuffix('-open-dot')}-open",
                "size": 7,
                "opacity": 0.7,
            },
            name="pruned, smaller budget (click to show)",
            legendgroup="pruned",
            visible="legendonly",
            showlegend=bool(cell.pruned_values) and not any(other.pruned_values for other in cells[:place]),
            hovertemplate="%{text}<br>when pruned: %{y:.2f} %<extra></extra>",
        )
    figure.add_traces(_rings(cells))
    figure.add_trace(_means(cells))
    names = [
        METHODS[cell.method].replace(" + ", "<br>+ ").replace(" without", "<br>without") for cell in cells
    ]
    counts = [_counted(name, cell) for name, cell in zip(names, cells, strict=True)]
    dress(figure, 430).update_layout(yaxis_title_text=info.axis)
    figure.update_xaxes(tickvals=list(range(len(cells))), ticktext=counts, tickangle=0)
    figure.update_xaxes(range=(-0.5, len(cells) - 0.5), showgrid=False, zeroline=False)
    return figure


def _counted(name: str, cell: CellInfo) -> str:
    """Name of a cell, n, and its flagged arms."""
    told = tally(cell.marks).replace(", ", "<br>")
    return f"{name}<br>n = {len(cell.values)}" + (f"<br>{told}" if told else "")


def _rings(cells: Sequence[CellInfo]) -> list[go.Scatter]:
    places = [x for place, cell in enumerate(cells) for x in _spread(place, len(cell.values))]
    values = [value for cell in cells for value in cell.values]
    return rings(places, values, [mark for cell in cells for mark in cell.marks])


def _spread(place: int, count: int) -> list[float]:
    """Places of `count` points side by side, left of the middle of a cell, in the arms' order."""
    step = min(0.07, 0.5 / max(count, 1))
    return [place - 0.08 + (index - (count - 1) / 2) * step for index in range(count)]


def _means(cells: Sequence[CellInfo]) -> go.Scatter:
    known = [(place, c.estimate) for place, c in enumerate(cells) if c.estimate is not None]
    halves = [0.0 if e.high is None or e.n < 3 else e.high - e.mean for _, e in known]
    texts = [
        f"n = {e.n}" + ("" if e.sd is None else f", sd {e.sd:.2f}, {e.low:.2f} to {e.high:.2f}")
        for _, e in known
    ]
    return go.Scatter(
        x=[place + 0.3 for place, _ in known],
        y=[e.mean for _, e in known],
        text=texts,
        error_y={"type": "data", "array": halves, "color": INK, "thickness": 1.6, "width": 7},
        mode="markers",
        marker={"color": INK, "symbol": "line-ew-open", "size": 15, "line": {"width": 2.5}},
        name="mean, 95 % t-interval",
        hovertemplate="mean %{y:.2f} %<br>%{text}<extra></extra>",
    )


class Curve(NamedTuple):
    """What one arm did, epoch by epoch (1 is the first); nulls stay None."""

    number: int
    status: str
    label: str
    epochs: list[int]
    scores: list[float | None]
    """The objective, in percent."""
    losses: list[float | None]
    best: bool
    mark: str = ""
    """Flag of the arm, or empty (`collapse.py`)."""

    @property
    def kind(self) -> str:
        """What it is drawn as: the best arm, a flag, or its status."""
        return "best arm" if self.best else self.mark or self.status


class CurvesInfo(NamedTuple):
    """The curves of a study, and what their scores are."""

    axis: str
    curves: list[Curve]


def curves_info(arms: pl.DataFrame, epochs: pl.DataFrame) -> CurvesInfo:
    """A curve for every arm that ended at least one epoch, the flagged ones and the best last."""
    best, keys, scores = best_arm(arms), searched_keys(arms), scores_of(arms)
    parts = {key[0]: rows for key, rows in epochs.group_by("arm")} if len(epochs) else {}
    curves = []
    for row in flagged(arms).iter_rows(named=True):
        if row["arm"] not in parts:
            continue
        rows = parts[row["arm"]].sort("epoch")
        curves.append(
            Curve(
                row["number"],
                row["status"],
                hover(row, keys),
                rows["epoch"].to_list(),
                rows[OBJECTIVE].to_list(),
                rows["loss"].to_list(),
                best is not None and row["arm"] == best["arm"],
                row[FLAG],
            )
        )
    if not curves:
        raise NoFigure("No epoch was recorded, so there are no learning curves.")
    return CurvesInfo(
        scores.axis(scores.objective), sorted(curves, key=lambda curve: (curve.best, bool(curve.mark)))
    )


def curves_plot(info: CurvesInfo) -> go.Figure:
    """The objective above, loss below, on one epoch axis."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    seen: set[str] = set()
    for curve in info.curves:
        kind = curve.kind
        color, width, opacity, dash = _curve_style(kind)
        for row, values in ((1, curve.scores), (2, curve.losses)):
            figure.add_scatter(
                x=curve.epochs,
                y=values,
                mode="lines" if len(curve.epochs) > 1 else "markers",
                line={"color": color, "width": width, "dash": dash},
                marker={"color": color, "size": 5},
                opacity=opacity,
                name="full budget" if kind == "complete" else kind,
                legendgroup=kind,
                showlegend=row == 1 and kind not in seen,
                hovertemplate=curve.label + "<br>epoch %{x}: %{y:.3f}<extra></extra>",
                row=row,
                col=1,
            )
        seen.add(kind)
    dress(figure, 520)
    figure.update_yaxes(title_text=info.axis, row=1, col=1)
    figure.update_yaxes(title_text="loss", row=2, col=1)
    longest = max(curve.epochs[-1] for curve in info.curves)
    figure.update_xaxes(title_text="epoch", row=2, col=1)
    figure.update_xaxes(tickformat="d", dtick=math.ceil(longest / 10))
    return figure


def _curve_style(kind: str) -> tuple[str, float, float, str]:
    """Colour, width in pixels, opacity and dash of a curve."""
    if kind == "best arm":
        return ORANGE, 3.5, 1.0, "solid"
    if kind in (COLLAPSED, AT_ONCE):
        return RED, 2.0, 0.9, "solid" if kind == COLLAPSED else "dash"
    if kind == "complete":
        return BLUE, 1.3, 0.6, "solid"
    return (RED if kind == "failed" else GREY), 1.3, 0.8, "dot"
