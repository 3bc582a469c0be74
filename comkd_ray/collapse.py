"""Arms that training did no good: one rule, at most one flag an arm, and what they do to a mean.

Published recipes lose single seeds without a word: of PromptKD on Caltech101, base accuracy 84.4 beside
96.4 and 96.6 (PAPER 4.46), on DTD 52.3 where CLIP itself has 53.24 (4.47, 4.10), some best in their
first epoch (5.41). A mean that holds such a seed hides it, and a mean that drops it flatters. So
every mean, interval and test here holds all full-budget arms, says how many are flagged, and stands
beside the mean of the others. Flags describe finished arms; the search never sees them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import polars as pl

from comkd_ray.arms import full_budget, scores_of
from comkd_ray.stats import Estimate, estimate

COLLAPSED, AT_ONCE = "collapsed", "peaked at once"
FLAG = "flag"
"""Column that `flagged` adds; it is in no table on disk."""
NEAR, POINTS = 0.1, 1.0
"""So far above its zero-shot an arm still counts as there: this share of the way from there to the tuned
teacher, and so many points at most."""


class Flagged(NamedTuple):
    """Which flagged arms a mean holds, and what it would be without them."""

    flags: tuple[str, ...] = ()
    """One a flagged arm."""
    others: Estimate | None = None
    """The headline score of the other arms; None where there is none."""


def flag(
    score: float | None,
    zero_shot: float | None,
    teacher: float | None,
    best_epoch: int | None,
    epochs_done: int | None,
) -> str:
    """`collapsed`, `peaked at once`, or nothing, of one full-budget arm; scores in percent.

    Collapsed: `score` is at most `zero_shot` + NEAR of the way from there to `teacher`, at most POINTS. A
    share, because where zero-shot is near its teacher a point is a result; a bound, because where it is far
    (25 and 69 % in the quickstart) four points are one too. Of the Caltech101 seeds of PAPER 4.46 and 4.47,
    against CLIP and teacher of 4.3, it flags harmonic means of 76.4, 85.1, 89.1 and 95.3 (CLIP itself has
    95.4) and leaves 96.4 and 96.6 alone. A teacher no better than zero-shot, or unknown, adds nothing. It
    says that training bought nothing, not why.

    Peaked at once: of several epochs the first was best. It runs at the warm-up rate (PAPER 3.4), so no
    step at the rate that was asked for did any good. An arm that is both counts as collapsed.
    """
    if score is not None and zero_shot is not None:
        way = max(0.0, teacher - zero_shot) if teacher is not None else 0.0
        if score <= zero_shot + min(NEAR * way, POINTS):
            return COLLAPSED
    return AT_ONCE if best_epoch == 1 and (epochs_done or 0) > 1 else ""


def flagged(arms: pl.DataFrame) -> pl.DataFrame:
    """`arms` with the column FLAG: by the headline test score; empty for arms that enter no mean."""
    headline = scores_of(arms).headline
    full = set(full_budget(arms)["arm"])
    columns = ("arm", headline, f"zero_shot_{headline}", f"teacher_{headline}", "best_epoch", "epochs_done")
    found = [flag(*row[1:]) if row[0] in full else "" for row in arms.select(columns).iter_rows()]
    return arms.with_columns(pl.Series(FLAG, found, dtype=pl.String))


def among(arms: pl.DataFrame) -> Flagged:
    """Flags of the full-budget arms with a headline score, and the mean of those without a flag."""
    score = scores_of(arms).headline
    rows = flagged(full_budget(arms).drop_nulls([score]))
    return Flagged(
        tuple(rows.filter(pl.col(FLAG) != "")[FLAG]),
        estimate(rows.filter(pl.col(FLAG) == "")[score].to_list()),
    )


def tally(flags: Iterable[str]) -> str:
    """`1 collapsed, 2 peaked at once`; empty for none."""
    counts = Counter(flags)
    return ", ".join(f"{counts[name]} {name}" for name in (COLLAPSED, AT_ONCE) if counts[name])
