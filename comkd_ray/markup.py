"""HTML by construction: every text is escaped unless it is `Html` already."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """Text that is markup. Only this module and literals of report.py make it."""

    __slots__ = ()


def text(value: object) -> Html:
    """A value as markup; what is Html already stays as it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[object], between: str = "\n") -> Html:
    """Parts, each escaped unless Html, one after another."""
    return Html(between.join(text(part) for part in parts))


def tag(name: str, *inside: object, **attributes: str) -> Html:
    """`<name key="value">inside</name>`; `class_` is `class`, `_` in a key is `-`."""
    pairs = (
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
        if value
    )
    return Html(f"<{name}{''.join(pairs)}>{join(inside, '')}</{name}>")


def paragraph(*inside: object, class_: str = "") -> Html:
    """A `<p>`."""
    return tag("p", *inside, class_=class_)


def details(summary: object, *inside: object) -> Html:
    """A part that opens on a click."""
    return tag("details", tag("summary", summary), *inside)


MOST = 12
"""Columns that stand beside each other in 1280 pixels with room around them."""


def table(head: Sequence[object], rows: Iterable[Sequence[object]], words: int = 1, class_: str = "") -> Html:
    """A table in a box that scrolls sideways alone; its first `words` columns hold no numbers.

    A row may be longer or shorter than the head; an empty head is left out. `class_` goes to the box,
    with `dense` where there are more columns than MOST.
    """
    kinds = ["word" if column < words else "number" for column in range(64)]
    top = join((tag("th", cell, class_=kind) for cell, kind in zip(head, kinds, strict=False)), "")
    lines = (
        tag("tr", join((tag("td", c, class_=k) for c, k in zip(row, kinds, strict=False)), ""))
        for row in rows
    )
    body = tag("table", tag("thead", tag("tr", top)) if head else "", tag("tbody", join(lines)))
    return tag("div", body, class_=" ".join(filter(None, ["scroll", class_, "dense" * (len(head) > MOST)])))


def breakable(key: str) -> Html:
    """A dotted key that may break after its dots and underscores."""
    parts = str(text(key)).replace(".", ".<wbr>").replace("_", "_<wbr>")
    return Html(parts)
