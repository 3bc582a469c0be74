"""Three views of the search: history, parallel coordinates, importance. They are Optuna's own.

An Optuna study is rebuilt in memory from the rows, so a report needs no journal and no server:
full-budget arms are COMPLETE trials, pruned and failed ones never carry a value, which keeps
low-budget scores out of "best so far" and out of the importances.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import optuna
import plotly.graph_objects as go
import polars as pl
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from plotly.colors import sample_colorscale

from comkd_ray.arms import Row, full_budget, is_same, scores_of, searched_keys
from comkd_ray.figure import BLUE, GREY, INK, MUTED, ORANGE, RED, NoFigure, dress, hover, symbols
from comkd_ray.protocols import OBJECTIVE
from comkd_ray.search_space import Dimension, Scalar

Space = Mapping[str, Dimension]

FEW_ARMS = 10
"""Fewer full-budget arms than this, and importances are noise."""
LINE_SCALE = [[0.0, "#b9a58a"], [0.5, "#8f98a3"], [1.0, "#1f83e0"]]
"""Low to high, readable on white and on black, and by blue-blind readers through lightness."""


def objective_label(arms: pl.DataFrame) -> str:
    """What the search maximised, as an axis names it."""
    scores = scores_of(arms)
    return scores.axis(scores.objective)


def rebuild_study(arms: pl.DataFrame, space: Space) -> optuna.Study:
    """The rows as an Optuna study in memory: trial i is row i. `space`: search.space, or empty."""
    keys = searched_keys(arms)
    dimensions = {key: _dimension(space.get(key), values) for key, values in _values(arms).items()}
    with quiet():
        study = optuna.create_study(direction="maximize")
        for row in arms.iter_rows(named=True):
            active = [key for key in keys if key in (row["searched"] or ()) and row[key] is not None]
            params = {key: _native(row[key], dimensions[key]) for key in active}
            study.add_trial(_trial(row, params, dimensions))
    return study


def _values(arms: pl.DataFrame) -> dict[str, list[Scalar]]:
    """The values each searched key took, in the arms where it was active."""
    return {
        key: arms.filter(pl.col("searched").list.contains(key))[key].drop_nulls().to_list()
        for key in searched_keys(arms)
    }


def _trial(row: Row, params: Row, dimensions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    value = row[OBJECTIVE]
    full = row["status"] == "complete" and value is not None and math.isfinite(value)
    other = TrialState.PRUNED if row["status"] == "pruned" else TrialState.FAIL
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE if full else other,
        value=value if full else None,
        params=params,
        distributions={key: dimensions[key] for key in params},
    )


def _dimension(declared: Dimension | None, seen: list[Scalar]) -> BaseDistribution:
    """A distribution of all values seen: as declared, widened where an arm was set by hand."""
    words = any(isinstance(value, str | bool) for value in seen)
    if declared is not None and declared.choice is not None:
        choices = list(declared.choice)
        choices += [v for v in dict.fromkeys(seen) if _same(v, choices) is None]
        return CategoricalDistribution(choices)
    if words or not seen:
        return CategoricalDistribution(sorted(set(seen), key=str) or [None])
    numbers = [float(value) for value in seen] + [float(v) for v in _bounds(declared)]
    low, high = min(numbers), max(numbers)
    log = declared.log if declared is not None else low > 0 and high / low >= 30
    log = log and low > 0
    if all(isinstance(value, int) for value in (*seen, *_bounds(declared))):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def _bounds(declared: Dimension | None) -> tuple[float, ...]:
    return (declared.bounds or ()) if declared is not None else ()


def _same(value: Scalar, choices: list[Scalar]) -> Scalar | None:
    """The choice that a stored value stands for."""
    return next((choice for choice in choices if is_same(value, choice)), None)


def _native(value: Scalar, dimension: BaseDistribution) -> Scalar:
    if isinstance(dimension, CategoricalDistribution):
        choice = _same(value, list(dimension.choices))  # type: ignore[arg-type]
        return value if choice is None else choice
    return value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's log lines and its notices about experimental parts; both come back after."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


class HistoryInfo(NamedTuple):
    """Optuna's study with the arms it leaves out: those pruned (at their own budget) or failed."""

    label: str
    study: optuna.Study
    numbers: list[int]
    """`number` of every trial: the search may have gaps, Optuna's numbers have none."""
    hovers: list[str]
    pruned: list[int]
    failed: list[int]
    pruned_values: list[float | None]


def history_info(arms: pl.DataFrame, space: Space) -> HistoryInfo:
    """What the history needs. NoFigure where no arm reached its full budget."""
    if full_budget(arms).is_empty():
        raise NoFigure("No arm reached its full budget, so there is no history of best values.")
    keys = searched_keys(arms)
    rows = list(arms.iter_rows(named=True))
    pruned = [index for index, row in enumerate(rows) if row["status"] == "pruned"]
    failed = [index for index, row in enumerate(rows) if row["status"] == "failed"]
    return HistoryInfo(
        objective_label(arms),
        rebuild_study(arms, space),
        [row["number"] for row in rows],
        [hover(row, keys) for row in rows],
        pruned,
        failed,
        [rows[index][OBJECTIVE] for index in pruned],
    )


