"""The dumbbells of re-tuning: each setting's effect at fixed knobs, joined to that at its re-tuned ones."""

from __future__ import annotations

import plotly.graph_objects as go

from comkd_ray.figure import BLUE, GREY, INK, ORANGE, NoFigure, dress
from comkd_ray.pairing import Paired
from comkd_ray.retuned import Retuned
from comkd_ray.stats import Estimate

FIXED_KNOBS, RETUNED_KNOBS = "fixed knobs", "re-tuned knobs"
_KINDS = ((FIXED_KNOBS, BLUE, "circle-open", -0.14), (RETUNED_KNOBS, ORANGE, "circle", 0.14))


def _mean(pair: Paired | None) -> Estimate | None:
    return pair.found.estimate if pair is not None else None


def retuned_plot(found: Retuned, axis: str) -> go.Figure:
    """A dumbbell a setting: a ring at fixed knobs, a dot at re-tuned ones, each with its t-interval."""
    known = [one for one in found.effects if _mean(one.fixed) is not None and _mean(one.retuned) is not None]
    if not known:
        raise NoFigure("No setting has its effect both at fixed and at re-tuned values yet.")
    figure = go.Figure()
    for kind, color, symbol, above in _KINDS:
        means = [_mean(one.fixed if kind == FIXED_KNOBS else one.retuned) for one in known]
        figure.add_scatter(
            x=[mean.mean for mean in means if mean is not None],
            y=[place + above for place in range(len(known))],
            error_x={
                "type": "data",
                "array": [_half(mean) for mean in means],
                "color": color,
                "thickness": 1.3,
                "width": 5,
            },
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 11, "line": {"width": 2, "color": color}},
            name=kind,
            text=[one.name for one in known],
            hovertemplate=f"%{{text}}, {kind}: %{{x:+.2f}} points<extra></extra>",
        )
    for place, one in enumerate(known):
        ends = [mean.mean for mean in (_mean(one.fixed), _mean(one.retuned)) if mean is not None]
        figure.add_scatter(
            x=ends,
            y=[place + above for *_, above in _KINDS],
            mode="lines",
            line={"color": GREY, "width": 3},
            showlegend=False,
            hoverinfo="skip",
        )
    dress(figure, 150 + 64 * len(known))
    figure.add_vline(x=0, line={"color": INK, "width": 1.2, "dash": "dash"})
    figure.update_xaxes(title_text=f"minus {found.reference}, points of {axis}", zeroline=False)
    figure.update_yaxes(
        tickvals=list(range(len(known))), ticktext=[one.name for one in known], range=[len(known) - 0.5, -0.5]
    )
    figure.update_yaxes(showgrid=False, zeroline=False)
    return figure


def _half(found: Estimate | None) -> float:
    """Half an interval; 0 below three seeds, where it would hide every point."""
    return 0.0 if found is None or found.high is None or found.n < 3 else found.high - found.mean
