"""A report as one HTML document: with its own plotly.js, and a policy that forbids requests."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from plotly.offline import get_plotlyjs

from comkd_ray.markup import Html, join, tag
from comkd_ray.words import DASH

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

Section = tuple[str, str, Html]
"""Identifier, title, content."""


def document(name: str, head: Html, sections: Sequence[Section]) -> str:
    """The whole document. The first section stands right under `head`, without a title of its own."""
    links = [tag("a", title, href=f"#{ident}") for ident, title, _ in sections]
    body = [tag("section", tag("h2", title), content, id=ident) for ident, title, content in sections[1:]]
    first = tag("section", sections[0][2], id=sections[0][0])
    header = tag("header", head, tag("nav", join(links, " ")))
    return join(
        [
            Html("<!doctype html>"),
            Html('<html lang="en">'),
            Html('<head><meta charset="utf-8">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html('<meta name="color-scheme" content="light dark">'),
            tag("title", f"{name} {DASH} comkd-ray"),
            tag("style", Html(_shipped("report.css"))),
            tag("script", Html(get_plotlyjs())),
            Html("</head>"),
            tag("body", header, tag("main", first, *body), tag("script", Html(_shipped("report.js")))),
            Html("</html>\n"),
        ]
    )


def _shipped(name: str) -> str:
    return (files("comkd_ray") / name).read_text(encoding="utf-8")