def history_plot(info: HistoryInfo) -> go.Figure:
    """Value over arms with best so far; pruned arms hollow, failed ones crosses at the bottom."""
    with quiet():
        figure = optuna.visualization.plot_optimization_history(info.study, target_name=info.label)
    for trace in figure.data:
        indices = [int(x) for x in trace.x]
        trace.x = [info.numbers[index] for index in indices]
        if trace.mode == "markers":
            trace.update(marker={"color": BLUE, "size": 8}, name="full budget")
            trace.update(text=[info.hovers[index] for index in indices])
            trace.update(hovertemplate=f"%{{text}}<br>{info.label}: %{{y:.2f}}<extra></extra>")
        else:
            trace.update(line={"color": ORANGE, "width": 2, "shape": "hv"}, name="best so far")
            trace.y = [None if y is None or math.isinf(y) else y for y in trace.y]
    figure.data = [trace for trace in figure.data if trace.showlegend is not False]
    if info.pruned:
        figure.add_scatter(**_left_early(info))
    if info.failed:
        figure.add_scatter(**_failures(info, figure))
    dress(figure, 380).update_layout(xaxis_title_text="arm (number)", yaxis_title_text=info.label)
    return figure


def _left_early(info: HistoryInfo) -> dict[str, Any]:
    return {
        "x": [info.numbers[index] for index in info.pruned],
        "y": info.pruned_values,
        "text": [info.hovers[index] for index in info.pruned],
        "mode": "markers",
        "name": "pruned (smaller budget)",
        "marker": {"color": GREY, "symbol": symbols(["pruned"])[0], "size": 8},
        "hovertemplate": "%{text}<br>when pruned: %{y:.2f}<extra></extra>",
    }


def _failures(info: HistoryInfo, figure: go.Figure) -> dict[str, Any]:
    values = [y for trace in figure.data for y in trace.y if y is not None]
    return {
        "x": [info.numbers[index] for index in info.failed],
        "y": [min(values)] * len(info.failed),
        "text": [info.hovers[index] for index in info.failed],
        "mode": "markers",
        "name": "failed (no value)",
        "marker": {"color": RED, "symbol": symbols(["failed"])[0], "size": 9},
        "hovertemplate": "%{text}<extra></extra>",
    }


class ParallelInfo(NamedTuple):
    """A study of full-budget arms and the names of its axes, in Optuna's order."""

    study: optuna.Study
    labels: list[str]


def parallel_info(arms: pl.DataFrame, space: Space) -> ParallelInfo:
    """What the parallel coordinates need. NoFigure for fewer than two arms or no searched key."""
    rows = full_budget(arms)
    if len(rows) < 2:
        raise NoFigure(f"Parallel coordinates need two full-budget arms; there are {len(rows)}.")
    study = rebuild_study(rows, space)
    keys = sorted({key for trial in study.get_trials(deepcopy=False) for key in trial.params})
    if not keys:
        raise NoFigure("No key was searched, so there is nothing to draw in parallel.")
    return ParallelInfo(study, [f"{scores_of(arms).objective} (%)", *keys])


def parallel_plot(info: ParallelInfo) -> go.Figure:
    """One line an arm through its values: Optuna's, in colours for both schemes, names whole."""
    with quiet():
        figure = optuna.visualization.plot_parallel_coordinate(info.study, target_name=info.labels[0])
    for trace in figure.data:
        if trace.mode == "lines":
            high = min(1.0, max(0.0, float(trace.y[0])))  # the first axis is the value, 0 to 1
            trace.update(line={"color": sample_colorscale(LINE_SCALE, [high])[0]})
            trace.update(line_width=1.2 + 1.6 * high, opacity=0.75 + 0.25 * high)
        else:
            trace.marker.update(colorscale=LINE_SCALE, showscale=False)
    dress(figure, 450).update_layout(margin_r=64)  # names stand clear of the buttons
    figure.update_xaxes(
        ticktext=[label.replace(".", ".<br>").replace(" ", "<br>") for label in info.labels],
        side="top",
        showline=False,
        tickangle=0,
        range=(-0.45, len(info.labels) - 0.8),
    )
    figure.update_shapes(line_color=MUTED)
    figure.update_annotations(font={"color": INK, "size": 11})
    return figure


class ImportanceInfo(NamedTuple):
    """Importance of each searched key, largest first; they sum to 1."""

    study: optuna.Study
    importances: dict[str, float]
    arms: int
    top: float
    """Share of the arms that counts as the top which a key is important for reaching."""


def importance_info(arms: pl.DataFrame, space: Space) -> ImportanceInfo:
    """PED-ANOVA (https://arxiv.org/abs/2304.10255) over full-budget arms only.

    NoFigure for too few arms, a single key or equal values. `top` keeps five arms above the
    quantile, as the evaluator's documentation asks.
    """
    rows = full_budget(arms)
    if len(rows) < FEW_ARMS:
        few = f"Importance needs at least {FEW_ARMS} full-budget arms; there are {len(rows)}."
        raise NoFigure(few)
    varied = [key for key, values in _values(rows).items() if len(set(values)) > 1]
    if len(varied) < 2:
        raise NoFigure("Importance divides the search between keys, and fewer than two keys varied.")
    if rows[OBJECTIVE].n_unique() == 1:
        raise NoFigure("All full-budget arms have the same value, so no key can matter.")
    study = rebuild_study(rows, space)
    top = max(0.1, 5 / len(rows))
    with quiet():
        found = optuna.importance.get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(target_quantile=top), params=varied
        )
    return ImportanceInfo(study, dict(found), len(rows), top)


def importance_plot(info: ImportanceInfo) -> go.Figure:
    """Optuna's bars, largest on top."""
    evaluator = PedAnovaImportanceEvaluator(target_quantile=info.top)
    with quiet():
        figure = optuna.visualization.plot_param_importances(
            info.study, evaluator=evaluator, params=list(info.importances)
        )
    figure.update_traces(marker_color=BLUE, textfont_color=INK, width=0.6, showlegend=False)
    dress(figure, 90 + 36 * len(info.importances))
    figure.update_layout(xaxis_title_text="PED-ANOVA importance", yaxis_title_text=None)
    figure.update_xaxes(range=(0, 1.12 * max(info.importances.values(), default=1.0)))
    return figure
