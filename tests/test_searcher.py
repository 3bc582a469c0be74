"""The searcher between Optuna and Tune, without a Ray: when it stops asking, and what is then left."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import outer
import pytest
from ray.tune.search import Searcher
from test_ledger import earlier

from comkd_ray import jobs, progress, results, study_file
from comkd_ray import tune as ray_search
from comkd_ray.budget import Budget
from comkd_ray.config import Study
from comkd_ray.designs import compile_study, until_decided
from comkd_ray.ledger import TAKEN_FROM, arms_of
from comkd_ray.material import Card
from comkd_ray.optuna_search import OptunaArms
from comkd_ray.progress import Screen
from comkd_ray.study_run import _Run

Tree = dict[str, Any]
CARD = Card("material", "data", "teacher", "text", "bank", "bank", None, 1.0, 10, {}, {}, "digest")


class Search:
    """A run directory whose cohorts are answered by hand."""

    def __init__(self, run: Path, limit: Budget = Budget(), arms: int = 12, **search: Any) -> None:  # noqa: B008
        self.study: Study = outer.study(run, outer.tpe(arms, arms_per_trial=3, **search))
        self.run, self.cohorts = run, 0
        self.arms = OptunaArms(self.study, run / "optuna.journal", (), jobs.ordered(run))
        again = self.arms.reconcile(results.read_records(run))
        self.searcher = ray_search.CohortSearcher(self.study, run, run, self.arms, CARD, 3, limit, again)

    def cohort(self) -> list[jobs.Asked] | None:
        """Arms of the next cohort; None where the search is over."""
        order = self.searcher.suggest(f"t{self.cohorts}")
        if order is None or order == Searcher.FINISHED:
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


def test_an_arm_that_neither_journal_nor_records_know_any_more_is_in_its_work_order(tmp_path: Path) -> None:
    """A damaged record and a lost journal: the very arms that were asked for are trained, no others."""
    Search(tmp_path).whole()
    before = results.read_records(tmp_path)
    for path in sorted((tmp_path / "records").iterdir())[:2]:
        path.write_text("{")
    (tmp_path / "optuna.journal").unlink()
    search = Search(tmp_path)
    assert search.searcher.left == 2
    assert Search(tmp_path).whole() == [2]
    assert results.read_records(tmp_path).keys() == before.keys()


def test_a_damaged_work_order_is_passed_over(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.cohort()
    (tmp_path / "cohorts" / "c0000.json").write_text("{")
    assert jobs.ordered(tmp_path) == {}
    assert Search(tmp_path).searcher.left == 12


# Whatever happens ---------------------------------------------------------------------------------


def killed(search: Search, asked: list[jobs.Asked], stream: random.Random) -> None:
    """The process dies; some of its arms left a record that nobody was told of."""
    for one in asked:
        if stream.random() < 0.5:
            row = {"status": "complete", "objective": 50.0, "seconds": 1.0, "epochs_done": 1}
            epochs = [{"arm": one.arm, "epoch": 1, "loss": 1.0, "objective": 50.0}]
            results.write_record(search.run, row | jobs.asked_columns(search.study, "c", one), epochs)


def spoiled(run: Path, stream: random.Random) -> None:
    """A damaged record, and a journal with a lost line, half a line, a lost end, or none."""
    records = sorted((run / "records").glob("*.json"), key=lambda path: path.read_text())
    if records and stream.random() < 0.3:
        stream.choice(records).write_text("{")
    path, kind = run / "optuna.journal", stream.randrange(8)
    lines = path.read_bytes().splitlines(keepends=True)
    line = stream.randrange(len(lines))
    damage = {
        0: [*lines[:line], b"\x00\x00\n", *lines[line + 1 :]],
        1: [*lines[:line], lines[line][: len(lines[line]) // 2], *lines[line + 1 :]],
        2: [*lines[:line], lines[line][:5]],
        3: [],
    }
    path.write_bytes(b"".join(damage.get(kind, lines)))


@pytest.mark.parametrize("seed", range(8))
def test_kills_and_damage_in_any_order_lose_no_result_and_train_nothing_twice(
    tmp_path: Path, seed: int
) -> None:
    """Eight lives of a search; what is left is right in each, and the last one ends with twelve arms."""
    stream = random.Random(seed)
    first: list[Tree] = [{"student.ifalign": False}, {"student.ifalign": True}][: seed % 3]
    sampler = ("tpe", "random", "qmc", "nsga2")[seed % 4]
    for _ in range(8):
        search = Search(tmp_path, first=first, sampler=sampler)
        records = results.read_records(tmp_path)
        assert search.searcher.left == 12 - len(records)
        for _ in range(stream.randrange(1, 4)):
            asked = search.cohort()
            if asked is None:
                break
            assert not {one.arm for one in asked} & records.keys()
            if stream.random() < 0.5:
                search.end(search.cohorts - 1, asked, stream.uniform(40, 60))
            else:
                killed(search, asked, stream)
        spoiled(tmp_path, stream)
    search = Search(tmp_path, first=first, sampler=sampler)
    search.whole()
    records = results.read_records(tmp_path)
    assert len(records) == 12
    complete = [trial for trial in search.arms.known() if trial.state.name == "COMPLETE"]
    assert {trial.user_attrs.get("arm") for trial in complete} >= records.keys()


def test_an_order_carries_values_at_rungs_alone(tmp_path: Path) -> None:
    """Halving by 2 from epoch 1, two epochs: epoch 1 is the only rung; without halving nothing is carried."""
    for name in ("halved", "plain"):
        (tmp_path / name).mkdir()
    halved = Search(tmp_path / "halved", halving={"eta": 2, "min_epochs": 1})
    plain = Search(tmp_path / "plain")
    for search, expected in ((halved, {1: [7.0]}), (plain, {})):
        asked = search.cohort()
        assert asked is not None
        assert search.study.train.epochs == 2
        for epoch in (1, 2):
            values = [[asked[0].arm, 7.0 * epoch]]
            search.searcher.on_trial_result("t0", {"epoch": epoch, "values": values})
        order = search.searcher.suggest("t1")
        assert jobs.read_job(Path(order["job"])).history == expected


def test_an_arm_that_is_tried_again_does_not_meet_its_own_earlier_value(tmp_path: Path) -> None:
    """Its process died after the rung; the half that comes again knows what others reached there, alone."""
    search = Search(tmp_path, halving={"eta": 2, "min_epochs": 1})
    other, asked = search.cohort(), search.cohort()
    assert other is not None
    assert asked is not None
    for trial, arms, first in (("t0", other, 1.0), ("t1", asked, 11.0)):
        values = [[one.arm, first + place] for place, one in enumerate(arms)]
        search.searcher.on_trial_result(trial, {"epoch": 1, "values": values})
    search.searcher.on_trial_complete("t1", error=True)
    order = search.searcher.suggest("t2")
    again = jobs.read_job(Path(order["job"]))
    assert [one.arm for one in again.arms] == [asked[1].arm]
    assert sorted(again.history[1]) == [1.0, 2.0, 3.0, 11.0, 13.0]


def test_a_cohort_that_is_over_leaves_no_meter(tmp_path: Path) -> None:
    search = Search(tmp_path)
    asked = search.cohort()
    assert asked is not None
    for name in ("c0000.0", "c0000.1", "c0001.0"):
        progress.Meter(tmp_path, name)("arms", 1, 2)
    search.end(0, asked)
    assert set(progress.read(tmp_path)) == {"c0001.0"}


def test_the_best_so_far_is_that_of_full_budget(tmp_path: Path) -> None:
    search = Search(tmp_path)
    for trial, objective in enumerate((40.0, 60.0, 50.0)):
        asked = search.cohort()
        assert asked is not None
        search.end(trial, asked, objective)
    assert search.searcher.best == 60.0
    assert Search(tmp_path).searcher.best == 60.0
    assert (
        ray_search.best_of([{"status": "pruned", "objective": 90.0}, {"status": "failed", "objective": None}])
        is None
    )


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "qmc"])
def test_kills_change_no_arm_and_no_state(tmp_path: Path, sampler: str) -> None:
    """Cohorts of three whose values follow from the arms; every other is killed after its first arm."""

    def value(one: jobs.Asked) -> float:
        return (
            50
            + 3 * math.sin(9 * float(one.overrides["loss.temperature"]))
            - 100 * float(one.overrides["train.lr"])
        )

    def ended(folder: Path, kills: bool) -> list[str]:
        folder.mkdir()
        search, killed = Search(folder, arms=18, sampler=sampler, startup_arms=4), False
        while (asked := search.cohort()) is not None:
            killed = kills and not killed
            name = search.searcher.trials[f"t{search.cohorts - 1}"]
            for one in asked[:1] if killed else asked:
                row = {"status": "complete", "objective": value(one), "seconds": 1.0, "epochs_done": 2}
                results.write_record(folder, row | jobs.asked_columns(search.study, name, one), [])
            if killed:
                search = Search(folder, arms=18, sampler=sampler, startup_arms=4)
            else:
                search.searcher.on_trial_complete(f"t{search.cohorts - 1}")
        kept = [trial for trial in search.arms.known() if not {"lost", "same_as"} & trial.user_attrs.keys()]
        return sorted(f"{sorted(trial.params.items())} {trial.state.name} {trial.value}" for trial in kept)

    undisturbed = ended(tmp_path / "one", kills=False)
    assert len(undisturbed) == 18
    assert ended(tmp_path / "two", kills=True) == undisturbed


def test_a_cohort_that_breaks_its_process_is_tried_again_in_halves(tmp_path: Path) -> None:
    """Of three arms the second kills its process whenever it is there; only that one is lost."""
    search = Search(tmp_path, arms=3)
    asked = search.cohort()
    assert asked is not None
    breaker, tried = asked[1].arm, []
    while asked is not None:
        if not search.searcher.broken:
            assert search.searcher.suggest("more") is None, "another cohort runs: not yet, and not never"
        tried.append([one.arm for one in asked])
        trial = f"t{search.cohorts - 1}"
        if breaker in tried[-1]:
            search.searcher.on_trial_complete(trial, error=True)
        else:
            search.end(search.cohorts - 1, asked)
        asked = search.cohort()
    whole = tried[0]
    assert tried[1:] == [[breaker], [whole[0], whole[2]]]
    assert (search.searcher.lost, search.searcher.left) == (1, 1)
    assert results.read_records(tmp_path).keys() == set(whole) - {breaker}
    again = Search(tmp_path, arms=3)
    assert [one.arm for one in again.cohort() or ()] == [breaker]


# An ablation that adds seeds --------------------------------------------------------------------


def growing(run: Path) -> tuple[Study, _Run]:
    """IFAlign off and on with two seeds and up to four, and what drives that in a directory `run`."""
    block = {"ablate": {"design": "factorial", "factors": {"student.ifalign": [False, True]}, "seeds": 2}}
    one = study_file.build(outer.tree(Path("/world")) | block, "tiny.yaml")
    study = compile_study(until_decided(one, "x", 4), "tiny-ablate", "x")
    return study, _Run(study, run, run, Screen("quiet"), False, 0.0, ray_search.UNLIMITED, None)


def end_cell(study: Study, run: Path, asked: jobs.Asked, status: str = "complete") -> None:
    """A cell's record; all cells have one score."""
    row = {"status": status, "objective": 50.0, "test_harmonic_mean": 80.0, "epochs_done": 2}
    results.write_record(run, row | jobs.asked_columns(study, "c0", asked), [])


