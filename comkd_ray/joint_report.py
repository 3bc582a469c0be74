"""One HTML file about several runs: methods that all have, ranked and tested over their data sets.

    from comkd_ray import joint_report; joint_report.build([Path("reports/a"), Path("reports/b")], target)

Offline like `report.py`, and made from the same files of every run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from comkd_ray.across_datasets import Pair
from comkd_ray.collapse import tally
from comkd_ray.document import document
from comkd_ray.joint import Cell, Joint, join_runs
from comkd_ray.markdown import as_markdown
from comkd_ray.markup import Html, join, paragraph, tag
from comkd_ray.planner import LEVEL, fewest_seeds, smallest_p_holm
from comkd_ray.rank_plot import rank_info, rank_plot
from comkd_ray.report_facts import DEMO_NOTICE
from comkd_ray.report_figures import figure
from comkd_ray.report_tables import explained_table, plain_table, titled
from comkd_ray.results import write_atomic
from comkd_ray.run import read
from comkd_ray.tables import FLAG_NOTE, Table, spread
from comkd_ray.words import DASH, counted, plain, signed


def build(folders: Sequence[Path], target: Path) -> Path:
    """Write the joint report of run directories to `target`. UserError where they do not belong together."""
    write_atomic(target, page(join_runs([read(folder) for folder in folders])).encode())
    return target


def markdown(folders: Sequence[Path]) -> str:
    """The joint report's tables as Markdown."""
    joint = join_runs([read(folder) for folder in folders])
    tables = [as_markdown(score_table(joint)), as_markdown(pair_table(joint))]
    told = [f"**{line}**" for line in notices(joint)]
    return "\n\n".join([*told, *sentences(joint), tables[0], *score_notes(joint), tables[1], PAIR_NOTE])


def page(joint: Joint) -> str:
    """The whole document."""
    warning = joint.scores.warning
    drawn = figure("ranks", lambda: rank_plot(rank_info(joint.ranks)), DIAGRAM_NOTE, warning, columns=7)
    notes = [paragraph(line, class_="caution") for line in score_notes(joint)]
    told = [paragraph(line, class_="notice") for line in notices(joint)]
    sections = [
        ("result", "Result", join([*told, *_lead(joint), drawn])),
        (
            "scores",
            "Scores",
            join(
                [titled("Mean over seeds by data set", joint.scores), plain_table(score_table(joint)), *notes]
            ),
        ),
        (
            "pairs",
            "Pairs of methods",
            join([plain_table(pair_table(joint)), paragraph(PAIR_NOTE, class_="caution")]),
        ),
        ("runs", "Runs", _runs(joint)),
    ]
    names = ", ".join(joint.runs)
    title = f"{counted(len(joint.ranks.methods), 'method')}, {counted(len(joint.runs), 'data set')}"
    head = join([tag("h1", title), paragraph(f"comkd-ray, several runs: {names}", class_="kind")])
    return document(title, head, sections)


DIAGRAM_NOTE = (
    "Dots on the axis are the methods' average ranks. A bar joins a largest group in which no pair differs "
    "(Wilcoxon, Holm), with a dot at each member; methods that no bar joins do differ. A bar is no proof "
    "that its methods are equal."
)
PAIR_NOTE = (
    "Points: the first minus the second in means over seeds, averaged over data sets. p is Wilcoxon's exact "
    "signed-rank test, two-sided; \u201csmallest p\u201d is 2 / 2\u207f over n data sets, the least that any "
    f"outcome can reach before Holm. Pairs differ where p (Holm, over all pairs) is below {LEVEL:g}."
)


def sentences(joint: Joint) -> list[str]:
    """What was found, and what this number of data sets could find at all."""
    ranks = joint.ranks
    best = f"{ranks.methods[0]} has the best average rank, {ranks.average_ranks[0]:.2f} of "
    best += f"{len(ranks.methods)}, over {counted(ranks.datasets, 'data set')}"
    differ = sum(pair.p_holm < LEVEL for pair in ranks.pairs)
    verb = "differs" if differ == 1 else "differ"
    best += f"; {differ} of {counted(len(ranks.pairs), 'pair')} of methods {verb}."
    told = _told(joint, ranks.methods)
    arms = sum(cell.estimate.n for cell in joint.cells.values())
    flags = f"Of {arms} full-budget arms {told}; they are in every mean, rank and test." if told else ""
    return [line for line in (best, flags, _friedman(joint), _reach(joint)) if line]


def _friedman(joint: Joint) -> str:
    """Whether the methods differ at all."""
    found = joint.ranks.friedman
    if found is None:
        return "Friedman's test takes three methods and two data sets."
    words = "the methods differ" if found[1] < LEVEL else "not decidable whether the methods differ at all"
    return f"Friedman's test over the ranks: chi-squared {found[0]:.2f}, p = {found[1]:.3g}: {words}."


