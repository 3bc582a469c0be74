"""Samplers as a study names them: Optuna's, and the quasi-random points that searches begin with.

Optuna's own QMCSampler takes its space from the first trial and draws everything else at random, so
conditions break it. Here one coordinate of a scrambled Sobol sequence belongs to each searched key;
`draw` maps a point through the conditions, and coordinates of inactive keys are dropped.

    tpe     multivariate in groups of keys that are active together, so conditions are modelled; a
            cohort asked at once is told apart by the constant liar
    gp      Gaussian process over the keys that every arm has; keys with `when` are drawn at random.
            Running arms are marginalised (q-batch expected improvement), so it needs no liar.
            Pruned arms teach it nothing
    nsga2   generations of `startup_arms`; made for several objectives. Children of a cohort asked at
            once differ by chance only
    qmc     the Sobol sequence to the end
    random  independent draws
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from comkd_ray import search_space
from comkd_ray.config import Search
from comkd_ray.search_space import Overrides

LEARNS_FROM = {
    "tpe": (TrialState.COMPLETE, TrialState.PRUNED),
    "gp": (TrialState.COMPLETE,),
    "nsga2": (TrialState.COMPLETE,),
}
"""Sampler that models the space -> the arms that it learns from."""


def make_sampler(search: Search, seed: int) -> BaseSampler:
    """Optuna's sampler. That of `qmc` is never asked: all its points come from `start_point`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if search.sampler == "tpe":
            return optuna.samplers.TPESampler(
                n_startup_trials=search.startup_arms,
                seed=seed,
                multivariate=True,
                group=True,
                constant_liar=True,
            )
        if search.sampler == "gp":
            return optuna.samplers.GPSampler(
                n_startup_trials=search.startup_arms, seed=seed, warn_independent_sampling=False
            )
        if search.sampler == "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=generation(search), seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)


def draw_seed(search: Search, drawn: int) -> int:
    """The seed of draw number `drawn`: unlike `search.seed + drawn`, of two searches none has the other's."""
    return int(np.random.SeedSequence((search.seed, drawn)).generate_state(1)[0])


def generation(search: Search) -> int:
    """Arms of a generation of nsga2: two parents at least."""
    return max(2, search.startup_arms)


def is_starting(search: Search, trials: Sequence[FrozenTrial]) -> bool:
    """Whether the next arm is a quasi-random one: just where the sampler would draw at random."""
    if search.sampler not in LEARNS_FROM:
        return search.sampler == "qmc"
    ended = sum(trial.state in LEARNS_FROM[search.sampler] for trial in trials)
    return ended < (generation(search) if search.sampler == "nsga2" else search.startup_arms)


def start_point(search: Search, index: int) -> Overrides:
    """Point number `index` of the study's Sobol sequence, in the space: the same in every process."""
    keys = search_space.order(search.space)
    sequence = qmc.Sobol(len(keys), scramble=True, rng=search.seed)
    if index:
        sequence.fast_forward(index)
    place = dict(zip(keys, sequence.random(1)[0].tolist(), strict=True))
    return search_space.draw(search.space, lambda key, dimension: dimension.at(place[key]))
