"""Which arms next, by Optuna: ask and tell over a journal file that survives any crash.

COMPLETE is told only at full budget, PRUNED with intermediate values for arms that left early, FAIL
for failed ones, so early values never pass for final ones. `optuna-dashboard` opens the journal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from comkd_ray import samplers, search_space
from comkd_ray.config import Study
from comkd_ray.journal import open_journal
from comkd_ray.protocols import OBJECTIVE
from comkd_ray.results import Row
from comkd_ray.search_space import Dimension, Overrides, Scalar, Space
from comkd_ray.study_file import full_point

OWNER = "arm"  # user attribute that ties a trial to its record
FIRST = "first"  # a named arm
START = "start"  # a point of the Sobol sequence, and its number there
RETRY = "retry_of"  # the trial that is asked again
ORIGIN = "from"  # the study that a result was taken over from
REPEAT = "same_as"  # a proposal that is known already, and the arm that it repeats
LOST = "lost"  # a trial that was cut off, or that the journal lost
NOT_ASKED = frozenset((REPEAT, LOST, ORIGIN))  # trials that are no arm asked for and kept
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


@dataclass
class OptunaArms:
    """Asks Optuna for arms and tells it what became of them."""

    study: Study
    journal: Path | None
    """None: nothing is kept."""
    told: tuple[Row, ...] = ()
    """Records of another study to learn from, as `study_life.py` makes them."""
    ordered: Mapping[str, Overrides] = field(default_factory=dict)
    """Arms of the work orders, for those that a damaged journal lost: `jobs.ordered`."""
    trials: dict[int, optuna.Trial] = field(default_factory=dict)
    repeats: int = 0
    """Proposals in a row that were known already."""

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.storage: BaseStorage = InMemoryStorage() if self.journal is None else open_journal(self.journal)
        self.optuna = optuna.create_study(
            study_name=self.study.study,
            storage=self.storage,
            directions=["maximize" if one == OBJECTIVE else "minimize" for one in self.objectives],
            load_if_exists=True,
        )

    @property
    def objectives(self) -> tuple[str, ...]:
        """Columns that the search steers by."""
        return self.study.search.objectives

    def known(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.optuna.get_trials(deepcopy=False)

    def left(self) -> int:
        """Arms still to ask for.

        Repeats, trials that a crash cut off, those asked again and those of another study do not count.
        """
        assert self.study.search.arms is not None
        if self.repeats >= MAX_REPEATS:
            return 0
        known = self.known()
        asked = {
            trial.user_attrs.get(OWNER, trial.number)
            for trial in known
            if trial.state != TrialState.WAITING and not NOT_ASKED & trial.user_attrs.keys()
        }
        for trial in known:
            if trial.state == TrialState.WAITING:  # its arm is asked again, whoever had it before
                asked -= {one.user_attrs.get(OWNER, one.number) for one in self._before(trial, known)}
        return max(0, self.study.search.arms - len(asked))

    def _before(self, trial: FrozenTrial, known: list[FrozenTrial]) -> Iterator[FrozenTrial]:
        """The trials that a trial asks again."""
        while RETRY in trial.user_attrs:
            trial = known[trial.user_attrs[RETRY]]
            yield trial

    def ask(self) -> Proposal:
        """The next configuration: what waits, then named arms, then start points, then the sampler.

        Every draw has a seed of its own, counted without what a crash cut off: a search that was killed and
        resumed asks for the arms of one that was not, as far as it knew the same results.
        """
        known = self.known()
        drawn = sum(LOST not in trial.user_attrs for trial in known)
        search = self.study.search
        self.optuna.sampler = samplers.make_sampler(search, samplers.draw_seed(search, drawn))
        if not any(trial.state == TrialState.WAITING for trial in known):
            self._enqueue_next(known)
        trial = self.optuna.ask()
        self.trials[trial.number] = trial
        overrides = search_space.draw(
            self.study.search.space, lambda key, dimension: suggest(trial, key, dimension)
        )
        return Proposal(trial.number, overrides, FIRST in trial.user_attrs)

    def _enqueue_next(self, known: list[FrozenTrial]) -> None:
        search = self.study.search
        named = sum(FIRST in trial.user_attrs and RETRY not in trial.user_attrs for trial in known)
        if named < len(search.first):
            self.optuna.enqueue_trial(full_point(self.study, search.first[named]), user_attrs={FIRST: True})
        elif samplers.is_starting(search, known):
            index = sum(START in trial.user_attrs for trial in known)
            self.optuna.enqueue_trial(samplers.start_point(search, index), user_attrs={START: index})

    def assign(self, number: int, arm: str) -> None:
        """Note which record will answer this proposal."""
        self.repeats = 0
        self.trials[number].set_user_attr(OWNER, arm)

    def note(self, number: int, epoch: int, value: float) -> None:
        """An intermediate value of a running arm; Optuna takes none where there are several objectives."""
        if len(self.objectives) == 1:
            self.trials[number].report(value, epoch)

    def tell(self, number: int, record: Row | None, same_as: str | None = None) -> None:
        """How an arm ended; None: its cohort broke before it left a record.

        same_as: the proposal repeats an arm that is known already, which was not trained again.
        """
        trial = self.trials.pop(number)
        if same_as is not None:
            self.repeats += 1
            trial.set_user_attr(REPEAT, same_as)
            for row in record["epochs"] if record else ():
                if len(self.objectives) == 1:
                    trial.report(row[OBJECTIVE], row["epoch"])
        state, values = self._ended(record)
        self.optuna.tell(trial, values, state=state)

    def _ended(self, record: Row | None) -> tuple[TrialState, list[float] | None]:
        """State and values that Optuna is told; a value that is missing or not finite is a failure."""
        row: Row = record["arm"] if record else {"status": "failed"}
        if row["status"] == "pruned":
            return TrialState.PRUNED, None
        values = [row.get(name) for name in self.objectives]
        if row["status"] == "complete" and all(v is not None and math.isfinite(v) for v in values):
            return TrialState.COMPLETE, [float(v) for v in values if v is not None]
        return TrialState.FAIL, None

    def reconcile(self, records: Mapping[str, Row]) -> int:
        """After a crash or damage: tell what the records know, ask the rest again.

        Returns how many are asked again, those included that wait since a process was killed before it
        asked. They come last: they take new numbers, and a record whose trial the journal lost keeps its own.
        """
        for trial in self.known():
            record = records.get(trial.user_attrs.get(OWNER, ""))
            if record is None and OWNER not in trial.user_attrs:  # the journal lost whose trial this is
                record = next((one for one in records.values() if _fits(one, trial)), None)
            if record is not None and not trial.state.is_finished():
                self._complete(trial, record)
        self._add_lost(records)
        heard = sum(ORIGIN in one.user_attrs and OWNER not in one.user_attrs for one in self.known())
        for record in self.told[heard:]:  # a kill may have come between two of them
            self._add(record, {})
        redrawn = sum([self._give_up(trial, records) for trial in self.known()])
        owned = {trial.user_attrs.get(OWNER) for trial in self.known()} | records.keys()
        lost = [overrides for arm, overrides in self.ordered.items() if arm not in owned]
        waiting = [trial.system_attrs.get("fixed_params") for trial in self.known()]
        for overrides in lost:
            if overrides not in waiting:
                self.optuna.enqueue_trial(overrides)
        return redrawn + sum(trial.state == TrialState.WAITING for trial in self.known())

    def _add_lost(self, records: Mapping[str, Row]) -> None:
        """Records that the journal knows nothing of become trials with their own numbers."""
        kept = [trial.user_attrs for trial in self.known() if LOST not in trial.user_attrs]
        owned = {attributes.get(OWNER) for attributes in kept}
        lost = [record for arm, record in records.items() if arm not in owned]
        for record in sorted(lost, key=_number):
            self._leave_out(_number(record))
            self._add(record, {OWNER: record["arm"]["arm"]})
        self._leave_out(max(map(_number, records.values()), default=-1) + 1)

    def _leave_out(self, number: int) -> None:
        """Pass over numbers of trials that the journal lost, up to `number`: none is given twice."""
        for _ in range(len(self.known()), number):
            gap = optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={LOST: True})
            self.optuna.add_trial(gap)

    def _give_up(self, frozen: FrozenTrial, records: Mapping[str, Row]) -> bool:
        """Close a trial that was cut off, or whose record is gone, and ask its arm again, once.

        Whether it was cut off while its values were drawn: then all are drawn again, with the seed of then.
        """
        before = [one.user_attrs.get(OWNER) for one in self._before(frozen, self.known())]
        arm = next((one for one in before if one in records), None)
        if arm is not None and not frozen.state.is_finished():
            self._start(frozen)  # asked again, and trained: the journal lost how that ended
            self.tell(frozen.number, records[arm], same_as=arm)
            return False
        attributes, running = frozen.user_attrs, frozen.state == TrialState.RUNNING
        gone = OWNER in attributes and attributes[OWNER] not in records and LOST not in attributes
        point = self._whole(frozen) if running or gone else None
        if point is not None and not self._is_asked_again(frozen):  # first: a kill in between loses nothing
            first = {FIRST: True} if FIRST in attributes else {}
            self.optuna.enqueue_trial(point, user_attrs={RETRY: frozen.number, **first})
        if running:
            self._start(frozen).set_user_attr(LOST, True)
            self.tell(frozen.number, None)
        return running and point is None

    def _complete(self, frozen: FrozenTrial, record: Row) -> None:
        """Tell a trial that never ended what its record says, with whatever the journal lacks of it."""
        trial = self._start(frozen)
        row, space = record["arm"], self.study.search.space
        for key in row.get("searched", ()):
            if key not in frozen.params:
                kind = _distribution(space[key])
                self.storage.set_trial_param(frozen._trial_id, key, kind.to_internal_repr(row[key]), kind)
        if OWNER not in frozen.user_attrs:
            trial.set_user_attr(OWNER, row["arm"])
        for epoch, value in self._intermediate(record).items():
            if epoch not in frozen.intermediate_values:
                trial.report(value, epoch)
        self.tell(frozen.number, record)

    def _start(self, frozen: FrozenTrial) -> optuna.Trial:
        """Take a trial in hand that the journal has as waiting or running."""
        if frozen.state == TrialState.WAITING:
            self.storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING)
        trial = self.trials[frozen.number] = optuna.Trial(self.optuna, frozen._trial_id)
        return trial

    def _is_asked_again(self, frozen: FrozenTrial) -> bool:
        return any(trial.user_attrs.get(RETRY) == frozen.number for trial in self.known())

    def _whole(self, frozen: FrozenTrial) -> Overrides | None:
        """The arm that a trial proposes; None where the journal has not all of its values."""
        params = frozen.system_attrs.get("fixed_params", {}) | frozen.params
        try:
            return search_space.draw(self.study.search.space, lambda key, _: params[key])
        except KeyError:
            return None

    def _add(self, record: Row, attributes: dict[str, Any]) -> None:
        """A trial that ended, straight from its record."""
        row, space = record["arm"], self.study.search.space
        origin = {ORIGIN: row[ORIGIN]} if row.get(ORIGIN) else {}
        params = {key: row[key] for key in row.get("searched", ()) if key in space}
        state, values = self._ended(record)
        intermediate = self._intermediate(record)
        if state == TrialState.PRUNED and intermediate:  # as Optuna itself does when it is told
            values = [intermediate[max(intermediate)]]
        self.optuna.add_trial(
            optuna.trial.create_trial(
                state=state,
                values=values,
                params=params,
                distributions=distributions({key: space[key] for key in params}),
                user_attrs=attributes | origin,
                intermediate_values=intermediate,
            )
        )

    def _intermediate(self, record: Row) -> dict[int, float]:
        several = len(self.objectives) > 1
        return {} if several else {row["epoch"]: row[OBJECTIVE] for row in record["epochs"]}


def _number(record: Row) -> int:
    """The number of the trial that left a record."""
    return int(record["arm"].get("number", 0))


def _fits(record: Row, frozen: FrozenTrial) -> bool:
    """Whether a record is that of a trial: its number, and no other value than the journal has."""
    params = frozen.system_attrs.get("fixed_params", {}) | frozen.params
    same = all(record["arm"].get(key) == value for key, value in params.items())
    return same and _number(record) == frozen.number
