"""A study that goes on: with more arms, or as a fork that begins with what is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import outer
import pytest

from comkd_ray import jobs, quarantine, results, study_file, study_life
from comkd_ray.ablation import GridArms
from comkd_ray.config import Study
from comkd_ray.errors import UserError
from comkd_ray.material import Card, write_card
from comkd_ray.optuna_search import OptunaArms
from comkd_ray.search_space import Overrides
from comkd_ray.weights import FILES

Tree = dict[str, Any]
SMALL: Tree = {"student.alpha": {"choice": ["scalar", "vector"]}, "train.seed": {"choice": [1, 2, 3]}}


def card(identity: str = "material") -> Card:
    return Card(identity, "data", "teacher", "text", "bank", "bank", None, 1.0, 10, {}, {}, "digest")


def identify(study: Study, overrides: Overrides) -> str:
    return jobs.arm_identity("material", study_file.resolve(study, overrides))


def run_arms(study: Study, run: Path, count: int, statuses: str = "complete") -> list[Tree]:
    """A run directory as `tune` leaves it: study, card, journal, and a record an arm."""
    run.mkdir(parents=True)
    study_file.dump(study, run / "study.yaml")
    write_card(run, card())
    arms, records = OptunaArms(study, run / "optuna.journal"), []
    for _ in range(count):
        one = arms.ask()
        asked = jobs.Asked(identify(study, one.overrides), one.number, one.overrides)
        arms.assign(one.number, asked.arm)
        row = jobs.asked_columns(study, "c0000", asked)
        row |= {"status": statuses, "objective": 50.0 + one.number, "protocol": study.protocol}
        record = {"arm": row, "epochs": [{"arm": asked.arm, "epoch": 1, "loss": 1.0, "objective": 50.0}]}
        results.write_record(run, record["arm"], record["epochs"])
        arms.tell(one.number, record)
        records.append(record)
    return records


def searched(folder: Path, arms: int = 6, **more: Any) -> Study:
    search = {key: more.pop(key) for key in ("space", "sampler", "first", "halving") if key in more}
    return outer.study(folder, outer.tpe(arms, **search), **more)


def forked(new: Study, reports: Path, name: str = "fork") -> tuple[study_life.Fork, str]:
    """Fork and take over, as a run does."""
    fork = study_life.plan_fork(new, reports, name)
    fork.run.mkdir()
    study_life.begin_fork(fork)
    study_file.dump(fork.study, fork.run / "study.yaml")
    assert study_life.is_pending(fork.run)
    words = study_life.take_over(fork.study, fork.run, card(), lambda point: identify(fork.study, point))
    assert not study_life.is_pending(fork.run)
    return fork, words


# More arms ----------------------------------------------------------------------------------------


def test_more_arms_are_added_to_those_of_the_run(tmp_path: Path) -> None:
    run_arms(searched(tmp_path), tmp_path / "tiny", 2)
    grown = study_life.grown(searched(tmp_path), tmp_path / "tiny", 5)
    assert grown.search.arms == 6 + 5
    study_life.check_run(grown, tmp_path / "tiny", resume=True)
    study_file.dump(grown, tmp_path / "tiny" / "study.yaml")
    assert study_life.grown(searched(tmp_path), tmp_path / "tiny", 0).search.arms == 11
    assert study_life.grown(searched(tmp_path), tmp_path / "tiny", 1).search.arms == 12


def test_the_search_goes_on_where_it_was(tmp_path: Path) -> None:
    before = run_arms(searched(tmp_path), tmp_path / "tiny", 6)
    grown = study_life.grown(searched(tmp_path), tmp_path / "tiny", 2)
    arms = OptunaArms(grown, tmp_path / "tiny" / "optuna.journal")
    assert arms.left() == 2
    assert identify(grown, arms.ask().overrides) not in [record["arm"]["arm"] for record in before]


@pytest.mark.parametrize("sampler", ["grid", "list"])
def test_a_grid_or_a_list_has_no_more_arms_and_it_is_said_why(tmp_path: Path, sampler: str) -> None:
    first: list[Tree] = [{}] if sampler == "list" else []
    study = outer.study(tmp_path, {"sampler": sampler, "space": SMALL, "first": first})
    study_file.dump(study, tmp_path / "study.yaml")
    with pytest.raises(UserError, match=rf"--add-arms: a {sampler} has all its arms already; widen it and"):
        study_life.grown(study, tmp_path, 1)
    assert study_life.grown(study, tmp_path, 0) == study


def test_an_exhausted_space_has_no_more_arms(tmp_path: Path) -> None:
    study = searched(tmp_path, 10, space=SMALL)
    study_file.dump(study, tmp_path / "study.yaml")
    with pytest.raises(UserError, match=r"all 6 arms of this space are in the study; widen search\.space"):
        study_life.grown(study, tmp_path, 1)


def test_a_sampled_space_that_more_arms_exhaust_trains_what_is_left_of_it(tmp_path: Path) -> None:
    study = searched(tmp_path, 2, space=SMALL)
    records = run_arms(study, tmp_path / "tiny", 2)
    grown = study_life.grown(study, tmp_path / "tiny", 10)
    assert grown.search.is_exhausted
    recorded = {record["arm"]["arm"]: record for record in records}
    grid = GridArms(grown, lambda cell: identify(grown, cell), recorded, [0, 1])
    asked = [grid.ask() for _ in range(grid.left())]
    assert len(asked) == 4
    assert not {identify(grown, one.overrides) for one in asked} & recorded.keys()
    assert len({one.number for one in asked} | {0, 1}) == 6


# Forks --------------------------------------------------------------------------------------------


def test_a_fork_says_what_differs(tmp_path: Path) -> None:
    run_arms(searched(tmp_path), tmp_path / "tiny", 1)
    space = {**outer.SPACE, "train.lr": {"float": [0.003, 0.5], "log": True}}
    fork = study_life.plan_fork(searched(tmp_path, 9, space=space, train={"epochs": 3}), tmp_path, "fork")
    assert fork.lines() == [
        "train.epochs: 2 -> 3",
        "search.arms: 6 -> 9",
        "search.space.train.lr.float: [0.003, 0.1] -> [0.003, 0.5]",
    ]
    assert (fork.study.study, fork.run, fork.origin) == ("fork", tmp_path / "fork", tmp_path / "tiny")
    assert not fork.run.exists()


def test_keys_that_only_one_study_has_are_told_apart(tmp_path: Path) -> None:
    run_arms(searched(tmp_path), tmp_path / "tiny", 1)
    space = {key: one for key, one in outer.SPACE.items() if key != "train.lr"}
    lines = study_life.plan_fork(searched(tmp_path, space=space), tmp_path, "fork").lines()
    assert "search.space.train.lr.float: [0.003, 0.1] -> -" in lines


def test_what_a_killed_fork_left_takes_no_name(tmp_path: Path) -> None:
    """It was cut off before its study file was there: nothing of anybody's is in it."""
    run_arms(searched(tmp_path), tmp_path / "tiny", 1)
    fork = study_life.plan_fork(searched(tmp_path, arms=9), tmp_path, "fork")
    fork.run.mkdir()
    study_life.begin_fork(fork)
    assert (fork.run / "fork.json").exists()
    for name in (".fork.json.0a1b2c3d", ".study.yaml"):  # killed while these were written
        (fork.run / name).write_text("{")
    again = study_life.plan_fork(searched(tmp_path, arms=9), tmp_path, "fork")
    assert again == fork
    (fork.run / "fork.json.notes").write_text("mine")
    with pytest.raises(UserError, match="exists; nothing was written"):
        study_life.plan_fork(searched(tmp_path, arms=9), tmp_path, "fork")


