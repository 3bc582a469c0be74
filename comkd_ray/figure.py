"""How every figure of the report looks: its colours, its axes, and what it says when it is empty.

A colour is the name of a CSS variable, `var(--blue)`; report.js puts in the value of the reader's
light or dark scheme just before it draws, and again when the scheme changes. The eight hues are
those of Okabe and Ito (https://jfly.uni-koeln.de/color/), told apart by colour-blind readers;
wherever a hue carries meaning, a symbol or a dash repeats it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

import plotly.graph_objects as go

from comkd_ray.arms import Method, Row
from comkd_ray.collapse import AT_ONCE, COLLAPSED, FLAG
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
    """What an arm is, for the box under the pointer: its name, its flag and the values it searched.

    Escaped, because plotly.js reads `<b>` and `<a>` in its texts.
    """
    active = [key for key in keys if key in (row["searched"] or ())]
    what = ", ".join(filter(None, (row["status"], row.get(FLAG))))
    lines = [f"arm {row['arm']} (number {row['number']}, {what})"]
    lines += [f"{key}: {shown(row[key])}" for key in active]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def symbols(statuses: Iterable[str]) -> list[str]:
    """Marker symbols for complete, pruned and failed arms."""
    known = {"complete": "circle", "pruned": "circle-open", "failed": "x"}
    return [known.get(status, "circle-open") for status in statuses]


def rings(x: Sequence[float], y: Sequence[float | None], marks: Sequence[str]) -> list[go.Scatter]:
    """A red ring around every point whose mark is a flag of `collapse.py`, one trace a flag.

    That of a collapsed arm is the wider one.
    """
    found = []
    for name, width in ((COLLAPSED, 3.0), (AT_ONCE, 1.5)):
        places = [place for place, mark in enumerate(marks) if mark == name]
        if places:
            ring = {"color": RED, "symbol": "circle-open", "size": 16, "line": {"width": width, "color": RED}}
            found.append(
                go.Scatter(
                    x=[x[place] for place in places],
                    y=[y[place] for place in places],
                    mode="markers",
                    marker=ring,
                    name=name,
                    legendgroup=name,
                    hoverinfo="skip",
                )
            )
    return found
