"""The searcher between Optuna and Tune, without a Ray: when it stops asking, and what is then left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import outer
import pytest
from ray.tune.search import Searcher

from comkd_ray import jobs, results
from comkd_ray import tune as ray_search
from comkd_ray.budget import Budget
from comkd_ray.config import Study
from comkd_ray.material import Card
from comkd_ray.optuna_search import OptunaArms

Tree = dict[str, Any]
CARD = Card("material", "data", "teacher", "text", "bank", "bank", None, 1.0, 10, {}, {}, "digest")


class Search:
    """A run directory whose cohorts are answered by hand."""

    def __init__(self, run: Path, limit: Budget = Budget(), arms: int = 12, **search: Any) -> None:  # noqa: B008
        self.study: Study = outer.study(run, outer.tpe(arms, arms_per_trial=3, **search))
        self.run, self.cohorts = run, 0
        asked = OptunaArms(self.study, run / "optuna.journal")
        asked.reconcile(results.read_records(run))
        self.searcher = ray_search.CohortSearcher(self.study, run, run, asked, CARD, limit)

    def cohort(self) -> list[jobs.Asked] | None:
        """Arms of the next cohort; None where the search is over."""
        order = self.searcher.suggest(f"t{self.cohorts}")
        if order == Searcher.FINISHED:
            return None
        self.cohorts += 1
        return list(jobs.read_job(Path(order["job"])).arms)

    def end(
        self, trial: int, asked: list[jobs.Asked], objective: float = 50.0, seconds: float = 36.0
    ) -> None:
        """All arms of a cohort end at full budget."""
        for one in asked:
            row = {"status": "complete", "objective": objective, "seconds": seconds, "epochs_done": 2}
            row |= jobs.asked_columns(self.study, f"c{trial:04d}", one)
            results.write_record(self.run, row, [])
        self.searcher.on_trial_complete(f"t{trial}")

    def whole(self, objective: float = 50.0) -> list[int]:
        """Run cohorts one after the other to the end; returns their sizes."""
        sizes = []
        while (asked := self.cohort()) is not None:
            sizes.append(len(asked))
            self.end(self.cohorts - 1, asked, objective)
        return sizes


def test_without_a_budget_every_arm_is_asked_for(tmp_path: Path) -> None:
    search = Search(tmp_path)
    assert search.whole() == [3, 3, 3, 3]
    assert (search.searcher.stopped, search.searcher.left) == (None, 0)


def test_at_most_so_many_arms_to_the_very_arm(tmp_path: Path) -> None:
    search = Search(tmp_path, Budget(arms=7))
    assert search.whole() == [3, 3, 1]
    assert search.searcher.stopped == "--max-arms 7: 7 arms ended, 0 run"
    assert search.searcher.left == 5


def test_running_cohorts_count_and_end(tmp_path: Path) -> None:
    """Two cohorts at once; the second is cut to fit, and both end after the search stopped asking."""
    search = Search(tmp_path, Budget(arms=5))
    one, two = search.cohort(), search.cohort()
    assert one is not None
    assert two is not None
    assert (len(one), len(two)) == (3, 2)
    assert search.cohort() is None
    search.end(0, one)
    search.end(1, two)
    assert len(search.searcher.records) == 5


def test_hours_end_the_search_and_resuming_without_them_goes_on(tmp_path: Path) -> None:
    """36 s an arm on one CPU: 0.01 hours each."""
    limited = Search(tmp_path, Budget(hours=0.045))
    assert limited.whole() == [3, 2]
    assert "0.05 CPU-hours are spent" in (limited.searcher.stopped or "")
    again = Search(tmp_path, Budget(hours=0.045))
    assert again.cohort() is None
    assert again.searcher.left == 7
    assert Search(tmp_path).whole() == [3, 3, 1]
    assert len(results.read_records(tmp_path)) == 12


def test_a_search_that_gets_no_better_stops(tmp_path: Path) -> None:
    search = Search(tmp_path, Budget(until=5))
    assert search.whole(objective=50.0) == [3, 3]
    assert search.searcher.stopped == "--until 5: the last 5 arms at full budget were no better"


def test_a_search_that_gets_better_goes_on(tmp_path: Path) -> None:
    search, values = Search(tmp_path, Budget(until=5)), iter(range(50, 60))
    while (asked := search.cohort()) is not None:
        search.end(search.cohorts - 1, asked, float(next(values)))
    assert search.searcher.stopped is None
    assert len(search.searcher.records) == 12


def test_arms_of_another_study_cost_this_one_nothing(tmp_path: Path) -> None:
    for number in range(4):
        one = outer.record(f"old{number}", number=number, seconds=1e6, searched=[])
        one["arm"]["from"] = "other"
        results.write_record(tmp_path, one["arm"], one["epochs"])
    search = Search(tmp_path, Budget(hours=0.04, arms=4))
    assert search.whole() == [3, 1]


def test_an_arm_whose_record_was_lost_is_trained_again_and_the_rest_is_kept(tmp_path: Path) -> None:
    Search(tmp_path).whole()
    broken = sorted((tmp_path / "records").iterdir())[4]
    broken.write_bytes(b"\x00" * 40)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "records").iterdir() if path != broken}
    search = Search(tmp_path)
    assert search.searcher.left == 1
    assert search.whole() == [1]
    assert broken.exists()
    assert {name: (tmp_path / "records" / name).read_bytes() for name in kept} == kept
    assert [path.name for path in (tmp_path / "quarantine").iterdir()] == [broken.name]


@pytest.mark.parametrize("line", [0, 3, 20, -1])
def test_a_damaged_journal_costs_no_arm(tmp_path: Path, line: int) -> None:
    Search(tmp_path, Budget(arms=6)).whole()
    path = tmp_path / "optuna.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = b"damaged\n"
    path.write_bytes(b"".join(lines))
    before = results.read_records(tmp_path)
    search = Search(tmp_path)
    assert search.searcher.left == 6
    search.whole()
    after = results.read_records(tmp_path)
    assert len(after) == 12
    assert {arm: after[arm] for arm in before} == before
    numbers = [record["arm"]["number"] for record in after.values()]
    assert len(set(numbers)) == 12


def test_the_work_order_of_a_search_with_two_objectives_is_as_any(tmp_path: Path) -> None:
    search = Search(tmp_path, objectives=["objective", "trainable_parameters"])
    asked = search.cohort()
    assert asked is not None
    search.searcher.on_trial_result("t0", {"epoch": 1, "values": [[asked[0].arm, 41.0]], "ended": []})
    order = json.loads((tmp_path / "cohorts" / "c0000.json").read_text())
    assert [one["arm"] for one in order["arms"]] == [one.arm for one in asked]