@pytest.mark.parametrize("there", ["folder", "file"])
def test_where_the_name_is_taken_nothing_is_written(tmp_path: Path, there: str) -> None:
    run_arms(searched(tmp_path), tmp_path / "tiny", 1)
    taken = tmp_path / "fork"
    if there == "folder":
        taken.mkdir()
        (taken / "notes.txt").write_text("mine")
    else:
        taken.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"--fork fork: .*fork exists; nothing was written"):
        study_life.plan_fork(searched(tmp_path, 9), tmp_path, "fork")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [("a/b", "letters, digits"), ("..", "letters, digits"), ("", "letters"), ("fork", "holds no records")],
)
def test_a_fork_of_nothing_and_a_name_that_is_none_are_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        study_life.plan_fork(searched(tmp_path), tmp_path, name)


def test_a_fork_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    run_arms(searched(tmp_path), tmp_path / "tiny", 1)
    with pytest.raises(UserError, match=r"nothing differs from .*tiny; --resume --add-arms N goes on there"):
        study_life.plan_fork(searched(tmp_path), tmp_path, "fork")


def test_the_same_arms_are_copied_and_not_trained_again(tmp_path: Path) -> None:
    old = run_arms(searched(tmp_path), tmp_path / "tiny", 6)
    best = tmp_path / "tiny" / "students" / old[5]["arm"]["arm"]
    best.mkdir(parents=True)
    for name in FILES:
        (best / name).write_text("{}")
    space = {**outer.SPACE, "train.lr": {"float": [0.001, 0.1], "log": True}}
    fork, words = forked(searched(tmp_path, 4, space=space), tmp_path)
    assert words == "of tiny, 6 arms are copied and 0 more are told to the sampler"
    records = results.read_records(fork.run)
    assert {arm: one["epochs"] for arm, one in records.items()} == {
        one["arm"]["arm"]: one["epochs"] for one in old
    }
    assert {one["arm"]["from"] for one in records.values()} == {"tiny"}
    assert (fork.run / "students" / best.name / "student.json").exists()
    arms = OptunaArms(fork.study, fork.run / "optuna.journal", study_life.told(fork.run))
    assert arms.reconcile(records) == 0
    assert [trial.user_attrs["from"] for trial in arms.known()] == ["tiny"] * 6
    assert [trial.value for trial in arms.known()] == [50.0, 51.0, 52.0, 53.0, 54.0, 55.0]
    assert arms.left() == 4  # what is copied is no arm that was asked for here
    assert identify(fork.study, arms.ask().overrides) not in records


