"""What one driver carries: time, memory and bytes an arm, for a study of many arms. `comkd-ray bench scale`.

No Ray starts and nothing is trained: arms are made up, everything that keeps them is real. N arms are
asked for (at random, so that filling is quick), noted epoch by epoch and told, into a real journal and real
records; then TPE, the searcher, the report and the work orders are timed on them.
"""

from __future__ import annotations

import gc
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comkd_ray import jobs, provenance, report, results, study_file
from comkd_ray.config import Study
from comkd_ray.errors import UserError
from comkd_ray.jobs import Asked
from comkd_ray.lineup import assumed_size
from comkd_ray.optuna_search import OptunaArms, Proposal
from comkd_ray.protocols import OBJECTIVE, protocol_of
from comkd_ray.rehearsal import CARD
from comkd_ray.results import Row
from comkd_ray.study_file import digest
from comkd_ray.tune import CohortSearcher, identify
from comkd_ray.weights import keep_best

REPEATS = 3
"""Times that a short thing is done; the fastest counts."""


@dataclass
class Costs:
    """What was measured, by name; seconds and bytes of the whole study unless the name says otherwise."""

    arms: int
    epochs: int
    arms_per_trial: int
    found: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of a block."""
        start = time.perf_counter()
        yield
        self.found[name] = self.found.get(name, 0.0) + time.perf_counter() - start

    def fastest(self, name: str, work: Callable[[], object]) -> None:
        """The fastest of REPEATS."""
        spent = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            work()
            spent.append(time.perf_counter() - start)
        self.found[name] = min(spent)

    def held(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` makes, with its seconds and, made once more, the memory that it keeps."""
        with self.timed(f"{name}_seconds"):
            made = make()
        del made
        gc.collect()
        tracemalloc.start()
        made = make()
        gc.collect()
        self.found[f"{name}_memory"] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return made


def bench_scale(study: Study, arms: int, run: Path) -> dict[str, Any]:
    """Measure a study of so many arms in the empty folder `run`. UserError for a grid or a list."""
    if study.search.is_enumerated:
        raise UserError(f"search.sampler: {study.search.sampler}: a grid or a list asks no sampler; use tpe")
    run.mkdir(parents=True, exist_ok=True)
    study_file.dump(study, run / "study.yaml")
    costs = Costs(arms, study.train.epochs, assumed_size(study))
    _fill(study, arms, run, costs)
    _read(run, costs)
    _search(study, arms, run, costs)
    _report(run, costs)
    facts = {"event": "bench scale", "study": study.study, "arms": arms, "epochs": costs.epochs}
    return facts | {"arms_per_trial": costs.arms_per_trial, "machine": provenance.machine()} | costs.found


def _fill(study: Study, arms: int, run: Path, costs: Costs) -> None:
    """A journal and records of `arms` ended arms."""
    drawing = study.search.model_copy(update={"sampler": "random", "arms": arms, "first": ()})
    asked = OptunaArms(study.model_copy(update={"search": drawing}), run / "optuna.journal")
    stream = random.Random(0)  # noqa: S311  (no secret)
    for number in range(arms):
        with costs.timed("journal_seconds"):
            proposal = asked.ask()
            asked.assign(proposal.number, digest(number))
        record = made_up(study, digest(number), proposal, stream)
        with costs.timed("journal_seconds"):
            for row in record["epochs"]:
                asked.note(proposal.number, row["epoch"], row[OBJECTIVE])
            asked.tell(proposal.number, record)
        with costs.timed("records_written_seconds"):
            results.write_record(run, record["arm"], record["epochs"])
    costs.found["journal_bytes"] = (run / "optuna.journal").stat().st_size
    costs.found["records_bytes"] = sum(path.stat().st_size for path in (run / "records").iterdir())


def made_up(study: Study, arm: str, proposal: Proposal, stream: random.Random) -> Row:
    """A record as an arm leaves it that trained to its end, with scores drawn at random."""
    protocol = protocol_of(study)
    scores = (OBJECTIVE, *protocol.validation)

    def row(epoch: int) -> Row:
        drawn = {name: stream.uniform(40, 80) for name in scores}
        terms = {
            "lr": 0.005,
            "loss": stream.random(),
            "loss_kd": stream.random(),
            "loss_align": stream.random(),
        }
        return {"arm": arm, "epoch": epoch} | terms | {"alpha": stream.random(), "seconds": 10.0} | drawn

    epochs = [row(epoch) for epoch in range(1, study.train.epochs + 1)]
    best = max(epochs, key=lambda one: one[OBJECTIVE])
    tested = {f"test_{name}": stream.uniform(40, 80) for name in protocol.scores}
    best |= tested  # the only epoch whose student looked at test images
    references = {f"{name}_test_{score}": 50.0 for name in results.REFERENCES for score in protocol.scores}
    counts = {"trainable_parameters": 10**6, "total_parameters": 10**8, "teacher_parameters": 10**9}
    fixed = {"protocol": study.protocol, "selection": study.selection, "status": "complete", "error": None}
    asked = Asked(arm, proposal.number, proposal.overrides)
    own = fixed | references | counts | tested | {name: best[name] for name in scores}
    own |= {"epochs_done": len(epochs), "best_epoch": best["epoch"], "seconds": 10.0 * len(epochs)}
    own |= {"teacher_seconds_saved": 1.0}
    return {"arm": own | jobs.asked_columns(study, "c0000", asked), "epochs": epochs}


