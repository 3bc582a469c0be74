"""The critical-difference diagram (Demsar 2006): settings on a line of average ranks, bars over those alike.

A bar joins settings of which no pair differs significantly by Wilcoxon's test with Holm's correction, not
by a distance of mean ranks (Benavoli et al. 2016): a bar may pass over a setting, and has no dot there.
"""

from __future__ import annotations

import plotly.graph_objects as go

from comkd_ray.across_datasets import Ranks
from comkd_ray.figure import BLUE, INK, ORANGE, dress


def cd_plot(ranks: Ranks) -> go.Figure:
    """Best on the left; a row a setting, and the bars below."""
    figure, count = go.Figure(), len(ranks.methods)
    figure.add_scatter(
        x=list(ranks.average_ranks),
        y=list(range(count)),
        mode="markers+text",
        marker={"color": BLUE, "size": 10},
        text=[f"{name}, {rank:.2f}" for name, rank in zip(ranks.methods, ranks.average_ranks, strict=True)],
        textposition="middle right",
        showlegend=False,
        hovertemplate="%{text}<extra></extra>",
    )
    places = dict(zip(ranks.methods, ranks.average_ranks, strict=True))
    for row, clique in enumerate(ranks.cliques):
        own = [places[name] for name in clique]
        figure.add_scatter(
            x=own,
            y=[count + 0.2 + 0.5 * row] * len(own),
            mode="lines+markers",
            line={"color": ORANGE, "width": 5},
            marker={"color": INK, "size": 5},
            showlegend=False,
            hovertext=", ".join(clique),
            hoverinfo="text",
        )
    bottom = count + 0.5 * len(ranks.cliques)
    dress(figure, 110 + 34 * count + 18 * len(ranks.cliques))
    figure.update_xaxes(title_text="average rank, 1 is best", side="top", range=[0.7, count + 1.3])
    figure.update_xaxes(dtick=1, zeroline=False)
    figure.update_yaxes(visible=False, range=[bottom + 0.3, -0.7])
    return figure
