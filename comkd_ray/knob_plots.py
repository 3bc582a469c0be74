"""A knob's curve: the score over the values of one key, all others at the study's own.

Mean with its t-interval over seeds, every seed as a faint line, the best mean and the study's own value
marked. As everywhere, `knob_info` computes and `knob_plot` draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import plotly.graph_objects as go
import polars as pl

from comkd_ray.arms import full_budget, scores_of
from comkd_ray.claims import at_values
from comkd_ray.config import Study
from comkd_ray.designs import own_values
from comkd_ray.figure import BLUE, GREY, INK, ORANGE, NoFigure, dress
from comkd_ray.search_space import Scalar
from comkd_ray.stats import Estimate, estimate
from comkd_ray.words import shown

TICKS = 12
"""Up to so many values, each is a tick."""


class Point(NamedTuple):
    """One value of the knob."""

    value: Scalar
    scores: dict[int, float]
    """Seed to score, in percent."""
    estimate: Estimate
    """Over these."""


class KnobInfo(NamedTuple):
    """The curve of one key."""

    key: str
    axis: str
    points: list[Point]
    """In ascending order, the study's own value among them; words in the order of the design."""
    best: int
    """Place of the highest mean."""
    own: Scalar
    log: bool | None
    """Whether the values are spread by factors rather than steps; None for words and flags."""


def knob_info(arms: pl.DataFrame, study: Study, key: str) -> KnobInfo:
    """The curve of a factor of one_knob. NoFigure for fewer than two values with a score."""
    assert study.ablate is not None
    own, score = own_values(study, study.ablate), scores_of(arms).headline
    rows = full_budget(arms).drop_nulls([score])
    points = []
    for level in dict.fromkeys((*study.ablate.factors[key], own[key])):
        alone = at_values(rows, own | {key: level})
        known = estimate(alone[score].to_list())
        if known is not None:
            points.append(Point(level, dict(zip(alone["seed"], alone[score], strict=True)), known))
    if len(points) < 2:
        raise NoFigure(f"Fewer than two values of {key} have a score, so there is no curve.")
    numbers = [float(point.value) for point in points if _is_number(point.value)]
    if len(numbers) == len(points):
        points = [point for _, point in sorted(zip(numbers, points, strict=True), key=lambda pair: pair[0])]
    best = max(range(len(points)), key=lambda place: points[place].estimate.mean)
    log = is_geometric(sorted(numbers)) if len(numbers) == len(points) else None
    return KnobInfo(key, scores_of(arms).axis(score), points, best, own[key], log)


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_geometric(values: Sequence[float]) -> bool:
    """Whether ascending values are spread more evenly by factors than by steps; False for fewer than 3."""
    if len(values) < 3 or values[0] <= 0:
        return False
    steps = [high - low for low, high in pairwise(values)]
    factors = [high / low for low, high in pairwise(values)]
    return max(factors) / min(factors) < max(steps) / min(steps)


def knob_plot(info: KnobInfo) -> go.Figure:
    """Means with their intervals over faint seeds; the best one is a star, the own value a dashed line."""
    figure, points = go.Figure(), info.points
    places = [point.value if info.log is not None else shown(point.value) for point in points]
    for seed in sorted({seed for point in points for seed in point.scores}):
        figure.add_scatter(
            x=places,
            y=[point.scores.get(seed) for point in points],
            mode="lines",
            line={"color": GREY, "width": 1},
            opacity=0.5,
            name="a seed",
            legendgroup="seed",
            showlegend=not figure.data,
            hovertemplate=f"seed {seed}, {info.key} %{{x}}: %{{y:.2f}} %<extra></extra>",
        )
    figure.add_trace(_means(info, places))
    best = points[info.best]
    figure.add_scatter(
        x=[places[info.best]],
        y=[best.estimate.mean],
        mode="markers",
        marker={"color": ORANGE, "symbol": "star", "size": 15},
        name=f"best mean, at {shown(best.value)}",
        hovertemplate="best mean %{y:.2f} %<extra></extra>",
    )
    dress(figure, 420).update_layout(yaxis_title_text=info.axis)
    figure.update_xaxes(
        title_text=info.key, type="category" if info.log is None else "log" if info.log else "linear"
    )
    if len(places) <= TICKS:
        figure.update_xaxes(tickvals=places, ticktext=[shown(point.value) for point in points])
    own = info.own if info.log is not None else shown(info.own)
    ends = [
        min(v for point in points for v in point.scores.values()),
        max(v for p in points for v in p.scores.values()),
    ]
    figure.add_scatter(
        x=[own, own],
        y=ends,
        mode="lines",
        line={"color": INK, "width": 1.3, "dash": "dash"},
        name=f"the study's own value, {shown(info.own)}",
        hoverinfo="skip",
    )
    return figure


def _means(info: KnobInfo, places: Sequence[object]) -> go.Scatter:
    """Intervals stand from three seeds on: two have one so wide that it hides every point."""
    found = [point.estimate for point in info.points]
    halves = [0.0 if one.high is None or one.n < 3 else one.high - one.mean for one in found]
    texts = [f"n = {one.n}" + ("" if one.sd is None else f", sd {one.sd:.2f}") for one in found]
    return go.Scatter(
        x=list(places),
        y=[one.mean for one in found],
        text=texts,
        error_y={"type": "data", "array": halves, "color": BLUE, "thickness": 1.4, "width": 5},
        mode="lines+markers",
        line={"color": BLUE, "width": 2.5},
        marker={"color": BLUE, "size": 8},
        name="mean, 95 % t-interval",
        hovertemplate=f"{info.key} %{{x}}: mean %{{y:.2f}} %, %{{text}}<extra></extra>",
    )