def _read(run: Path, costs: Costs) -> None:
    """What a driver that resumes reads."""
    records = costs.held("records", lambda: results.read_records(run))
    costs.fastest("keep_best_seconds", lambda: keep_best(run, dict(records)))


def _search(study: Study, arms: int, run: Path, costs: Costs) -> None:
    """TPE and the searcher with all of these arms behind them, through one more cohort."""
    more = study.search.model_copy(update={"arms": arms + 10**6, "first": ()})
    study = study.model_copy(update={"search": more})
    asked = costs.held("journal_opened", lambda: OptunaArms(study, run / "optuna.journal"))
    costs.fastest("left_seconds", asked.left)
    costs.fastest("ask_seconds", asked.ask)
    searcher = costs.held(
        "searcher", lambda: CohortSearcher(study, run, run, asked, CARD, assumed_size(study))
    )
    costs.fastest("identify_seconds", lambda: identify(study, CARD, {}))
    with costs.timed("cohort_asked_seconds"):
        order = Path(searcher.suggest("t")["job"])
    costs.found["order_bytes"] = order.stat().st_size
    costs.fastest("order_read_seconds", lambda: jobs.read_job(order))
    names = list(searcher.cohorts["c0000"])
    for epoch in range(1, study.train.epochs + 1):
        with costs.timed("cohort_noted_seconds"):
            searcher.on_trial_result("t", {"epoch": epoch, "values": [[arm, 50.0] for arm in names]})
    stream = random.Random(1)  # noqa: S311  (no secret)
    for one in jobs.read_job(order).arms:
        record = made_up(study, one.arm, Proposal(one.number, one.overrides), stream)
        results.write_record(run, record["arm"], record["epochs"])
    with costs.timed("cohort_told_seconds"):
        searcher.on_trial_result("t", {"epoch": study.train.epochs, "values": [], "ended": names})
        searcher.on_trial_complete("t")


def _report(run: Path, costs: Costs) -> None:
    """Compaction and the report."""
    with costs.timed("compact_seconds"):
        results.compact(run)
    costs.found["tables_bytes"] = sum(path.stat().st_size for path in (run / "results").rglob("*.parquet"))
    with costs.timed("report_seconds"):
        page = report.build(run)
    costs.found["report_bytes"] = page.stat().st_size


ROWS: tuple[tuple[str, str, str], ...] = (
    ("journal_bytes", "an arm", "Optuna's journal on disk"),
    ("journal_seconds", "an arm", "ask at random, note every epoch, tell"),
    ("journal_opened_seconds", "all", "opening the journal: --resume"),
    ("journal_opened_memory", "an arm", "the journal in memory"),
    ("left_seconds", "once", "how many arms are left"),
    ("ask_seconds", "once", "TPE asked for one arm"),
    ("identify_seconds", "once", "an arm's identity"),
    ("cohort_asked_seconds", "once", "a cohort asked for, its order written"),
    ("order_bytes", "once", "a cohort's order"),
    ("order_read_seconds", "once", "reading it"),
    ("cohort_noted_seconds", "once", "a cohort's epochs noted"),
    ("cohort_told_seconds", "once", "a cohort's arms told"),
    ("records_bytes", "an arm", "a record on disk"),
    ("records_written_seconds", "an arm", "writing it"),
    ("records_seconds", "all", "reading all records"),
    ("records_memory", "an arm", "a record in memory"),
    ("searcher_seconds", "all", "the searcher begins"),
    ("searcher_memory", "an arm", "the searcher in memory, its records too"),
    ("keep_best_seconds", "once", "which students stay"),
    ("compact_seconds", "all", "compaction to parquet"),
    ("tables_bytes", "an arm", "the tables on disk"),
    ("report_seconds", "all", "building the report"),
    ("report_bytes", "all", "report.html"),
)


def lines(found: dict[str, Any]) -> list[str]:
    """What `bench_scale` found, for people."""
    rows = []
    for name, each, what in ROWS:
        value = found[name] / (found["arms"] if each == "an arm" else 1)
        shown = f"{1e3 * value:>12,.2f} ms" if name.endswith("seconds") else f"{value / 1e3:>12,.1f} kB"
        rows.append(f"{what:<44}{shown}  {each}")
    head = f"{found['study']}: {found['arms']:,} arms of {found['epochs']} epochs, cohorts of"
    return [f"{head} {found['arms_per_trial']}", *rows]
