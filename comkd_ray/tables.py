"""The tables that the HTML report and its Markdown share: a head, and rows of plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from comkd_ray.arms import EDU_ATTENTION, IFALIGN, PROMPTS, Scores
from comkd_ray.collapse import AT_ONCE, COLLAPSED, NEAR, POINTS, Flagged, tally
from comkd_ray.comparison import Comparison
from comkd_ray.components import MODULES, Components
from comkd_ray.factorial import Effect
from comkd_ray.pairing import FIXED, Paired, Rule
from comkd_ray.published import ABLATIONS, Value
from comkd_ray.published_gap import Gap
from comkd_ray.reference_rows import ReferenceRow
from comkd_ray.retuned import Retuned
from comkd_ray.stats import Estimate
from comkd_ray.variants import Variant, Variants
from comkd_ray.words import DASH, counted, plain, shown, signed

INTERVAL = "95 % t-interval"
_JUDGED = [INTERVAL, "p (Holm)", "verdict", "more seeds"]  # first, where a narrow window still shows it
_DIFFERENCE = [*_JUDGED, "sign-flip p", "smallest p"]
_AT_ANY_LOOK = [*_JUDGED, "p at any look", "smallest p"]
VARIANTS = 60
"""A longer list of variants is cut to its ENDS."""
ENDS = 20
"""Of a long list, so many of the best and of the worst variants are shown."""
EFFECTS = 20
"""Of more effects only those of the modules alone are shown."""
NO_LOOKS = (
    "Seeds were added to open claims: the p values of effects take n as fixed beforehand and do not count "
    "the looks, so no claim rests on them."
)
_COMPONENTS = {IFALIGN: "IFAlign", EDU_ATTENTION: "EduAttention", PROMPTS: "prompts"}


class Table(NamedTuple):
    """Cells of text, the first column in words."""

    head: list[str]
    rows: list[list[str]]


def spread(found: Estimate | None) -> str:
    """`82.41 ± 0.30`, without the sd where there is none."""
    if found is None:
        return DASH
    return f"{found.mean:.2f}" + ("" if found.sd is None else f" \u00b1 {found.sd:.2f}")


def interval(found: Estimate | None) -> str:
    """`81.60 to 83.22`, or a dash for fewer than two values."""
    if found is None or found.low is None or found.high is None:
        return DASH
    return f"{found.low:.2f} to {found.high:.2f}"


def signed_interval(found: Estimate | None) -> str:
    """`+0.10 to +0.90`, or why there is no interval."""
    if found is None:
        return DASH
    if found.low is None or found.high is None:
        return "n = 1: no interval"
    return f"{signed(found.low, 2)} to {signed(found.high, 2)}"


def n_of(n: int, flags: Sequence[str]) -> str:
    """`3`, or `3 (1 collapsed)`: how many arms a mean holds, the flagged ones counted."""
    return f"{n} ({tally(flags)})" if flags else str(n)


def without(every: Sequence[Flagged], name: str) -> Table:
    """A column for the right of a table of means: each without its flagged arms. Empty where none is."""
    if not any(each.flags for each in every):
        return Table([], [[] for _ in every])
    cells = [
        [f"{spread(each.others)} (n = {each.others.n if each.others else 0})" if each.flags else ""]
        for each in every
    ]
    return Table([f"{name} without flagged"], cells)


FLAG_NOTE = (
    f"An arm is {COLLAPSED} whose headline test score is at most its own zero-shot plus {100 * NEAR:.0f} % "
    f"of the way from there to the tuned teacher ({POINTS:g} point at most), and {AT_ONCE} whose best epoch "
    "of several was the first. Every mean, interval and test holds flagged arms, and says how many; a mean "
    "without them stands beside it to show what they move. That is a choice by outcome: no better estimate, "
    "and no test is made of it."
)
"""How flagged arms are treated, where there are any."""


def reference_table(rows: Sequence[ReferenceRow], scores: Scores) -> Table:
    """The eight rows, mean and sd of every test score."""
    extra = without([row.flagged for row in rows], scores.names[-1])
    cells = [
        [row.name, n_of(row.n, row.flagged.flags), *(spread(found) for found in row.estimates), *others]
        for row, others in zip(rows, extra.rows, strict=True)
    ]
    return Table(["test (%)", "n", *scores.names, *extra.head], cells)


def paired_table(paired: Sequence[Paired], scores: Scores) -> Table:
    """Differences by seed in the headline score, with what the design could have shown."""
    rows = [[pair.name, str(pair.found.n), *_difference(pair)] for pair in paired]
    baseline = paired[0].baseline if paired else ""
    head = _head([pair.found for pair in paired])
    return Table([f"minus {baseline}, points of {scores.name}", "n", "mean", *head], rows)


def _head(found: Sequence[Comparison]) -> list[str]:
    return _AT_ANY_LOOK if any(one.at_any_look for one in found) else _DIFFERENCE


def _difference(pair: Paired) -> list[str]:
    """Mean, interval, p after Holm, the verdict, how many more seeds would decide, and two p values.

    Flagged arms in the differences stand beside the verdict: they took part in it.
    """
    found = pair.found
    mean = None if found.estimate is None else found.estimate.mean
    holm, own, smallest = (f"{p:.3g}" for p in (found.p_holm, found.p, found.smallest_p))
    words = found.verdict if found.decidable else f"{found.verdict} with n = {found.n}"
    words += f"; with {pair.told}" * bool(pair.flags)
    more = f"about {found.further_seeds}" if found.further_seeds else DASH
    return [signed(mean, 2), signed_interval(found.estimate), holm, words, more, own, smallest]


def paired_notes(scores: Scores, rule: Rule = FIXED) -> list[str]:
    """How differences by seed are to be read, of methods or of variants, a line each; none where none are."""
    if not rule.compares:
        return []
    if rule.max_seeds is not None:
        return [
            f"Differences: points of {scores.headline}, one a seed. Seeds were added to open claims, up to "
            f"{rule.max_seeds}: p is that of a wager on the signs, which is valid at every look and after "
            "any number of seeds (docs/statistics.md); \u201csmallest p\u201d is what differences all alike "
            f"would have. A row claims to score {rule.direction} what it is compared with: supported or "
            "refuted at Holm-adjusted p < 0.05 over the rows of a table; open wants another seed, not "
            "decidable has used them up. Intervals describe, as if n had been fixed. " + _SEEDS_VARY,
        ]
    return [
        f"Differences: points of {scores.headline}, one a seed; of methods, at equal other searched values. "
        "p is the exact two-sided sign-flip test; \u201csmallest p\u201d is 2 / 2\u207f, the least this "
        f"n can reach whatever the data. A row claims to score {rule.direction} what it is compared with: "
        "supported or refuted at Holm-adjusted p < 0.05 over the rows of a table, else not decidable. "
        + _SEEDS_VARY,
        "\u201cMore seeds\u201d would decide it, were the effect seen the true one (power 0.8): a guess, "
        "as the effect of few seeds is mostly noise, and testing again is a second look.",
    ]


_SEEDS_VARY = (
    "Seeds vary the student's start and the order of images, not the teacher and not the split: the "
    "intervals cover no more than that."
)


def variants_table(found: Variants, scores: Scores) -> Table:
    """Scores of every variant, and its difference to the first by seed; only the ENDS of a long list.

    Without differences where settings are not compared.
    """
    listed = _listed(found)
    extra = without([row.flagged for row in listed], scores.names[-1])
    rows = [[*_variant(row, found.compared), *others] for row, others in zip(listed, extra.rows, strict=True)]
    tested = _head([row.paired.found for row in found.rows if row.paired is not None])
    minus = [f"minus {found.rows[0].name}", *tested] * found.compared
    head = ["variant, test (%)", "n", *scores.names, *minus]
    return Table([*head, f"range of {scores.names[-1]}", "best epoch", *extra.head], rows)


def _variant(row: Variant, compared: bool) -> list[str]:
    known = row.lowest is not None and row.highest is not None
    ends = f"{row.lowest:.2f} to {row.highest:.2f}" if known else DASH
    epoch = DASH if row.best_epoch is None else f"{row.best_epoch:g}"
    cells = [row.name, n_of(row.n, row.flagged.flags), *(spread(each) for each in row.estimates)]
    return [*cells, *(_minus_first(row) if compared else []), ends, epoch]


def _minus_first(row: Variant) -> list[str]:
    """The difference of a variant, with its n where some of its arms have no pair."""
    if row.paired is None:
        return [DASH] * (1 + len(_DIFFERENCE))
    mean, *others = _difference(row.paired)
    pairs = row.paired.found.n
    return [mean if pairs == row.n else f"{mean} (n = {pairs})", *others]


def _listed(found: Variants) -> list[Variant]:
    """All variants in the study's order; of more than VARIANTS the first, then the best and the worst."""
    if len(found.rows) <= VARIANTS:
        return found.rows
    others = [row for row in found.ranked if row is not found.rows[0]]
    return [found.rows[0], *others[:ENDS], *others[ENDS:][-ENDS:]]