def test_as_claims_grow_what_an_earlier_study_has_is_taken_and_the_rest_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an effect the claim goes to its fourth and last seed; the earlier study lacks the third."""
    run = tmp_path / "tiny-ablate"
    study, driver = growing(run)
    before, _ = earlier(tmp_path, CARD.identity)
    for arm, cell in arms_of(study, CARD.identity).items():
        if cell["train.seed"] != 3:
            end_cell(study, before, jobs.Asked(arm, 0, cell))
    trained: list[Any] = []

    def search(searcher: ray_search.CohortSearcher, *_: Any) -> None:
        for place in itertools.count():
            order = searcher.suggest(f"t{place}")
            if order is None or order == Searcher.FINISHED:
                return
            for asked in jobs.read_job(Path(order["job"])).arms:
                trained.append(asked.overrides["train.seed"])
                end_cell(study, run, asked)
            searcher.on_trial_complete(f"t{place}")

    monkeypatch.setattr(ray_search, "search", search)
    while driver.search_once(CARD, 1):
        pass
    assert trained == [3, 3]
    rows = [record["arm"] for record in results.read_records(run).values()]
    assert sorted(row["seed"] for row in rows if TAKEN_FROM in row) == [1, 1, 2, 2, 4, 4]
    assert driver.searcher is not None
    assert (driver.searcher.total, driver.searcher.left) == (8, 0)


def test_a_failed_cell_is_tried_again_only_before_later_seeds(tmp_path: Path) -> None:
    """Seeds 1 and 3 of both settings failed: after 1 there is a score, after 3 none."""
    study, driver = growing(tmp_path)
    for arm, cell in arms_of(study, CARD.identity).items():
        if cell["train.seed"] != 4:
            status = "complete" if cell["train.seed"] == 2 else "failed"
            end_cell(study, tmp_path, jobs.Asked(arm, 0, cell), status)
    driver.settle_cells(CARD)
    left = [record["arm"]["seed"] for record in results.read_records(tmp_path).values()]
    assert sorted(left) == [1, 1, 2, 2]
