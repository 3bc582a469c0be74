"""The head of the report: what was found, against what, and how much of it is evidence.

`findings` computes, `sentences` words it. The wording keeps three rules: the best of n is named as
such, a difference between two single arms is no evidence, and what n cannot decide is "not
decidable" instead of "no effect".
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from comkd_ray.arms import (
    METHODS,
    PROJECTOR_ONLY,
    PROMPTKD,
    SEED,
    Method,
    Row,
    Scores,
    best_arm,
    full_budget,
    has_modules,
    method_of,
    module_cells,
    of_method,
    scores_of,
    searched_keys,
)
from comkd_ray.collapse import AT_ONCE, COLLAPSED, FLAG, flagged
from comkd_ray.pairing import FIXED, Paired, Rule, is_seeded_grid, paired_by_seed
from comkd_ray.protocols import OBJECTIVE
from comkd_ray.reference_rows import REFERENCES
from comkd_ray.words import counted, percent, signed

NAMED = ("student zero-shot", "tuned teacher")
"""References that the first sentence and the tiles measure the best arm against."""


class Compared(NamedTuple):
    """A line of the comparison: test scores in percent, in the order of `Scores.tests`."""

    label: str
    scores: tuple[float | None, ...]

    @property
    def headline(self) -> float | None:
        """The last of them."""
        return self.scores[-1]


class Findings(NamedTuple):
    """What the head of the report says, in numbers."""

    scores: Scores
    ended: int
    full: int
    pruned: int
    failed: int
    best: Row | None
    compared: list[Compared]
    """The best arm, the best both-off arm, then the references; [] without a best arm."""
    knows_methods: bool
    """Whether the table says which method each arm is."""
    baseline: Method
    """Both modules off: PromptKD, or projector only in a study without prompts."""
    off: Row | None
    """The best full-budget arm of the baseline, the best arm itself if that is one."""
    off_arms: int
    paired: list[Paired]
    """By seed, where the study is a grid or a list with seeds; else []."""
    seed_searched: bool
    flagged: dict[str, list[Row]]
    """Arms of each flag of `collapse.py`, in the order of `number`; flags without an arm are left out."""


def findings(
    arms: pl.DataFrame,
    enumerated: bool | None = None,
    rule: Rule = FIXED,
    fixed: pl.DataFrame | None = None,
) -> Findings:
    """Sum up the `arms` table. `enumerated` is search.is_enumerated, None where the study file is gone.

    fixed: the arms that are paired by seed, those at fixed knobs; None for all.
    """
    scores, fixed = scores_of(arms), arms if fixed is None else fixed
    counts = {status: len(rows) for (status,), rows in arms.group_by("status")}
    best = best_arm(arms)
    baseline = module_cells(arms)[0] if has_modules(arms) else PROMPTKD
    off = of_method(arms, baseline) if has_modules(arms) else arms.clear()
    best_off = best_arm(off)
    return Findings(
        scores=scores,
        ended=len(arms),
        full=len(full_budget(arms)),
        pruned=counts.get("pruned", 0),
        failed=counts.get("failed", 0),
        best=best,
        compared=_compared(scores, best, best_off, METHODS[baseline]) if best is not None else [],
        knows_methods=has_modules(arms),
        baseline=baseline,
        off=best_off,
        off_arms=len(full_budget(off)),
        paired=paired_by_seed(fixed, scores.headline, rule) if is_seeded_grid(fixed, enumerated) else [],
        seed_searched=SEED in searched_keys(arms),
        flagged=_flagged(arms),
    )


def _flagged(arms: pl.DataFrame) -> dict[str, list[Row]]:
    rows = flagged(arms).sort("number", "arm")
    found = {name: rows.filter(pl.col(FLAG) == name) for name in (COLLAPSED, AT_ONCE)}
    return {name: list(some.iter_rows(named=True)) for name, some in found.items() if len(some)}


def _compared(scores: Scores, best: Row, off: Row | None, baseline: str) -> list[Compared]:
    lines = [_line("best arm", best, "", scores)]
    if off is not None and off["arm"] != best["arm"]:
        lines.append(_line(f"best arm with both modules off ({baseline})", off, "", scores))
    lines += [_line(name, best, f"{prefix}_", scores) for name, prefix in REFERENCES.items()]
    return [line for line in lines if any(score is not None for score in line.scores)]


def _line(label: str, row: Row, prefix: str, scores: Scores) -> Compared:
    return Compared(label, tuple(row[f"{prefix}{test}"] for test in scores.tests))


def sentences(found: Findings) -> list[str]:
    """The head of the report in plain words, one paragraph each. Not escaped."""
    if found.best is None:
        left = f"{counted(found.pruned, 'arm')} left early and {counted(found.failed, 'arm')} failed"
        return [f"No arm finished its full budget: of {found.ended}, {left}. Nothing can be concluded."]
    return [
        _result(found, found.best),
        _choice(found, found.best),
        *_flags(found, found.best),
        *_modules(found, found.best),
    ]


def _result(found: Findings, best: Row) -> str:
    scores = found.scores
    headline = best[scores.headline]
    named = zip(scores.names[:-1], scores.tests[:-1], strict=True)
    parts = [f"{scores.name} {percent(headline)}", *(f"{name} {percent(best[key])}" for name, key in named)]
    method = f", {METHODS[method_of(best)]}" if found.knows_methods else ""
    text = f"The best student is arm {best['arm']} (number {best['number']}){method}: {', '.join(parts)}."
    lines = [line for line in found.compared if line.label in NAMED]
    known = [words for words in (_distance(headline, line) for line in lines) if words]
    return f"{text} That is {' and '.join(known)}." if known else text


def _distance(ours: float | None, line: Compared) -> str:
    """`6.1 points above the student zero-shot (71.1 %)`; empty where either is unknown."""
    if ours is None or line.headline is None:
        return ""
    difference = ours - line.headline
    place = f"the {line.label} ({percent(line.headline)})"
    if f"{abs(difference):.1f}" == "0.0":
        return f"level with {place}"
    return f"{abs(difference):.1f} points {'above' if difference > 0 else 'below'} {place}"


def _choice(found: Findings, best: Row) -> str:
    """By what the best arm was chosen, and what that makes of its score."""
    how = f"by {found.scores.objective} ({percent(best[OBJECTIVE])})"
    luck = ", and the seed is searched, so it is partly the luckiest seed" * found.seed_searched
    if found.scores.on_test:
        seen = f"{how}: labels of the test set chose, as PromptKD does."
        best_of = "its epoch" if found.full == 1 else f"the best of {found.full} arms and all their epochs"
        warned = f"The score is that of {best_of} on the very images it is tested on{luck}: it is no "
        warned += "estimate of new images."
    else:
        seen = f"{how}. The search saw no test label."
        if found.scores.rules.labels != "all":
            seen += " That score counts agreement with the teacher, so it does not compare with a test score."
        warned = (
            f"The best of {found.full} is optimistic: its validation score was picked for being high{luck}."
        )
        warned = "" if found.full == 1 else warned
    if found.full == 1:
        return f"It is the only full-budget arm. Its epoch was chosen {seen} {warned}".strip()
    return f"It was chosen among {found.full} full-budget arms {seen} {warned}"


NAMES = 6
"""Flagged arms that a sentence names; a table below it lists all."""


def _flags(found: Findings, best: Row) -> list[str]:
    """How many arms collapsed or peaked at once, which, and what becomes of them."""
    parts = []
    for name, rows in found.flagged.items():
        named = ", ".join(f"{row['arm']} (number {row['number']})" for row in rows[:NAMES])
        more = f" and {len(rows) - NAMES} more" * (len(rows) > NAMES)
        parts.append(f"{len(rows)} of {counted(found.full, 'full-budget arm')} {name}: {named}{more}.")
    if not parts:
        return []
    of_arm = {row["arm"]: name for name, rows in found.flagged.items() for row in rows}
    own = of_arm.get(best["arm"])
    parts += [f"The best arm itself {own}."] * (own is not None)
    one = sum(map(len, found.flagged.values())) == 1
    words = "It is in every mean and test" if one else "They are in every mean and test"
    parts.append(f"{words}; tables say where, and what each mean is without {'it' if one else 'them'}.")
    return [" ".join(parts)]


def _modules(found: Findings, best: Row) -> list[str]:
    """What may be said about IFAlign and EduAttention."""
    baseline = METHODS[found.baseline]
    if found.paired:
        modules = [pair for pair in found.paired if pair.name != METHODS[PROJECTOR_ONLY]]
        return [_paired_sentence(pair) for pair in modules]
    if found.off is None:
        return [
            f"No full-budget arm has both modules off ({baseline}), so nothing here says what "
            "IFAlign and EduAttention are worth."
        ]
    if found.off["arm"] == best["arm"]:
        return [f"The best arm has both modules off: it is {baseline}, without IFAlign and EduAttention."]
    ours, theirs = best[found.scores.headline], found.off[found.scores.headline]
    text = f"With both modules off ({baseline}), the best of {counted(found.off_arms, 'arm')} by "
    text += f"{found.scores.objective} reaches {percent(theirs)}"
    if method_of(best) == PROJECTOR_ONLY:
        return [f"{text}; the best arm has no module either: it is {METHODS[PROJECTOR_ONLY]}."]
    if ours is None or theirs is None:
        return [f"{text}."]
    return [
        f"{text}; the best arm differs by {signed(ours - theirs)} points. A difference between two "
        "single arms is not evidence for the modules: not decidable here. A grid over "
        "student.ifalign, student.edu_attention and train.seed would pair them."
    ]


def _paired_sentence(pair: Paired) -> str:
    found, n, mean = pair.found, pair.found.n, pair.found.estimate
    held = f", with {pair.told}" * bool(pair.flags)
    text = f"{pair.name[0].upper()}{pair.name[1:]} minus {pair.baseline}, paired by seed (n = {n}{held}): "
    text += f"{signed(mean.mean if mean else None, 2)} points"
    if mean is None or mean.low is None:
        return f"{text}. One pair has no spread: not decidable."
    test = "every look counted" if found.at_any_look else "exact sign-flip"
    text += f", 95 % t-interval {signed(mean.low, 2)} to {signed(mean.high, 2)}, {test} "
    text += f"p = {found.p:.3g} (the smallest that n = {n} can reach is {found.smallest_p:.3g})"
    if found.verdict == "open":
        return f"{text}: open, it wants another seed."
    if found.verdict != "not decidable":
        return f"{text}: that it scores above is {found.verdict}."
    text += ": not decidable" + f" with {n} seeds" * (not found.decidable)
    if not found.further_seeds:
        return f"{text}."
    more = counted(found.further_seeds, "more seed")
    return f"{text}. About {more} would decide it, were the effect seen the true one."