def test_results_of_other_arms_that_fit_are_told_to_the_sampler_alone(tmp_path: Path) -> None:
    run_arms(searched(tmp_path), tmp_path / "tiny", 5)
    fork, words = forked(searched(tmp_path, 4, train={"epochs": 3}), tmp_path)
    assert words == "of tiny, 0 arms are copied and 5 more are told to the sampler"
    assert results.read_records(fork.run) == {}
    for _ in range(2):  # opened again, they are told once
        arms = OptunaArms(fork.study, fork.run / "optuna.journal", study_life.told(fork.run))
        arms.reconcile({})
        assert [trial.user_attrs for trial in arms.known()] == [{"from": "tiny"}] * 5
        assert arms.left() == 4
    arms.assign(arms.ask().number, "new")
    assert "start" not in arms.known()[5].user_attrs  # five ended: the sampler models at once


def test_a_kill_while_results_are_told_leaves_none_of_them_untold(tmp_path: Path) -> None:
    run_arms(searched(tmp_path), tmp_path / "tiny", 5)
    fork, _ = forked(searched(tmp_path, 4, train={"epochs": 3}), tmp_path)
    told, journal = study_life.told(fork.run), fork.run / "optuna.journal"
    OptunaArms(fork.study, journal, told[:2]).reconcile({})  # all that it came to
    arms = OptunaArms(fork.study, journal, told)
    arms.reconcile({})
    whole = OptunaArms(fork.study, tmp_path / "whole.journal", told)
    whole.reconcile({})
    assert [trial.params for trial in arms.known()] == [trial.params for trial in whole.known()]
    assert len(arms.known()) == 5


