"""The front of a search with two objectives: the arms that no other beats in both. Optuna's own plot."""

from __future__ import annotations

from typing import NamedTuple

import optuna
import plotly.graph_objects as go
import polars as pl

from comkd_ray.arms import full_budget, searched_keys
from comkd_ray.figure import BLUE, GREY, NoFigure, dress, hover
from comkd_ray.protocols import OBJECTIVE
from comkd_ray.search_plots import objective_label
from comkd_ray.search_study import Space, quiet, rebuild_study


class FrontInfo(NamedTuple):
    """An Optuna study of full-budget arms with all objectives, their axes, and what each arm is."""

    study: optuna.Study
    labels: list[str]
    hovers: list[str]


def front_info(arms: pl.DataFrame, space: Space, objectives: tuple[str, ...]) -> FrontInfo:
    """What the front needs. NoFigure where no arm reached its full budget."""
    rows = full_budget(arms)
    if rows.is_empty():
        raise NoFigure("No arm reached its full budget, so there is no front.")
    single = rebuild_study(rows, space)
    with quiet():
        study = optuna.create_study(
            directions=["maximize" if name == OBJECTIVE else "minimize" for name in objectives]
        )
        for trial, row in zip(single.trials, rows.iter_rows(named=True), strict=True):
            study.add_trial(
                optuna.trial.create_trial(
                    values=[row[name] for name in objectives],
                    params=trial.params,
                    distributions=trial.distributions,
                )
            )
    labels = [objective_label(arms) if name == OBJECTIVE else name for name in objectives]
    keys = searched_keys(arms)
    return FrontInfo(study, labels, [hover(row, keys) for row in rows.iter_rows(named=True)])


def front_plot(info: FrontInfo) -> go.Figure:
    """Optuna's Pareto front: arms that another beats in grey, the front in blue."""
    with quiet():
        figure = optuna.visualization.plot_pareto_front(info.study, target_names=info.labels)
    front = [trial.number for trial in info.study.best_trials]
    beaten = [number for number in range(len(info.hovers)) if number not in front]
    for trace, numbers, color, name in zip(
        figure.data, (beaten, front), (GREY, BLUE), ("another arm beats it", "front"), strict=True
    ):
        trace.update(marker={"color": color, "size": 8, "showscale": False, "line": {"width": 0}})
        trace.update(name=name, showlegend=True, hovertemplate="%{text}<extra></extra>")
        trace.update(text=[info.hovers[number] for number in numbers])
    return dress(figure, 420)
