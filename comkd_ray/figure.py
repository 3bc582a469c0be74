"""How every figure of the report looks: its colours, its axes, and what it says when it is empty.

A colour is the name of a CSS variable, `var(--blue)`; report.js puts in the value of the reader's
light or dark scheme just before it draws, and again when the scheme changes. The eight hues are
those of Okabe and Ito (https://jfly.uni-koeln.de/color/), told apart by colour-blind readers;
wherever a hue carries meaning, a symbol or a dash repeats it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

import plotly.graph_objects as go

from comkd_ray.arms import Method, Row
from comkd_ray.words import shown

INK, MUTED, GRID, PAPER = "var(--ink)", "var(--muted)", "var(--grid)", "var(--paper)"
BLUE, ORANGE, GREEN = "var(--blue)", "var(--orange)", "var(--green)"
PURPLE, RED, GREY = "var(--purple)", "var(--red)", "var(--grey)"

_MODULE_STYLE: dict[tuple[bool, bool], tuple[str, str]] = {
    (False, False): (GREY, "circle"),
    (True, False): (GREEN, "triangle-up"),
    (False, True): (PURPLE, "square"),
    (True, True): (BLUE, "diamond"),
}


def style(method: Method) -> tuple[str, str]:
    """Colour and symbol of a method, the same in every figure; a ring with a dot is without prompts."""
    prompts, *modules = method
    color, symbol = _MODULE_STYLE[modules[0], modules[1]]
    return color, symbol if prompts else f"{symbol}-open-dot"


class NoFigure(Exception):
    """The rows do not carry this figure; the message is the one line shown in its place."""


def dress(figure: go.Figure, height: int) -> go.Figure:
    """Give a figure the report's type, transparent ground and grid; `height` in pixels."""
    figure.update_layout(
        template="none",
        title=None,
        height=height,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 13},
        hoverlabel={"bgcolor": PAPER, "bordercolor": MUTED, "font": {"color": INK, "size": 12}},
        hovermode="closest",
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.02,
            "yanchor": "bottom",
            "bgcolor": "rgba(0,0,0,0)",
        },
    )
    line = {
        "title_font_size": 13,
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        "linecolor": MUTED,
        "tickcolor": MUTED,
    }
    figure.update_xaxes(automargin=True, title_standoff=10, **line)
    figure.update_yaxes(automargin=True, title_standoff=10, **line)
    return figure


def hover(row: Row, keys: Iterable[str]) -> str:
    """What an arm is, for the box under the pointer: its name and the values it searched.

    Escaped, because plotly.js reads `<b>` and `<a>` in its texts.
    """
    active = [key for key in keys if key in (row["searched"] or ())]
    lines = [f"arm {row['arm']} (number {row['number']}, {row['status']})"]
    lines += [f"{key}: {shown(row[key])}" for key in active]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def symbols(statuses: Iterable[str]) -> list[str]:
    """Marker symbols for complete, pruned and failed arms."""
    known = {"complete": "circle", "pruned": "circle-open", "failed": "x"}
    return [known.get(status, "circle-open") for status in statuses]
