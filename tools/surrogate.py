"""Samplers against each other on recorded arms: a tabulated surrogate of a study, in seconds.

What: a table of real arms stands for the study. A proposal is answered by the objective of the nearest
recorded arm of the same categorical cell (equal choices, so equal active keys) that has not answered in
this search; near is Euclid's distance of the numeric keys, each on the unit interval of its range, by
logarithm where it is `log`. A cell that has no arm left answers nothing, which is told to the sampler as
a failed arm. Every sampler is asked through `OptunaArms` as a study asks it, a cohort at once, without
named arms.

Why an arm answers once: in a study two arms close to each other are two trainings with two results. A
table that answers both alike shows fewer results to a sampler that looks closely than to one that looks
everywhere (docs/log.md, 2026-11-25, has the numbers).

What it cannot show: noise between seeds (an answer is always the same), or that the winner is better
than the best recorded arm. It compares how fast samplers find what the table has. Where near arms have
answered, the answer comes from further away, so a sampler that looks closely sees a blurred picture.
`--shuffled` leaves the choices alone to be learned: the objectives of every cell change places, with
the seed of the search.

Command: record random arms at full budget, make the table, compare::

    comkd-ray tune --set study=random --set search.sampler=random --set search.halving=null \\
        --set search.first=[] --set search.arms=480
    python tools/surrogate.py table reports/random tests/data/quickstart_surrogate.parquet
    python tools/surrogate.py compare tests/data/quickstart_surrogate.parquet --out reports/samplers
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import polars as pl
from scipy import stats

from comkd_ray import study_file
from comkd_ray.arms import full_budget
from comkd_ray.config import Study
from comkd_ray.errors import UserError
from comkd_ray.optuna_search import OptunaArms
from comkd_ray.protocols import OBJECTIVE
from comkd_ray.results import read_arms
from comkd_ray.search_space import Dimension, Overrides, Scalar
from comkd_ray.stats import Estimate, estimate

SAMPLERS = ("random", "qmc", "tpe")
COLORS = {"random": "#7f7f7f", "qmc": "#009e73", "tpe": "#0072b2", "gp": "#d55e00", "nsga2": "#cc79a7"}
ARMS, RUNS = 40, 20

Curve = list[float]
"""Best objective so far after each arm; minus infinity before the first answer."""


def quickstart(**search: Any) -> Study:
    """The quickstart with another `search`."""
    study = study_file.load(study_file.search_spaces() / "quickstart.yaml")
    changed = study.search.model_copy(update={"halving": None, "first": (), **search})
    return study.model_copy(update={"search": changed})


def make_table(run: Path, space: Mapping[str, Dimension]) -> pl.DataFrame:
    """Arms at full budget of a run: their searched values, null where a key is inactive, and objective."""
    arms = full_budget(read_arms(run))
    missing = [key for key in space if key not in arms.columns]
    if missing:
        raise UserError(f"{run}: its arms have no {', '.join(missing)}")
    active = [pl.when(pl.col("searched").list.contains(key)).then(pl.col(key)).alias(key) for key in space]
    return arms.select(*active, OBJECTIVE)


class Surrogate:
    """Answers the configurations of one search from a table, each recorded arm once."""

    def __init__(self, table: pl.DataFrame, space: Mapping[str, Dimension]) -> None:
        self.space = space
        self.cells: dict[tuple[tuple[str, Scalar], ...], list[tuple[list[float], float]]] = {}
        for row in table.iter_rows(named=True):
            value = row.pop(OBJECTIVE)
            drawn = {key: found for key, found in row.items() if found is not None}
            self.cells.setdefault(self._cell(drawn), []).append((self._places(drawn), value))

    def _cell(self, drawn: Overrides) -> tuple[tuple[str, Scalar], ...]:
        return tuple((key, drawn[key]) for key, one in self.space.items() if one.choice and key in drawn)

    def _places(self, drawn: Overrides) -> list[float]:
        ranges = {key: one for key, one in self.space.items() if not one.choice and key in drawn}
        return [place(one, float(drawn[key])) for key, one in ranges.items()]

    def __call__(self, drawn: Overrides) -> float | None:
        """The objective of the nearest arm of the same cell that is left; None where none is."""
        arms, own = self.cells.get(self._cell(drawn), []), self._places(drawn)
        if not arms:
            return None
        nearest = min(range(len(arms)), key=lambda index: math.dist(arms[index][0], own))
        return arms.pop(nearest)[1]


def place(dimension: Dimension, value: float) -> float:
    """Where a value lies on the unit interval of its range."""
    assert dimension.bounds is not None
    low, high = dimension.bounds
    if dimension.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def search(table: pl.DataFrame, study: Study) -> list[float | None]:
    """What the arms of one search got, a cohort asked at once; None for an empty cell."""
    surrogate, arms, answers = Surrogate(table, study.search.space), OptunaArms(study, None), []
    while arms.left():
        asked = [arms.ask() for _ in range(min(study.search.arms_per_trial, arms.left()))]
        for proposal in asked:
            value = surrogate(proposal.overrides)
            row = {"arm": str(proposal.number), "status": "complete" if value is not None else "failed"}
            arms.tell(proposal.number, {"arm": row | {OBJECTIVE: value}, "epochs": []})
            answers.append(value)
    return answers


def best_so_far(answers: Sequence[float | None]) -> Curve:
    """The highest answer up to each arm."""
    known = (-math.inf if answer is None else answer for answer in answers)
    return list(itertools.accumulate(known, max))


def shuffled(table: pl.DataFrame, space: Mapping[str, Dimension], seed: int) -> pl.DataFrame:
    """The table with the objectives of every categorical cell in another order."""
    cell = [key for key, one in space.items() if one.choice]
    return table.with_columns(pl.col(OBJECTIVE).shuffle(seed=seed).over(cell))


def compare(
    table: pl.DataFrame,
    samplers: Sequence[str] = SAMPLERS,
    arms: int = ARMS,
    runs: int = RUNS,
    shuffle: bool = False,
) -> dict[str, list[Curve]]:
    """Curves of each sampler, one a seed. shuffle: with the objectives of every cell in another order."""
    curves: dict[str, list[Curve]] = {name: [] for name in samplers}
    for name, seed in itertools.product(samplers, range(runs)):
        study = quickstart(sampler=name, arms=arms, seed=seed)
        own = shuffled(table, study.search.space, seed) if shuffle else table
        curves[name].append(best_so_far(search(own, study)))
    return curves


def at(curves: Sequence[Curve], arm: int) -> Estimate:
    """Mean of the best so far after `arm` arms, with its 95 % interval over runs."""
    found = estimate([curve[arm - 1] for curve in curves])
    assert found is not None
    return found


def band(found: Estimate) -> tuple[float, float, float]:
    """(low, mean, high); a single run has no band."""
    low = found.mean if found.low is None else found.low
    return low, found.mean, 2 * found.mean - low


def draw(curves: Mapping[str, Sequence[Curve]]) -> go.Figure:
    """Best so far over arms, from where every run has an answer: mean and 95 % band of each sampler.

    The legend says how far from the first sampler each ends.
    """
    figure = go.Figure()
    for name, own in curves.items():
        counts = [n for n in range(1, len(own[0]) + 1) if all(math.isfinite(curve[n - 1]) for curve in own)]
        low, mean, high = zip(*(band(at(own, count)) for count in counts), strict=True)
        color = COLORS.get(name, "#000000")
        edge = {"mode": "lines", "line_width": 0, "showlegend": False, "hoverinfo": "skip"}
        figure.add_scatter(x=counts, y=high, **edge)
        figure.add_scatter(x=counts, y=low, fill="tonexty", fillcolor=faint(color), **edge)
        distance = against(curves, name)
        label = f"{name} ({len(own)} runs)" + f"<br>{distance} against {next(iter(curves))}" * bool(distance)
        figure.add_scatter(x=counts, y=mean, mode="lines", line_color=color, name=label)
    figure.update_layout(template="plotly_white", xaxis_title="arms", yaxis_title="best objective so far (%)")
    return figure


def faint(color: str) -> str:
    """A colour at a sixth of its strength."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def apart(own: Sequence[Curve], reference: Sequence[Curve], arm: int) -> tuple[float, float, float]:
    """(low, mean, high) of the difference after `arm` arms, by Welch's 95 % interval; two runs or more."""
    samples = [[curve[arm - 1] for curve in curves] for curves in (own, reference)]
    mean = statistics.fmean(samples[0]) - statistics.fmean(samples[1])
    squares = [statistics.variance(one) / len(one) for one in samples]
    if not any(squares):
        return mean, mean, mean
    freedom = sum(squares) ** 2 / sum(v**2 / (len(one) - 1) for v, one in zip(squares, samples, strict=True))
    reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(sum(squares))
    return mean - reach, mean, mean + reach


