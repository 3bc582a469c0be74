"""A study from file to report: check, prepare, search, write down.

The run directory is locked while this works. What ended is safe at any moment: the same command
with `--resume` goes on with what is left.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from comkd_ray import (
    cluster,
    jobs,
    journal,
    ledger,
    prepare,
    progress,
    provenance,
    ray_train,
    report,
    results,
    study_file,
    study_life,
)
from comkd_ray import tune as ray_search
from comkd_ray.ablation import GridArms
from comkd_ray.budget import Budget
from comkd_ray.cache import cache_root
from comkd_ray.cohort_size import cohort_size, read_memory
from comkd_ray.config import Study
from comkd_ray.data.datasets import TEST, TRAIN, VAL
from comkd_ray.errors import UserError
from comkd_ray.growth import passed_arms, wanted_arms
from comkd_ray.material import Card, is_ready, read_card, write_card
from comkd_ray.optuna_search import OptunaArms
from comkd_ray.photographs import open_both, shots
from comkd_ray.plan import count_arms
from comkd_ray.progress import Screen, Watch
from comkd_ray.protocols import objective_of
from comkd_ray.results import Row
from comkd_ray.search_space import Overrides
from comkd_ray.study_life import check_run
from comkd_ray.weights import keep_best

JOURNAL = "optuna.journal"
MEMORY_EVERY = 5.0  # seconds between two looks at memory


@dataclass(frozen=True)
class Outcome:
    """How a study ended."""

    run: Path
    arms: int
    failed: int
    left: int
    """Arms without a record: interrupted, their process broke, or a budget left them unasked."""
    unasked: int
    """Those of them that a budget left unasked."""
    stopped: str | None
    """The budget that ended the search, in words."""
    interrupted: bool
    best: Row | None
    seconds: float


def run_study(
    study: Study,
    run: Path,
    screen: Screen,
    resume: bool,
    address: str | None,
    verbose: bool,
    budget: Budget = ray_search.UNLIMITED,
    beginning: Callable[[], None] | None = None,
) -> Outcome:
    """Run a study in the directory `run`; with `resume`, go on with what is left of it.

    beginning: is called when all is checked and just before the study file is written, also on resuming.
    """
    start, cache = time.monotonic(), cache_root()
    check_run(study, run, resume)
    with screen:
        for remark in prepare.check(study, cache, lambda s, d, n: screen.show(s, d, n, f"{d}/{n}")):
            screen.say(remark)
        run.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(run.with_name(f".{run.name}.lock"), timeout=0):
                check_run(study, run, resume)  # again: another may have begun and ended meanwhile
                one = _Run(study, run, cache, screen, verbose, start, budget, beginning)
                return one.go(address, resume)
        except Timeout:
            raise UserError(f"{run}: another comkd-ray works on this study") from None


@dataclass
class _Run:
    study: Study
    run: Path
    cache: Path
    screen: Screen
    verbose: bool
    start: float
    budget: Budget
    beginning: Callable[[], None] | None
    peak: int = 0
    measured: float = 0.0
    interrupted: bool = False
    searcher: ray_search.CohortSearcher | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def go(self, address: str | None, resume: bool) -> Outcome:
        """Everything after the checks, under the lock."""
        _hear_signals()
        try:
            with cluster.connect(address, self.verbose):
                _hear_signals()  # again: joining Ray takes SIGTERM away
                for shared in (self.run.parent, self.cache):
                    cluster.check_storage(shared)
                slots = cluster.trial_slots(self.study.compute)
                self.begin(resume)
                with Watch(self.look):
                    self.search(slots)
        except KeyboardInterrupt:
            self.interrupted = True
        return self.finish()

    def begin(self, resume: bool) -> None:
        """Nothing is written before this: the study is sound and the cluster can run it."""
        if not resume:
            self.clear_sample()
        self.run.mkdir(parents=True, exist_ok=True)
        for found in (*results.mend(self.run), journal.mend(self.run / JOURNAL)):
            if found:
                self.screen.say(found)
        if self.beginning is not None:
            self.beginning()
        study_file.dump(self.study, self.run / "study.yaml")
        progress.clear(self.run)
        self.write_begin()

    def search(self, slots: int) -> None:
        """Prepare what is missing, then train what is left."""
        card = self.prepare(slots)
        self.settle_cells(card)
        if study_life.is_pending(self.run):
            self.screen.say(study_life.take_over(self.study, self.run, card, self.identifier(card)))
        while self.search_once(card, slots):
            pass
        self.interrupted = self.searcher is not None and bool(self.searcher.cohorts)  # Tune swallows Ctrl-C

    def search_once(self, card: Card, slots: int) -> bool:
        """Train what is asked for by now; whether more may be asked for after it."""
        self.take_cells(card)
        records = results.read_records(self.run)
        arms = self.open_arms(card, records)
        again = arms.reconcile(records)
        if again:
            self.screen.say(f"{again} arms were cut off, or had failed; they are asked again")
        if self.searcher is not None and not arms.left():
            self.searcher.records = records  # with those that were taken since
            return False
        size = self.cohort_size(slots, arms.left())
        self.searcher = ray_search.CohortSearcher(
            self.study, self.run, self.cache, arms, card, size, self.budget, again
        )
        begun = time.monotonic()
        ray_search.search(self.searcher, slots, self.verbose)
        self.seconds["search"] = self.seconds.get("search", 0.0) + time.monotonic() - begun
        grows = self.study.ablate is not None and self.study.ablate.max_seeds is not None
        return grows and not self.searcher.cohorts and not self.searcher.left

    def settle_cells(self, card: Card) -> None:
        """An ablation tries failed cells again, but those that later seeds have passed."""
        if self.study.ablate is None:
            return
        passed = passed_arms(self.study, self.identifier(card), results.read_records(self.run))
        failed = ledger.set_failed_aside(self.run, but=passed)
        if failed:
            self.screen.say(f"{failed} cells failed before; they are tried again")

    def take_cells(self, card: Card) -> None:
        """An ablation takes the cells asked for by now that an earlier study has."""
        if self.study.ablate is None:
            return
        taken = ledger.take_shared(self.study, self.run, card.identity)
        if words := taken.in_words(count_arms(self.study)):
            self.screen.say(words)

    def cohort_size(self, slots: int, arms: int) -> int:
        """Arms of a cohort: as the study says, or what memory holds; then the reason is written down."""
        asked = self.study.search.arms_per_trial
        if asked != "auto":
            return asked
        memory = read_memory(self.run)
        assert memory is not None, "prepared, so probed"
        workers = cluster.workers(self.study.compute) or 1
        size, why = cohort_size(self.study, memory, slots, workers, cluster.node_count(), arms)
        provenance.update(self.run, arms_per_trial={"auto": size, "because": why})
        self.screen.say(f"search.arms_per_trial: {size}: {why}")
        return size

    def open_arms(self, card: Card, records: dict[str, Row]) -> ray_search.Arms:
        """Who says which arms are next."""
        if self.study.search.is_enumerated:
            taken = [record["arm"]["number"] for record in records.values()]
            identify = self.identifier(card)
            wanted = wanted_arms(self.study, identify, records)
            return GridArms(self.study, identify, records, taken, wanted)
        told, ordered = study_life.told(self.run), jobs.ordered(self.run)
        return OptunaArms(self.study, self.run / JOURNAL, told, ordered)

    def identifier(self, card: Card) -> Callable[[Overrides], str]:
        """An arm's values to its identity."""
        return lambda overrides: ray_search.identify(self.study, card, overrides)

    def clear_sample(self) -> None:
        """A sample report that came with the source tree makes room for the real one."""
        if provenance.read(self.run).get("sample") is True:
            self.screen.say(f"{self.run}: the sample that came with the source makes room for this study")
        for name in ("results", "report.html", "provenance.json", "study.yaml"):
            path = self.run / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def prepare(self, slots: int) -> Card:
        """Teacher and banks, in workers of their own, unless this run has them already."""
        before = self.known_card()
        probed = self.study.search.arms_per_trial != "auto" or read_memory(self.run) is not None
        if before is not None and probed and is_ready(before, self.cache):
            return before
        compute = self.study.compute
        ray_train.prepare(self.run, self.cache, compute.cpus, compute.gpus, self.preparers(slots))
        card = read_card(self.run)
        if before is not None and card.identity != before.identity:
            write_card(self.run, before)
            raise UserError(f"{self.run}: the data set or a model changed since this study began")
        return card

    def preparers(self, slots: int) -> int:
        """Workers that prepare side by side. Each loads both models: a part of a GPU gets one alone."""
        compute = self.study.compute
        fit = 1 if 0 < compute.gpus < 1 else slots * (cluster.workers(compute) or 1)
        return min(fit, prepare.most_shards(self.study, self.cache)) if fit > 1 else 1

    def known_card(self) -> Card | None:
        """What an earlier part of this run prepared."""
        try:
            return read_card(self.run)
        except UserError:
            return None

    def write_begin(self) -> None:
        """What is known before anything ran."""
        photographs, source = open_both(self.study, self.cache, lambda *_: None)
        data, table = self.study.data, photographs.table
        broken = sorted({*photographs.store.broken, *source.store.broken})
        now = datetime.now(UTC).isoformat(timespec="seconds")
        parts = {"train": TRAIN, "val": VAL, "test": TEST}
        provenance.update(
            self.run,
            sample=False,
            created=provenance.read(self.run).get("created", now),
            command=provenance.command(),
            demo_weights=any("assets:" in one.model for one in (self.study.teacher, self.study.student)),
            versions=provenance.versions(),
            git=provenance.git_state(),
            machine=provenance.machine(),
            arms_asked=count_arms(self.study),
            data={
                "name": data.dataset,
                "split": table.split,
                "classes": list(table.classes),
                "base": photographs.base,
                "pixels": "stored" if photographs.store.stored else "streamed",
                "shots": data.shots,
                "views": prepare.view_count(self.study),
                "teacher": len(shots(self.study, source.table)),
                **{name: len(photographs.part(part)) for name, part in parts.items()},
            },
            notes=[f"{len(broken)} broken images were left out, first {broken[0]}"] if broken else [],
        )

    def look(self) -> None:
        """Show how far everything is, and keep the peak of memory."""
        states = progress.read(self.run)
        prepared = [states.pop(name) for name in list(states) if name.startswith("prepare.")]
        if prepared:  # all do the same: show one that has something to do, the furthest
            state = max(prepared, key=lambda one: (one["done"] < one["total"], one["done"]))
            done, total = state["done"], state["total"]
            self.screen.show(state["stage"], done, total, f"{done}/{total}")
        if self.searcher is not None:
            self.show_arms(self.searcher, states)
        if time.monotonic() - self.measured > MEMORY_EVERY:
            self.measured = time.monotonic()
            self.peak = max(self.peak, provenance.tree_memory())

    def show_arms(self, searcher: ray_search.CohortSearcher, states: dict[str, progress.State]) -> None:
        """Arms that ended, and the share of those that run."""
        done = sum(
            state["done"] / state["total"] * len(searcher.cohorts.get(name.partition(".")[0], ()))
            for name, state in states.items()
        )
        ended, total, running = len(searcher.records), searcher.total, searcher.running
        best = "" if searcher.best is None else f", best {objective_of(self.study)} {searcher.best:.1f}"
        words = f"{ended}/{total} ended, {running} running{best}"
        self.screen.show("arms", min(total, ended + done), total, words)

    def finish(self) -> Outcome:
        """Compact, describe, report. What ended is safe whatever happens here."""
        if not (self.run / "study.yaml").exists():
            raise KeyboardInterrupt  # interrupted before anything was written
        records = results.read_records(self.run)
        rows = [record["arm"] for record in records.values()]
        shutil.rmtree(self.run / "ray", ignore_errors=True)  # Tune's own state is never read again
        seconds = time.monotonic() - self.start
        self.write_end(seconds)
        if rows:
            results.compact(self.run)
            report.build(self.run)
        keep_best(self.run, records, everything=True)
        best = next(iter(results.ranked(records)), None)
        failed = sum(row["status"] == "failed" for row in rows)
        left = self.searcher.total - len(rows) if self.searcher else 1
        stopped = self.searcher.stopped if self.searcher else None
        unasked = self.searcher.arms.left() if self.searcher and stopped else 0
        return Outcome(self.run, len(rows), failed, left, unasked, stopped, self.interrupted, best, seconds)

    def write_end(self, seconds: float) -> None:
        """What is known only now; wall time and stages add up over resumed parts."""
        before = provenance.read(self.run)
        try:
            card = read_card(self.run)
        except UserError:
            return
        stages = before.get("stages") or dict(card.stages)
        stages["search"] = stages.get("search", 0.0) + self.seconds.get("search", 0.0)
        if self.study.ablate is not None and self.searcher is not None:  # seeds may have been added
            provenance.update(self.run, arms_asked=self.searcher.total)
        provenance.update(
            self.run,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            hashes={"data": card.data, "teacher": card.teacher, "bank": card.train_bank},
            stages=stages,
            stopped=self.searcher.stopped if self.searcher else None,
            wall_seconds=before.get("wall_seconds", 0.0) + seconds,
            peak_memory_bytes=max(before.get("peak_memory_bytes", 0), self.peak),
        )


def _hear_signals() -> None:
    """Ctrl-C and a polite kill both end in KeyboardInterrupt, also where a script's `&` ignores SIGINT."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
