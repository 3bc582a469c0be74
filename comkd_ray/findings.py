"""The head of the report: what was found, against what, and how much of it is evidence.

`findings` computes, `sentences` words it. The wording keeps three rules: the best of n is named as
such, a difference between two single arms is no evidence, and what n cannot decide is "not
decidable" instead of "no effect".
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from comkd_ray.figure import DASH
from comkd_ray.stats import (
    BOTH_OFF,
    SEED,
    Cell,
    Paired,
    Row,
    best_arm,
    full_budget,
    has_modules,
    in_cell,
    is_seeded_grid,
    paired_by_seed,
    searched_keys,
    verdict,
)

SCORES = ("base_accuracy", "novel_accuracy", "harmonic_mean")

CELL_WORDS: dict[Cell, str] = {
    (False, False): "both modules off (PromptKD)",
    (True, False): "IFAlign alone",
    (False, True): "EduAttention alone",
    (True, True): "both modules on",
}


class Compared(NamedTuple):
    """A line of the comparison: test scores in percent, in the order of SCORES; None if unknown."""

    label: str
    scores: tuple[float | None, float | None, float | None]

    @property
    def harmonic_mean(self) -> float | None:
        """The third of them."""
        return self.scores[2]


class Findings(NamedTuple):
    """What the head of the report says, in numbers."""

    ended: int
    full: int
    pruned: int
    failed: int
    best: Row | None
    compared: list[Compared]
    """The best arm, the best both-off arm, then the references; [] without a best arm."""
    off: Row | None
    """The best full-budget arm with both modules off, the best arm itself if that is one."""
    off_arms: int
    paired: list[Paired]
    """By seed, where the study is a grid with seeds; else []."""
    seed_searched: bool


def findings(arms: pl.DataFrame, sampler: str | None = None) -> Findings:
    """Sum up the `arms` table. `sampler` is search.sampler, None where the study file is gone."""
    counts = {status: len(rows) for (status,), rows in arms.group_by("status")}
    best = best_arm(arms)
    off = in_cell(arms, BOTH_OFF) if has_modules(arms) else arms.clear()
    best_off = best_arm(off)
    return Findings(
        ended=len(arms),
        full=len(full_budget(arms)),
        pruned=counts.get("pruned", 0),
        failed=counts.get("failed", 0),
        best=best,
        compared=_compared(best, best_off) if best is not None else [],
        off=best_off,
        off_arms=len(full_budget(off)),
        paired=paired_by_seed(arms) if is_seeded_grid(arms, sampler) else [],
        seed_searched=SEED in searched_keys(arms),
    )


def _compared(best: Row, off: Row | None) -> list[Compared]:
    lines = [_line("best arm", best, "test_")]
    if off is not None and off["arm"] != best["arm"]:
        lines.append(_line("best arm with both modules off (PromptKD)", off, "test_"))
    lines += [
        _line("student zero-shot", best, "zero_shot_test_"),
        _line("tuned teacher", best, "teacher_test_"),
        _line("teacher zero-shot", best, "teacher_zero_shot_test_"),
    ]
    return [line for line in lines if any(score is not None for score in line.scores)]


def _line(label: str, row: Row, prefix: str) -> Compared:
    base, novel, mean = (row[f"{prefix}{score}"] for score in SCORES)
    return Compared(label, (base, novel, mean))


def percent(value: float | None, digits: int = 1) -> str:
    """`77.2 %` with a space that does not break, or a dash."""
    return DASH if value is None else f"{value:.{digits}f}\u202f%"


def signed(value: float | None, digits: int = 1) -> str:
    """`+0.6` or `-0.6` with a true minus, or a dash. What rounds to nothing carries no sign."""
    if value is None:
        return DASH
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else "\u2212") + text


def sentences(found: Findings) -> list[str]:
    """The head of the report in plain words, one paragraph each. Not escaped."""
    if found.best is None:
        left = f"{_arms(found.pruned)} left early and {_arms(found.failed)} failed"
        return [f"No arm finished its full budget: of {found.ended}, {left}. Nothing can be concluded."]
    return [
        _result(found, found.best),
        _choice(found, found.best),
        *_modules(found, found.best),
    ]


def _result(found: Findings, best: Row) -> str:
    base, novel, mean = (best[f"test_{score}"] for score in SCORES)
    text = (
        f"The best student is arm {best['arm']} (number {best['number']}): test harmonic mean "
        f"{percent(mean)}, base {percent(base)}, novel {percent(novel)}."
    )
    distances = []
    for line in found.compared:
        if line.label in ("student zero-shot", "tuned teacher"):
            distances.append(_distance(mean, line))
    known = [distance for distance in distances if distance]
    return f"{text} That is {' and '.join(known)}." if known else text


def _distance(mean: float | None, line: Compared) -> str:
    """`6.1 points above student zero-shot (71.1 %)`; empty where either is unknown."""
    if mean is None or line.harmonic_mean is None:
        return ""
    gap = mean - line.harmonic_mean
    place = f"the {line.label} ({percent(line.harmonic_mean)})"
    if f"{abs(gap):.1f}" == "0.0":
        return f"level with {place}"
    return f"{abs(gap):.1f} points {'above' if gap > 0 else 'below'} {place}"


def _choice(found: Findings, best: Row) -> str:
    score = percent(best["val_harmonic_mean"])
    how = (
        f"by val_harmonic_mean ({score}): accuracy on validation images of base classes, and "
        "agreement with the teacher on novel classes. The search saw no test label."
    )
    if found.full == 1:
        return f"It is the only full-budget arm. Epochs were compared {how}"
    luck = ", and the seed is searched, so it is partly the luckiest seed" * found.seed_searched
    return (
        f"It was chosen among {found.full} full-budget arms {how} "
        f"The best of {found.full} is optimistic: its validation score was picked for being "
        f"high{luck}."
    )


def _modules(found: Findings, best: Row) -> list[str]:
    """What may be said about IFAlign and EduAttention."""
    if found.paired:
        return [_paired_sentence(pair) for pair in found.paired]
    if found.off is None:
        return [
            "No full-budget arm has both modules off (PromptKD), so nothing here says what "
            "IFAlign and EduAttention are worth."
        ]
    if found.off["arm"] == best["arm"]:
        return ["The best arm has both modules off: it is PromptKD, without IFAlign and EduAttention."]
    ours, theirs = best["test_harmonic_mean"], found.off["test_harmonic_mean"]
    text = f"With both modules off (PromptKD), the best of {_arms(found.off_arms)} "
    text += f"reaches {percent(theirs)}"
    if ours is None or theirs is None:
        return [f"{text}."]
    return [
        f"{text}; the best arm differs by {signed(ours - theirs)} points. A difference between two "
        "single arms is not evidence for the modules: not decidable here. A grid over "
        "student.ifalign, student.edu_attention and train.seed would pair them."
    ]


def _paired_sentence(pair: Paired) -> str:
    mean, n = pair.estimate, pair.estimate.n
    text = f"{CELL_WORDS[pair.cell]} minus both off, paired by seed (n = {n}): "
    text += f"{signed(mean.mean, 2)} points"
    if mean.low is None:
        return f"{text[0].upper()}{text[1:]}. One pair has no spread: not decidable."
    text += f", 95 % t-interval {signed(mean.low, 2)} to {signed(mean.high, 2)}, exact sign-flip "
    text += f"p = {pair.p:.3g} (the smallest that n = {n} can reach is {pair.smallest_p:.3g})"
    reason = "" if pair.decidable else f" with {n} seeds"
    return f"{text[0].upper()}{text[1:]}: {verdict(pair)}{reason}."


def _arms(count: int) -> str:
    return f"{count} arm" if count == 1 else f"{count} arms"