def against(curves: Mapping[str, Sequence[Curve]], name: str) -> str:
    """How far from the first sampler one ends, in words; empty for the first and where that is unknown."""
    own, first = curves[name], next(iter(curves))
    ends = [curve[-1] for curve in (*own, *curves[first])]
    known = name != first and len(own) > 1 and all(map(math.isfinite, ends))
    return worded(apart(own, curves[first], len(own[0])), "+") if known else ""


def markdown(curves: Mapping[str, Sequence[Curve]]) -> str:
    """Best so far after a quarter, half and all of the arms, and at the end against the first sampler.

    Means and 95 % intervals over runs.
    """
    arms = len(next(iter(curves.values()))[0])
    counts = sorted({max(1, arms // 4), max(1, arms // 2), arms})
    first = next(iter(curves))
    heads = ["sampler", "runs", *(f"after {count} arms" for count in counts), f"against {first}"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for name, own in curves.items():
        cells = [worded(band(at(own, count))) for count in counts]
        cells.append(against(curves, name))
        lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def worded(found: tuple[float, float, float], sign: str = "") -> str:
    """A mean and its interval."""
    low, mean, high = found
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def main(words: Sequence[str] | None = None) -> int:
    """The two commands of the head of this file."""
    parser = argparse.ArgumentParser(description="Samplers against each other on recorded arms.")
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table", help="make the table of a run")
    table.add_argument("run", type=Path)
    table.add_argument("file", type=Path)
    against = commands.add_parser("compare", help="run the samplers on a table")
    against.add_argument("file", type=Path)
    against.add_argument("--samplers", nargs="+", default=SAMPLERS)
    against.add_argument("--arms", type=int, default=ARMS)
    against.add_argument("--runs", type=int, default=RUNS)
    against.add_argument("--shuffled", action="store_true", help="leave the choices alone to be learned")
    against.add_argument("--out", type=Path, required=True, help="folder of samplers.html and samplers.md")
    asked = parser.parse_args(words)
    if asked.command == "table":
        found = make_table(asked.run, quickstart().search.space)
        asked.file.parent.mkdir(parents=True, exist_ok=True)
        found.write_parquet(asked.file)
        print(f"{asked.file}: {len(found)} arms at full budget")
        return 0
    curves = compare(pl.read_parquet(asked.file), asked.samplers, asked.arms, asked.runs, asked.shuffled)
    asked.out.mkdir(parents=True, exist_ok=True)
    draw(curves).write_html(asked.out / "samplers.html", include_plotlyjs=True)
    (asked.out / "samplers.md").write_text(markdown(curves) + "\n", encoding="utf-8")
    print(markdown(curves))
    return 0


if __name__ == "__main__":
    sys.exit(main())
