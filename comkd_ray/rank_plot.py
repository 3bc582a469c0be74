"""Critical-difference diagram (Demsar 2006): average ranks on an axis, and bars that join what may be equal.

As the pairs are tested by Wilcoxon and Holm and not by a distance of ranks (`across_datasets.py`), there
is no critical distance to draw: a bar joins a largest group of methods without a significant pair, and
carries a dot at each member, for it may pass over a method that is none.
"""

from __future__ import annotations

import html
import math
from typing import NamedTuple

import plotly.graph_objects as go

from comkd_ray.across_datasets import Ranks
from comkd_ray.figure import BLUE, INK, MUTED, ORANGE, dress

BAR_STEP = 0.55
"""Distance of two bars, in lines of names."""


class Named(NamedTuple):
    """A method's place: its rank, the line its name stands on (0 is the highest), and on which side."""

    method: str
    rank: float
    line: int
    is_left: bool


class RankInfo(NamedTuple):
    """Methods best first, and bars as lists of (method, rank), best first too."""

    named: list[Named]
    bars: list[list[tuple[str, float]]]
    datasets: int


def rank_info(ranks: Ranks) -> RankInfo:
    """Where every name and bar stands: the better half left, the rest right, the outermost on top."""
    methods, half = (
        list(zip(ranks.methods, ranks.average_ranks, strict=True)),
        math.ceil(len(ranks.methods) / 2),
    )
    left = [Named(method, rank, line, True) for line, (method, rank) in enumerate(methods[:half])]
    right = [Named(method, rank, line, False) for line, (method, rank) in enumerate(reversed(methods[half:]))]
    rank_of = dict(methods)
    bars = [[(method, rank_of[method]) for method in group] for group in ranks.cliques]
    return RankInfo([*left, *reversed(right)], bars, ranks.datasets)


def rank_plot(info: RankInfo) -> go.Figure:
    """The axis of ranks on top, bars below it, names on both sides with a line to their rank."""
    figure = go.Figure()
    count = len(info.named)
    low, high = 0.9, count + 0.1
    names_from = 0.9 + BAR_STEP * len(info.bars)
    for one in info.named:
        _add_name(figure, one, -(names_from + one.line), low if one.is_left else high)
    for place, bar in enumerate(info.bars):
        _add_bar(figure, bar, -(0.6 + BAR_STEP * place))
    figure.add_scatter(
        x=[one.rank for one in info.named],
        y=[0.0] * count,
        text=[html.escape(one.method, quote=False) for one in info.named],
        mode="markers",
        marker={"color": ORANGE, "symbol": "circle", "size": 9},
        cliponaxis=False,
        showlegend=False,
        hovertemplate="%{text}<br>average rank %{x:.2f}<extra></extra>",
    )
    lines = names_from + max(one.line for one in info.named)
    dress(figure, round(90 + 36 * lines)).update_layout(yaxis_visible=False)
    figure.update_xaxes(
        side="top",
        range=(low, high),
        domain=(0.2, 0.8),
        tickvals=list(range(1, count + 1)),
        title_text=f"average rank over {info.datasets} data sets (1 is best)",
        showgrid=False,
        zeroline=False,
        showline=True,
        ticks="outside",
    )
    figure.update_yaxes(range=(-(lines + 0.6), 0), fixedrange=True)
    return figure


def _add_name(figure: go.Figure, one: Named, y: float, side: float) -> None:
    """A name at the side, and an elbow from it to the rank."""
    figure.add_scatter(
        x=[one.rank, one.rank, side],
        y=[0.0, y, y],
        mode="lines",
        line={"color": MUTED, "width": 1.2},
        showlegend=False,
        hoverinfo="skip",
    )
    words = html.escape(one.method, quote=False).replace(" + ", "<br>+ ").replace(", ", ",<br>")
    rank = f"<b>{one.rank:.2f}</b>"
    figure.add_annotation(
        x=side,
        y=y,
        text=f"{words}  {rank}" if one.is_left else f"{rank}  {words}",
        showarrow=False,
        xanchor="right" if one.is_left else "left",
        xshift=-5 if one.is_left else 5,
        align="right" if one.is_left else "left",
        font={"color": INK, "size": 12},
    )


def _add_bar(figure: go.Figure, bar: list[tuple[str, float]], y: float) -> None:
    """A bar over its members' ranks, with a dot at each."""
    names = ", ".join(html.escape(method, quote=False) for method, _ in bar)
    ranks = [rank for _, rank in bar]
    ends = [ranks[0] - 0.04, *ranks, ranks[-1] + 0.04]
    figure.add_scatter(
        x=ends,
        y=[y] * len(ends),
        mode="lines+markers",
        line={"color": BLUE, "width": 5},
        marker={"color": BLUE, "size": [0, *[10] * len(ranks), 0], "line": {"width": 0}},
        showlegend=False,
        text=[f"no pair differs: {names}"] * len(ends),
        hovertemplate="%{text}<extra></extra>",
    )
