"""Which arms next, by Optuna: ask and tell over a journal file that survives any crash.

COMPLETE is told only at full budget, PRUNED with intermediate values for arms that left early, FAIL
for failed ones, so early values never pass for final ones. `optuna-dashboard` opens the journal.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from comkd_ray import search_space
from comkd_ray.config import Study
from comkd_ray.protocols import OBJECTIVE
from comkd_ray.results import Row
from comkd_ray.search_space import Dimension, Overrides, Scalar, Space
from comkd_ray.study_file import flatten

OWNER = "arm"  # user attribute that ties a trial to its record
MAX_REPEATS = 200  # proposals in a row that are known already, before a space counts as exhausted


@dataclass(frozen=True)
class Proposal:
    """One configuration to train, and the number the search knows it by."""

    number: int
    overrides: Overrides
    protected: bool = False


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Our dimensions in Optuna's terms."""
    return {key: _distribution(dimension) for key, dimension in space.items()}


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.choice is not None:
        return CategoricalDistribution(dimension.choice)
    if dimension.int is not None:
        low, high = dimension.int
        return IntDistribution(low, high, dimension.log, search_space.int_step(dimension.step))
    assert dimension.float is not None
    return FloatDistribution(*dimension.float, log=dimension.log, step=dimension.step)


def suggest(trial: optuna.Trial, key: str, dimension: Dimension) -> Scalar:
    """One value, define-by-run."""
    if dimension.choice is not None:
        value = trial.suggest_categorical(key, dimension.choice)
        assert value is not None
        return value
    if dimension.int is not None:
        low, high = dimension.int
        return trial.suggest_int(
            key, low, high, step=search_space.int_step(dimension.step), log=dimension.log
        )
    assert dimension.float is not None
    return trial.suggest_float(key, *dimension.float, step=dimension.step, log=dimension.log)


def open_journal(path: Path) -> JournalStorage:
    """Open a journal that a killed process may have left locked or with half a last line.

    Call it only while holding the run directory's own lock: then no living process writes here.
    """
    for lock in path.parent.glob(f"{path.name}.lock*"):
        lock.unlink()
    if path.exists():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with path.open("r+b") as file:
                file.truncate(len(whole))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return JournalStorage(JournalFileBackend(str(path)))


@dataclass
class OptunaArms:
    """Asks Optuna for arms and tells it what became of them."""

    study: Study
    journal: Path
    trials: dict[int, optuna.Trial] = field(default_factory=dict)
    repeats: int = 0
    """Proposals in a row that were known already."""

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = open_journal(self.journal)
        self.optuna = optuna.create_study(
            study_name=self.study.study, storage=storage, direction="maximize", load_if_exists=True
        )
        known = self.optuna.get_trials(deepcopy=False)
        self.optuna.sampler = self._sampler(len(known))
        if not known:
            for point in self.study.search.first:
                self.optuna.enqueue_trial(_full_point(self.study, point), user_attrs={"first": True})

    def _sampler(self, known: int) -> optuna.samplers.BaseSampler:
        """A resumed search goes on with another seed: the same one would repeat its first draws."""
        search = self.study.search
        seed = search.seed + known
        if search.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return optuna.samplers.TPESampler(
                n_startup_trials=search.startup_arms,
                seed=seed,
                multivariate=True,
                group=True,
                constant_liar=True,
            )

    def left(self) -> int:
        """Arms still to ask for; repeats and trials that a crash cut off do not count as asked."""
        assert self.study.search.arms is not None
        if self.repeats >= MAX_REPEATS:
            return 0
        asked = [
            trial
            for trial in self.optuna.get_trials(deepcopy=False)
            if trial.state != TrialState.WAITING and not {"same_as", "lost"} & trial.user_attrs.keys()
        ]
        return max(0, self.study.search.arms - len(asked))

    def ask(self) -> Proposal:
        """The next configuration."""
        trial = self.optuna.ask()
        self.trials[trial.number] = trial
        overrides = search_space.draw(
            self.study.search.space, lambda key, dimension: suggest(trial, key, dimension)
        )
        return Proposal(trial.number, overrides, "first" in trial.user_attrs)

    def assign(self, number: int, arm: str) -> None:
        """Note which record will answer this proposal."""
        self.repeats = 0
        self.trials[number].set_user_attr(OWNER, arm)

    def note(self, number: int, epoch: int, value: float) -> None:
        """An intermediate value of a running arm."""
        self.trials[number].report(value, epoch)

    def tell(self, number: int, record: Row | None, same_as: str | None = None) -> None:
        """How an arm ended; None: its cohort broke before it left a record.

        same_as: the proposal repeats an arm that is known already, which was not trained again.
        """
        trial = self.trials.pop(number)
        status = record["arm"]["status"] if record else "failed"
        if same_as is not None:
            self.repeats += 1
            trial.set_user_attr("same_as", same_as)
            for row in record["epochs"] if record else ():
                trial.report(row[OBJECTIVE], row["epoch"])
        if status == "complete":
            assert record is not None
            self.optuna.tell(trial, record["arm"][OBJECTIVE])
        elif status == "pruned":
            self.optuna.tell(trial, state=TrialState.PRUNED)
        else:
            self.optuna.tell(trial, state=TrialState.FAIL)

    def reconcile(self, records: Mapping[str, Row]) -> int:
        """After a crash: answer trials left RUNNING from the records, ask the rest again.

        Returns how many are asked again.
        """
        again = 0
        for frozen in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            trial = optuna.Trial(self.optuna, frozen._trial_id)
            self.trials[frozen.number] = trial
            record = records.get(frozen.user_attrs.get(OWNER, ""))
            if record is not None:
                for row in record["epochs"]:
                    if row["epoch"] not in frozen.intermediate_values:
                        trial.report(row[OBJECTIVE], row["epoch"])
                self.tell(frozen.number, record)
                continue
            params = frozen.system_attrs.get("fixed_params", {}) | frozen.params
            if params:  # asked again before it is given up: a kill in between loses nothing
                first = {"first": True} if "first" in frozen.user_attrs else {}
                self.optuna.enqueue_trial(params, user_attrs={"retry_of": frozen.number, **first})
                again += 1
            trial.set_user_attr("lost", True)
            self.tell(frozen.number, None)
        return again


def _full_point(study: Study, point: Overrides) -> Overrides:
    """A named arm with the study's own values for searched keys that it leaves out."""
    defaults = flatten(study.model_dump(mode="json"))

    def value(key: str, _: Dimension) -> Scalar:
        return point.get(key, defaults[key])

    return search_space.draw(study.search.space, value)
