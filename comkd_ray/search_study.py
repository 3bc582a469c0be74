"""The search as an Optuna study, rebuilt in memory from the rows, so a report needs no journal, no server.

Full-budget arms are COMPLETE trials; pruned and failed ones never carry a value, which keeps low-budget
scores out of "best so far" and out of the importances.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping

import optuna
import polars as pl
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from comkd_ray.arms import Row, is_same, searched_keys
from comkd_ray.protocols import OBJECTIVE
from comkd_ray.search_space import Dimension, Scalar

Space = Mapping[str, Dimension]


def rebuild_study(arms: pl.DataFrame, space: Space) -> optuna.Study:
    """The rows as an Optuna study in memory: trial i is row i. `space`: search.space, or empty."""
    keys = searched_keys(arms)
    dimensions = {key: _dimension(space.get(key), values) for key, values in values_seen(arms).items()}
    with quiet():
        study = optuna.create_study(direction="maximize")
        for row in arms.iter_rows(named=True):
            active = [key for key in keys if key in (row["searched"] or ()) and row[key] is not None]
            params = {key: _native(row[key], dimensions[key]) for key in active}
            study.add_trial(_trial(row, params, dimensions))
    return study


def values_seen(arms: pl.DataFrame) -> dict[str, list[Scalar]]:
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