def _reach(joint: Joint) -> str:
    """What n data sets can reach, before and after Holm."""
    n, pairs = joint.ranks.datasets, len(joint.ranks.pairs)
    after = smallest_p_holm(n, pairs)
    words = f"With {counted(n, 'data set')} the smallest p of a pair is {joint.ranks.smallest_p:.3g} before "
    words += f"Holm and {after:.3g} after it, over {counted(pairs, 'pair')}"
    if after < LEVEL:
        return f"{words}."
    words += ": no pair can be told apart here, whatever the scores; "
    return f"{words}{fewest_seeds(pairs)} data sets could."


def score_table(joint: Joint) -> Table:
    """Methods in the order of their ranks by data set, then what they are read against."""
    usual = Counter(cell.estimate.n for cell in joint.cells.values()).most_common(1)[0][0]
    names, rows = list(joint.runs), []
    for method, rank in zip(joint.ranks.methods, joint.ranks.average_ranks, strict=True):
        cells = [joint.cells[name, method] for name in names]
        mean = fmean(cell.estimate.mean for cell in cells)
        rows.append([method, *(_cell(cell, usual) for cell in cells), plain(mean, 2), f"{rank:.2f}"])
    for name, scores in joint.references.items():
        known = [score for score in scores if score is not None]
        over_all = fmean(known) if len(known) == len(scores) else None
        rows.append([name, *(plain(score, 2) for score in scores), plain(over_all, 2), DASH])
    return Table([f"{joint.scores.name} (%)", *names, "mean", "average rank"], rows)


def _told(joint: Joint, methods: Sequence[str]) -> str:
    """`2 collapsed (dtd, eurosat)`: flagged arms of some methods; empty where there is none."""
    cells = [(name, joint.cells[name, method].flagged.flags) for name in joint.runs for method in methods]
    named = dict.fromkeys(name for name, flags in cells if flags)
    return f"{tally(flag for _, flags in cells for flag in flags)} ({', '.join(named)})" if named else ""


def _cell(cell: Cell, usual: int) -> str:
    """Mean and sd, with n where it is not the usual one; with flagged arms their count, and it without."""
    words, n, flagged = spread(cell.estimate), cell.estimate.n, cell.flagged
    if not flagged.flags:
        return words if n == usual else f"{words} (n = {n})"
    others = plain(flagged.others.mean if flagged.others else None, 2)
    return f"{words} (n = {n}, {tally(flagged.flags)}; without {others})"


def score_notes(joint: Joint) -> list[str]:
    """How the scores were made, and what sets the runs apart, a line each."""
    usual = Counter(cell.estimate.n for cell in joint.cells.values()).most_common(1)[0][0]
    lines = [
        f"Mean \u00b1 sd (ddof = 1) over seeds of full-budget arms, n = {usual} unless a cell says so. "
        "Ranks and tests take one number a data set: that mean. Zero-shot and the teacher are not ranked."
    ]
    if any(cell.flagged.flags for cell in joint.cells.values()):
        lines.append(FLAG_NOTE)
    if joint.differing:
        lines.append(f"Not the same in all runs: {'; '.join(joint.differing)}.")
    if joint.left_out:
        lines.append(f"Left out, as not every run has them: {', '.join(joint.left_out)}.")
    return lines


def pair_table(joint: Joint) -> Table:
    """Every pair of methods, the better rank first."""
    ranks = joint.ranks
    head = ["first over second", "points", "data sets won", "Wilcoxon p", "smallest p", "p (Holm)"]
    return Table([*head, "verdict"], [_pair(pair, joint) for pair in ranks.pairs])


def _pair(pair: Pair, joint: Joint) -> list[str]:
    """Flagged arms of either method stand beside the verdict: they took part in it."""
    datasets, pairs = joint.ranks.datasets, len(joint.ranks.pairs)
    numbers = [f"{p:.3g}" for p in (pair.p, smallest_p_holm(datasets, 1), pair.p_holm)]
    verdict = "they differ" if pair.p_holm < LEVEL else "not decidable"
    if smallest_p_holm(datasets, pairs) >= LEVEL:
        verdict += f" with n = {datasets}"
    told = _told(joint, (pair.first, pair.second))
    verdict += f"; with {told}" * bool(told)
    points = signed(pair.mean_difference, 2)
    return [f"{pair.first} over {pair.second}", points, f"{pair.wins} of {datasets}", *numbers, verdict]


def notices(joint: Joint) -> list[str]:
    """What the reader has to know before the first number, a line each."""
    warning = joint.scores.warning
    lines = [f"Scores of arms on this page are {warning}."] if warning else []
    if any(run.is_demo for run in joint.runs.values()):
        lines.append(DEMO_NOTICE)
    return lines


def _lead(joint: Joint) -> list[Html]:
    return [paragraph(line, class_="lead" if k == 0 else "") for k, line in enumerate(sentences(joint))]


def _runs(joint: Joint) -> Html:
    """Which run every data set is from, and how it was trained and tested."""
    parts = []
    for name, run in joint.runs.items():
        parts += [tag("h3", f"{name}: study {run.name}"), explained_table(run.explained())]
        parts += [paragraph(line, class_="caution") for line in run.troubles]
    return join(parts)