def retuned_table(found: Retuned, scores: Scores) -> Table:
    """The effect of every setting at fixed and at re-tuned knobs, and the knobs found."""
    heads = [f"{kind}: {what}" for kind in ("fixed", "re-tuned") for what in ("mean", INTERVAL, "verdict")]
    rows = []
    for one in found.effects:
        values = ", ".join(f"{key} {value}" for key, value in one.values) or "the study's own"
        rows.append([one.name, *_in_short(one.fixed), *_in_short(one.retuned), values])
    return Table([f"minus {found.reference}, points of {scores.name}", *heads, "re-tuned values"], rows)


def _in_short(pair: Paired | None) -> list[str]:
    """Mean, interval, and verdict with its p after Holm."""
    if pair is None:
        return [DASH] * 3
    found = pair.found
    mean = None if found.estimate is None else found.estimate.mean
    verdict = "; ".join(filter(None, (f"{found.verdict} (p {found.p_holm:.2g})", pair.told)))
    return [signed(mean, 2), signed_interval(found.estimate), verdict]


def variants_notes(found: Variants, scores: Scores) -> list[str]:
    """What the rows are, and what is left out, a line each. `paired_notes` belong below them."""
    first = ", ".join(f"{key} {value}" for key, value in found.first)
    minus = "settings of a fraction are not compared: its factors are, each over all settings."
    if found.compared:
        minus = f"the difference is that to the first, paired by seed, in {scores.name}."
    lines = [
        "One row a setting of the searched values, its arms differ by seed alone; it is named by what "
        f"differs from the first, {found.rows[0].name}, which has {first}. Mean \u00b1 sd (ddof = 1) over n "
        "full-budget arms; the range is from the lowest arm to the highest, the best epoch the median; "
        + minus,
    ]
    left = len(found.rows) - len(_listed(found))
    if left:
        lines.append(
            f"{counted(left, 'more variant')} left out: after the first, only the {ENDS} best and the "
            f"{ENDS} worst by {scores.name} are shown. Holm's correction counts all."
        )
    return lines