def test_arms_outside_the_new_space_are_left_behind(tmp_path: Path) -> None:
    old = run_arms(searched(tmp_path, 16), tmp_path / "tiny", 16)
    space = {**outer.SPACE, "loss.temperature": {"float": [0.5, 1.5], "log": True}}
    fork, _ = forked(searched(tmp_path, 4, space=space), tmp_path)
    inside = {one["arm"]["arm"] for one in old if one["arm"]["loss.temperature"] <= 1.5}
    assert 0 < len(inside) < 16
    assert results.read_records(fork.run).keys() == inside


def test_a_key_that_is_no_longer_searched_has_to_have_the_new_value(tmp_path: Path) -> None:
    """Otherwise arms that differ in it would pass for the same."""
    old = run_arms(searched(tmp_path, 12), tmp_path / "tiny", 12)
    space = {key: one for key, one in outer.SPACE.items() if key != "student.ifalign"}
    fork, _ = forked(searched(tmp_path, 4, space=space), tmp_path)
    assert fork.study.student.ifalign
    kept = {one["arm"]["arm"] for one in old if one["arm"]["student.ifalign"]}
    assert 0 < len(kept) < 12
    assert results.read_records(fork.run).keys() == kept


@pytest.mark.parametrize("status", ["pruned", "failed"])
def test_only_arms_at_full_budget_are_taken_over(tmp_path: Path, status: str) -> None:
    run_arms(searched(tmp_path), tmp_path / "tiny", 4, status)
    _, words = forked(searched(tmp_path, 9), tmp_path)
    assert words == "of tiny, 0 arms are copied and 0 more are told to the sampler"


def test_other_material_or_another_objective_takes_nothing_over(tmp_path: Path) -> None:
    run_arms(searched(tmp_path), tmp_path / "tiny", 4)
    write_card(tmp_path / "tiny", card("other"))
    fork, words = forked(searched(tmp_path, 9), tmp_path, "data")
    assert words == (
        "nothing of tiny is taken over: its material is another (data, views, teacher or student model)"
    )
    assert (results.read_records(fork.run), study_life.told(fork.run)) == ({}, ())
    new = study_file.build(searched(tmp_path).model_dump(mode="json") | {"selection": "promptkd"}, "new")
    _, words = forked(new, tmp_path, "objective")
    assert words == "nothing of tiny is taken over: it goes by another objective"


def test_a_fork_may_be_a_grid_and_trains_only_the_cells_that_are_new(tmp_path: Path) -> None:
    small = outer.study(tmp_path, {"sampler": "tpe", "arms": 3, "space": SMALL})
    old = run_arms(small, tmp_path / "tiny", 3)
    grid = outer.study(tmp_path, {"sampler": "grid", "space": SMALL})
    fork, words = forked(grid, tmp_path)
    distinct = {one["arm"]["arm"] for one in old}
    assert words == f"of tiny, {len(distinct)} arms are copied and 0 more are told to the sampler"
    records = results.read_records(fork.run)
    taken = [one["arm"]["number"] for one in records.values()]
    arms = GridArms(fork.study, lambda cell: identify(fork.study, cell), records, taken)
    assert arms.left() == 6 - len(distinct)
    asked = [arms.ask() for _ in range(arms.left())]
    assert not {one.number for one in asked} & set(taken)


def test_a_fork_note_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "fork.json").write_text("{")
    with pytest.raises(UserError, match=r"fork\.json: cannot be read; remove it to go on without"):
        study_life.told(tmp_path)
    assert study_life.told(tmp_path / "none") == ()


def test_a_record_of_a_fork_that_is_damaged_is_trained_again_as_an_arm_of_its_own(tmp_path: Path) -> None:
    run_arms(searched(tmp_path), tmp_path / "tiny", 3)
    fork, _ = forked(searched(tmp_path, 9), tmp_path)
    OptunaArms(fork.study, fork.run / "optuna.journal").reconcile(results.read_records(fork.run))
    broken = next((fork.run / "records").iterdir())
    broken.write_text(json.dumps({"arm": {}}))
    records = results.read_records(fork.run)
    assert quarantine.held(fork.run) == [broken.name]
    arms = OptunaArms(fork.study, fork.run / "optuna.journal")
    assert arms.reconcile(records) == 1
    assert identify(fork.study, arms.ask().overrides) == broken.stem
