"""Numbers and values in words, the same in every table, sentence and figure of a report."""

from __future__ import annotations

DASH = "\u2013"
"""Stands where nothing is known."""


def shown(value: object) -> str:
    """A value for a reader: four digits of a number, YAML's word for a flag, a dash for none."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(value: float | None, digits: int = 1) -> str:
    """`77.2 %` with a space that does not break, or a dash."""
    return DASH if value is None else f"{value:.{digits}f}\u202f%"


def plain(value: float | None, digits: int = 1) -> str:
    """A percentage without its sign, or a dash."""
    return DASH if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 1) -> str:
    """`+0.6` or `-0.6` with a true minus, or a dash. What rounds to nothing carries no sign."""
    if value is None:
        return DASH
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else "\u2212") + text


def gap(ours: float | None, theirs: float | None) -> str:
    """Ours minus theirs with a sign, or a dash where either is unknown."""
    return signed(None if ours is None or theirs is None else ours - theirs)


def counted(number: int, noun: str) -> str:
    """`1 arm`, `2 arms`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plain_count(number: float) -> str:
    """`1,268`, or three digits of what is smaller than 100."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def count(number: float) -> str:
    """`86.2 M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s` or `4.2 s`, in one unbroken piece."""
    if seconds < 60:
        words = f"{seconds:.1f} s"
    elif round(seconds) < 3600:
        words = f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    else:
        minutes = round(seconds / 60)
        words = f"{minutes // 60} h {minutes % 60:02d} min"
    return words.replace(" ", "\u00a0")