def effects_table(found: Components, scores: Scores) -> Table:
    """Main effects and interactions over seeds; of a long list those of the modules alone."""
    return effects_of(_shown_effects(found), scores)


def effects_of(found: Sequence[Effect], scores: Scores) -> Table:
    """Effects in a row each, with their spread over seeds."""
    rows = [
        [
            " \u00d7 ".join(_level(*each) for each in zip(one.factors, one.levels, strict=True)),
            signed(one.estimate.mean, 2),
            signed_interval(one.estimate),
            *(f"{p:.3g}" for p in (one.p, one.smallest_p, one.p_holm)),
        ]
        for one in found
    ]
    head = [f"effect, points of {scores.name}", "mean", INTERVAL, "sign-flip p", "smallest p", "p (Holm)"]
    return Table(head, rows)


def shapley_table(found: Components, scores: Scores) -> Table:
    """Shapley values of the components, and their sum."""
    known = [(_COMPONENTS[share.factor], share.estimate) for share in found.shares]
    rows = [
        [name, signed(one.mean, 2), signed_interval(one)]
        for name, one in (*known, ("all on minus all off", found.total))
    ]
    return Table([f"Shapley value, points of {scores.name}", "mean", INTERVAL], rows)


def effects_notes(rule: Rule) -> list[str]:
    """How the effects of factors are to be read, a line each."""
    line = (
        "Each number is made inside a seed that has every setting: a level minus the first, averaged over "
        "all other settings; an interaction is by how much one effect changes with the other (not halved). "
        "p (Holm) counts all rows."
    )
    return [line, NO_LOOKS] if rule.max_seeds is not None else [line]


