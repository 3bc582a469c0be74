"""The dumbbells of re-tuning: each setting's effect at fixed knobs, joined to that at its re-tuned ones."""

from __future__ import annotations

import plotly.graph_objects as go

from comkd_ray.figure import BLUE, GREY, ORANGE, NoFigure, dress
from comkd_ray.pairing import Paired
from comkd_ray.retuned import Retuned
from comkd_ray.search_space import Scalar
from comkd_ray.stats import Estimate


def _mean(pair: Paired | None) -> Estimate | None:
    return pair.found.estimate if pair is not None else None


def retuned_plot(found: Retuned, axis: str) -> go.Figure:
    """A dumbbell a setting: a ring at fixed knobs, a dot at re-tuned ones, each with its t-interval."""
    known = [one for one in found.effects if _mean(one.fixed) is not None and _mean(one.retuned) is not None]
    if not known:
        raise NoFigure("No setting has its effect both at fixed and at re-tuned values yet.")
    names: list[Scalar] = [one.name for one in known]
    figure = go.Figure()
    for one in known:
        ends = [_mean(one.fixed), _mean(one.retuned)]
        figure.add_scatter(
            x=[end.mean for end in ends if end is not None],
            y=[one.name] * 2,
            mode="lines",
            line={"color": GREY, "width": 3},
            showlegend=False,
            hoverinfo="skip",
        )
    for kind, color, symbol in (("fixed knobs", BLUE, "circle-open"), ("re-tuned knobs", ORANGE, "circle")):
        means = [_mean(one.fixed if kind == "fixed knobs" else one.retuned) for one in known]
        figure.add_scatter(
            x=[mean.mean for mean in means if mean is not None],
            y=names,
            error_x={
                "type": "data",
                "array": [_half(mean) for mean in means],
                "color": color,
                "thickness": 1.3,
                "width": 6,
            },
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 11, "line": {"width": 2}},
            name=kind,
            hovertemplate=f"%{{y}}, {kind}: %{{x:+.2f}} points<extra></extra>",
        )
    dress(figure, 150 + 46 * len(known))
    figure.update_xaxes(title_text=f"minus {found.reference}, points of {axis}", zeroline=True)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    return figure


def _half(found: Estimate | None) -> float:
    """Half an interval; 0 below three seeds, where it would hide every point."""
    return 0.0 if found is None or found.high is None or found.n < 3 else found.high - found.mean
