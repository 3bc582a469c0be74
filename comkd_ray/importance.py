"""How far each searched key separates the best arms from the rest: PED-ANOVA, and how sure that is.

It describes the sampled space and is no ablation verdict: where the sampler looked, and how wide a range
was, decide with the key itself, and a module that helps everywhere by half a point can rank last.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import NamedTuple

import numpy as np
import optuna
import plotly.graph_objects as go
import polars as pl
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from comkd_ray.arms import full_budget
from comkd_ray.figure import BLUE, GREY, INK, NoFigure, dress
from comkd_ray.protocols import OBJECTIVE
from comkd_ray.search_study import Space, quiet, rebuild_study, values_seen

FEW_ARMS = 10
"""Fewer full-budget arms than this, and nothing is shown: half of them would be the top."""
SURE_ARMS = 30
"""Fewer than this, and the bars are grey.

In 60 random searches of five keys, one of which explains half of the variance, that key came first in
58 % with 10 arms, 80 % with 30, 95 % with 80.
"""
TOP_ARMS = 5
"""Arms above the quantile at least, as the evaluator's documentation asks."""
DRAWS = 200
"""Resamples of the arms behind an interval."""
MIDDLE = (0.05, 0.95)
"""Quantiles of the resamples between which an interval lies."""


class Bar(NamedTuple):
    """A key's share of the importance, 0 to 1, and where 90 % of the resamples lie."""

    key: str
    share: float
    low: float
    high: float


class ImportanceInfo(NamedTuple):
    """Importance of every searched key that varied, largest first; shares sum to 1."""

    bars: list[Bar]
    arms: int
    top: float
    """Share of the arms that counts as the top which a key is important for reaching."""

    @property
    def is_sure(self) -> bool:
        """Whether there are enough arms for colour."""
        return self.arms >= SURE_ARMS


def importance_info(arms: pl.DataFrame, space: Space, enumerated: bool | None = None) -> ImportanceInfo:
    """PED-ANOVA (arXiv 2304.10255; of conditional keys, 2601.20800) over full-budget arms only.

    Intervals come from DRAWS resamples of the arms with replacement, seed 0. NoFigure for a grid or a
    list (`enumerated`), too few arms, a single key or equal values.
    """
    if enumerated:
        raise NoFigure(
            "Importance describes where a sampler looked; here all arms were listed beforehand, so their "
            "differences are shown as such."
        )
    rows = full_budget(arms)
    if len(rows) < FEW_ARMS:
        few = f"Importance needs at least {FEW_ARMS} full-budget arms; there are {len(rows)}."
        raise NoFigure(few)
    varied = [key for key, values in values_seen(rows).items() if len(set(values)) > 1]
    if len(varied) < 2:
        raise NoFigure("Importance divides the search between keys, and fewer than two keys varied.")
    if rows[OBJECTIVE].n_unique() == 1:
        raise NoFigure("All full-budget arms have the same value, so no key can matter.")
    trials, top = rebuild_study(rows, space).get_trials(deepcopy=False), max(0.1, TOP_ARMS / len(rows))
    shares = _shares(trials, varied, top)  # [keys]
    draw = np.random.default_rng(0).integers(0, len(trials), (DRAWS, len(trials)))
    resampled = np.array([_shares([trials[place] for place in row], varied, top) for row in draw])
    lows, highs = np.quantile(resampled, MIDDLE, axis=0)
    bars = [Bar(*each) for each in zip(varied, shares, lows.tolist(), highs.tolist(), strict=True)]
    return ImportanceInfo(sorted(bars, key=lambda bar: -bar.share), len(rows), top)


def _shares(trials: Sequence[FrozenTrial], keys: Sequence[str], top: float) -> list[float]:
    """Importance of each key, 0 for one that no trial has."""
    known = [key for key in keys if any(key in trial.params for trial in trials)]
    with quiet():
        found = optuna.importance.get_param_importances(
            _Drawn(trials), evaluator=PedAnovaImportanceEvaluator(target_quantile=top), params=known
        )
    return [found.get(key, 0.0) for key in keys]


class _Drawn(optuna.Study):
    """A study of trials that may stand in it several times. Adding them would copy each: most of the time."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        storage = optuna.storages.InMemoryStorage()
        storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "drawn")
        super().__init__("drawn", storage)
        self.drawn = list(trials)

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """All of them: they are complete."""
        return self.drawn


def importance_plot(info: ImportanceInfo) -> go.Figure:
    """A bar a key, largest on top, with the middle 90 % of the resamples as a line; grey where not sure."""
    keys = [bar.key for bar in info.bars][::-1]
    figure = go.Figure()
    figure.add_bar(
        x=[bar.share for bar in info.bars][::-1],
        y=keys,
        orientation="h",
        width=0.6,
        marker_color=BLUE if info.is_sure else GREY,
        opacity=0.65 if info.is_sure else 0.45,  # the lines show through
        name="all arms",
        showlegend=False,
        hovertemplate="%{y}: %{x:.2f}<extra></extra>",
    )
    figure.add_scatter(
        x=[end for bar in info.bars for end in (bar.low, bar.high, None)],
        y=[bar.key for bar in info.bars for _ in range(3)],
        mode="lines+markers",
        line={"color": INK, "width": 1.6},
        marker={"color": INK, "symbol": "line-ns-open", "size": 10, "line": {"width": 1.6}},
        name="90 % of resamples",
        showlegend=False,
        hovertemplate="%{y}, end of 90 %: %{x:.2f}<extra></extra>",
    )
    dress(figure, 90 + 36 * len(keys))
    figure.update_layout(xaxis_title_text="PED-ANOVA importance", yaxis_title_text=None)
    ends = [max(bar.share, bar.high) for bar in info.bars]
    figure.update_xaxes(range=(0, 1.06 * max(ends)))
    figure.update_yaxes(categoryorder="array", categoryarray=keys)
    return figure


def reading(info: ImportanceInfo, objective: str) -> str:
    """What the bars are, how sure they are, and what they are not."""
    words = (
        f"How far each key separates the best {100 * info.top:.0f} % by {objective} from the other "
        f"full-budget arms (PED-ANOVA, {info.arms} arms). A line holds 90 % of {DRAWS} resamples of them; "
        "it need not be centred on its bar, and keys whose lines overlap are not ranked. "
    )
    if not info.is_sure:
        words += f"Grey, because with fewer than {SURE_ARMS} arms even a strong key often comes second. "
    return words + (
        "This is no ablation verdict: it depends on the ranges searched and on where the sampler looked, and "
        "a module that helps everywhere by half a point can rank last. See the modules below."
    )