def components_notes(found: Components, rule: Rule = FIXED) -> list[str]:
    """What the grid is, and how its numbers are to be read, a line each."""
    grid, left = found.grid, len(found.effects) - len(_shown_effects(found))
    others = [key for key in grid.factors if key not in MODULES]
    size = " \u00d7 ".join(str(len(levels)) for levels in grid.levels)
    lines = [
        f"The full {size} grid of {counted(len(grid.seeds), 'seed')}; each number is made inside a seed."
    ]
    if grid.dropped:
        lines[0] += f" Without seed {', '.join(map(str, grid.dropped))}, which lacks a cell."
    lines[0] += (
        " A main effect is averaged over all other values of the grid; an interaction is by how much one "
        "effect changes with the other (not halved). p (Holm) counts all effects."
    )
    if found.flags:
        lines[0] += f" Of its arms {tally(found.flags)}; all are counted."
    if others:
        first = ", ".join(f"{key} {shown(grid.levels[grid.factors.index(key)][0])}" for key in others)
        lines[0] += f" Other values are compared with {first}."
    if left:
        lines[0] += f" {counted(left, 'effect')} of other values are left out."
    if rule.max_seeds is not None:
        lines.append(NO_LOOKS)
    lines.append(
        "A Shapley value is what a component adds, averaged over every order of adding them"
        + (": of two components, its main effect." if len(found.shares) == 2 else ".")
    )
    return lines


def _shown_effects(found: Components) -> list[Effect]:
    if len(found.effects) <= EFFECTS:
        return found.effects
    return [one for one in found.effects if set(one.factors) <= set(MODULES)]


def _level(factor: str, level: object) -> str:
    """A module by its name; of another key its value, too."""
    if factor in MODULES:
        return _COMPONENTS[factor]
    return f"{factor}: {shown(level)}"


def published_table(gaps: Sequence[Gap], scores: Scores) -> Table:
    """Published scores beside ours, and the gap in the headline."""
    order = " / ".join(scores.names)
    head = ["method", f"published: {order}", f"ours: {order}", "n", f"gap in {scores.names[-1]}", INTERVAL]
    rows = []
    for each in gaps:
        means = [DASH] if each.ours is None else [_mean(found) for found in each.ours.estimates]
        cells = [each.published.method, printed(each.published.values)]
        cells += [" / ".join(means) if each.ours is not None and each.ours.n else DASH]
        cells += [n_of(each.ours.n, each.ours.flagged.flags) if each.ours is not None else DASH]
        cells += [signed(each.gap.mean if each.gap is not None else None, 2), signed_interval(each.gap)]
        rows.append([*cells, statuses(each.published.values), f"PAPER {each.published.source}"])
    return Table([*head, "status", "source"], rows)


def ablation_table() -> Table:
    """The published ablations, which no study here repeats exactly."""
    rows = [
        [row.item, row.setting, printed(row.values), statuses(row.values), f"PAPER {row.source}"]
        for row in ABLATIONS
    ]
    return Table(["item", "setting", "base / novel / harmonic mean", "status", "source"], rows)


def _mean(found: Estimate | None) -> str:
    return plain(found.mean if found is not None else None, 2)


def printed(values: Sequence[Value]) -> str:
    """`83.69 / 81.54 / 82.60`; a star for a harmonic mean that does not follow from the others."""
    return " / ".join(plain(value.number, 2) + "*" * (not value.follows) for value in values)


def statuses(values: Sequence[Value]) -> str:
    """One status for all, or each in turn."""
    found = [value.status for value in values]
    return found[0] if len(set(found)) == 1 else " / ".join(found)
