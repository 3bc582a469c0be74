"""The bridge to Ray Tune: a trial is a cohort, and our searcher asks and tells the arms in it.

Optuna's journal is the truth about the search and the records are the truth about results; what
Tune saves is never read again. Resuming is a new Tuner for what is left.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.search import Searcher

from comkd_ray import budget, cluster, jobs, progress, ray_train, study_file
from comkd_ray.budget import Budget
from comkd_ray.config import Study
from comkd_ray.jobs import Asked, Job
from comkd_ray.material import Card
from comkd_ray.optuna_search import Proposal
from comkd_ray.protocols import OBJECTIVE
from comkd_ray.results import Row, read_records
from comkd_ray.search_space import Overrides
from comkd_ray.train import rung_epochs
from comkd_ray.weights import keep_best

UNLIMITED = Budget()


class Arms(Protocol):
    """Who says which arms are next, and hears what became of them."""

    def left(self) -> int:
        """Arms still to ask for."""

    def ask(self) -> Proposal:
        """The next configuration."""

    def assign(self, number: int, arm: str) -> None:
        """Note which record will answer this proposal."""

    def note(self, number: int, epoch: int, value: float) -> None:
        """An intermediate value of a running arm."""

    def tell(self, number: int, record: Row | None, same_as: str | None = None) -> None:
        """How an arm ended."""

    def reconcile(self, records: Mapping[str, Row]) -> int:
        """After a crash: answer what the records answer; returns how many arms are asked again."""


def train_cohort(config: dict[str, Any]) -> None:
    """The Tune trial: carry out one work order, here or in a worker group."""
    path = Path(config["job"])
    if jobs.read_job(path).workers == 0:
        ray_train.run_local(path, tune.report)
    else:
        from ray.tune.integration.ray_train import TuneReportCallback

        ray_train.run_group(path, [TuneReportCallback()])


def search(searcher: CohortSearcher, slots: int, verbose: bool) -> None:
    """Run cohorts, at most `slots` at once, until the searcher has no more arms."""
    compute, run = searcher.study.compute, searcher.run
    grouped = cluster.workers(compute) > 0
    need = cluster.DRIVER if grouped else {"CPU": compute.cpus, "GPU": compute.gpus}
    tune.Tuner(
        tune.with_resources(train_cohort, need),
        tune_config=tune.TuneConfig(
            search_alg=searcher, num_samples=-1, max_concurrent_trials=slots, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name=f"tune-{time.time_ns()}",
            storage_path=str(run / "ray"),
            verbose=2 if verbose else 0,
            failure_config=tune.FailureConfig(max_failures=compute.retries),
        ),
    ).fit()


def identify(study: Study, card: Card, overrides: Overrides) -> str:
    """The arm that these values make of the study."""
    return jobs.arm_identity(card.identity, study_file.resolve(study, overrides))


class CohortSearcher(Searcher):  # type: ignore[misc]
    """Asks for a cohort of arms at once, and tells each arm as soon as its record is there."""

    def __init__(
        self,
        study: Study,
        run: Path,
        cache: Path,
        arms: Arms,
        card: Card,
        size: int,
        limit: Budget = UNLIMITED,
        again: int = 0,
    ) -> None:
        """size: arms of a cohort. limit: when no more are asked for.

        again: arms that were cut off. They are trained first and by themselves, so that the search then goes
        on from just what it would have known.
        """
        super().__init__()  # no metric: Tune would want it in every report
        self.study, self.run, self.cache, self.arms, self.card = study, run, cache, arms, card
        self.size, self.limit, self.again = size, limit, again
        self.stopped: str | None = None
        """Why no more arms are asked for although some are left."""
        self.records = read_records(run)
        self.cohorts: dict[str, dict[str, Asked]] = {}
        """Running cohorts by name: their arms that have not ended."""
        self.trials: dict[str, str] = {}
        self.broken: list[list[Asked]] = []
        """Arms that are to be tried again in smaller cohorts: their process died, every time."""
        self.lost = 0
        """Arms whose process died when they were alone, retries included."""
        longest = max(one.train.epochs for one in study_file.variants(study))
        rungs = rung_epochs(study.search.halving, longest)
        self.history: dict[int, dict[str, float]] = {rung: {} for rung in rungs}
        """Rung -> arm -> its value there: all that a later cohort has to know."""
        for record in self.records.values():
            for row in record["epochs"]:
                if row["loss"] is not None:
                    self._remember(row["epoch"], row["arm"], row[OBJECTIVE])
        self.best = best_of([record["arm"] for record in self.records.values()])
        """Best objective of an arm at full budget."""
        self.count = sum(1 for _ in (run / "cohorts").glob("*.json"))

    def __deepcopy__(self, memo: dict[int, Any]) -> CohortSearcher:
        """Itself: Tune copies its searcher, but there is one search, and the driver watches it."""
        return self

    @property
    def total(self) -> int:
        """Arms that ended, that run, and that are still to be asked for."""
        return len(self.records) + self.left

    @property
    def running(self) -> int:
        """Arms that are being trained."""
        return sum(map(len, self.cohorts.values()))

    @property
    def left(self) -> int:
        """Arms without a record: still to ask for, running, or lost."""
        held = [*self.cohorts.values(), *self.broken]
        return self.arms.left() + sum(map(len, held)) + self.lost

    def suggest(self, trial_id: str) -> Any:
        """The next cohort as a work order, None for not yet, or FINISHED."""
        asked = self.broken.pop() if self.broken else self._collect()
        if not asked:
            return None if self.cohorts else Searcher.FINISHED  # one that runs may break, and come again
        name = f"c{self.count:04d}"
        self.count += 1
        self.cohorts[name] = {arm.arm: arm for arm in asked}
        self.trials[trial_id] = name
        compute = self.study.compute
        history = {  # of others: an arm that is tried again is not to be beaten by its own earlier value
            epoch: [value for arm, value in values.items() if arm not in self.cohorts[name]]
            for epoch, values in self.history.items()
        }
        job = Job(
            cohort=name,
            run=str(self.run),
            cache=str(self.cache),
            threads=max(1, int(compute.cpus)),
            workers=cluster.workers(compute),
            cpus=compute.cpus,
            gpus=compute.gpus,
            arms=tuple(asked),
            history=history,
        )
        return {"job": str(jobs.write_job(job))}

    def _collect(self) -> list[Asked]:
        """Arms of the next cohort: proposals that are known already are answered at once."""
        asked: list[Asked] = []
        running = {arm for cohort in self.cohorts.values() for arm in cohort}
        running |= {one.arm for cohort in self.broken for one in cohort}
        self.stopped = None
        size = min(self.size, self.again or self.size)
        while len(asked) < size and self.arms.left():
            self.stopped = self._limit_reached(len(running))
            if self.stopped:
                break
            proposal = self.arms.ask()
            self.again = max(0, self.again - 1)
            arm = identify(self.study, self.card, proposal.overrides)
            if arm in self.records or arm in running:
                self.arms.tell(proposal.number, self.records.get(arm), same_as=arm)
                continue
            running.add(arm)
            self.arms.assign(proposal.number, arm)
            asked.append(Asked(arm, proposal.number, proposal.overrides, proposal.protected))
        return asked

    def _limit_reached(self, running: int) -> str | None:
        """Why the budget allows no further arm; arms of another study cost this one nothing."""
        rows = [record["arm"] for record in self.records.values() if "from" not in record["arm"]]
        search, compute = self.study.search, self.study.compute
        return budget.reached(self.limit, rows, running, compute, search.objectives)

    def on_trial_result(self, trial_id: str, result: Row) -> None:
        """Values of an epoch, and the arms that ended with it."""
        cohort = self.cohorts[self.trials[trial_id]]
        for arm, value in result.get("values", []):
            self._remember(result["epoch"], arm, value)
            if arm in cohort:
                self.arms.note(cohort[arm].number, result["epoch"], value)
        self._settle(cohort, result.get("ended", []))

    def _remember(self, epoch: int, arm: str, value: float) -> None:
        if epoch in self.history:
            self.history[epoch][arm] = value

    def on_trial_complete(self, trial_id: str, result: Row | None = None, error: bool = False) -> None:
        """The cohort is over. Arms without a record were lost with their process.

        One of them may have broken it: halves are tried again, so that no other arm is lost with that one.
        An arm whose process died although it was alone stays RUNNING to Optuna; `--resume` asks for it again.
        """
        name = self.trials.pop(trial_id)
        cohort = self.cohorts.pop(name)
        ended = [arm for arm in cohort if read_records(self.run, arm)]
        self._settle(cohort, ended)
        rest = list(cohort.values())
        if error and len(rest) > 1:
            self.broken += [rest[::2], rest[1::2]]
        else:
            self.lost += len(rest)
        progress.clear(self.run, name)

    def _settle(self, cohort: dict[str, Asked], arms: list[str]) -> None:
        if not arms:
            return
        for arm in arms:
            record = _read_record(self.run, arm)
            if record is not None:
                self.records[arm] = record
                self.best = best_of([record["arm"]], self.best)
            self.lost += record is None
            self.arms.tell(cohort.pop(arm).number, record)
        keep_best(self.run, dict(self.records))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal and the records are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is ever restored from Tune."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: see `save`."""


def best_of(rows: Iterable[Row], before: float | None = None) -> float | None:
    """The best objective of arms at full budget, and of what was the best before."""
    full = [row[OBJECTIVE] for row in rows if row["status"] == "complete" and row[OBJECTIVE] is not None]
    return max(full if before is None else [before, *full], default=None)


def _read_record(run: Path, arm: str) -> Row | None:
    return read_records(run, arm).get(arm)
