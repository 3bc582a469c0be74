"""Ask and tell over Optuna's journal: what is told when, and what a crash may not change."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import outer
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from comkd_ray import samplers, search_space, study_file
from comkd_ray.optuna_search import (
    MAX_REPEATS,
    OptunaArms,
    Proposal,
    distributions,
    open_journal,
    suggest,
)
from comkd_ray.search_space import Dimension

Tree = dict[str, Any]
FIRST: list[Tree] = [
    {"student.ifalign": False, "student.edu_attention": False},
    {"student.ifalign": True, "student.edu_attention": True, "train.lr": 0.01},
]


@pytest.fixture(autouse=True)
def _warnings_of_optuna_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def opened(folder: Path, arms: int = 6, first: list[Tree] | None = None, **search: Any) -> OptunaArms:
    """The search of a tiny study; opening the same folder again is resuming it."""
    study = outer.study(folder, outer.tpe(arms, first, **search))
    return OptunaArms(study, folder / "optuna.journal")


def ask(arms: OptunaArms) -> Proposal:
    """Ask, and note the record that will answer: `arm0`, `arm1`, ..."""
    proposal = arms.ask()
    arms.assign(proposal.number, f"arm{proposal.number}")
    return proposal


def answer(number: int, value: float = 50.0, status: str = "complete", epochs: int = 2) -> Tree:
    return outer.record(f"arm{number}", value, status, epochs)


def states(arms: OptunaArms) -> list[str]:
    return [trial.state.name for trial in arms.optuna.get_trials(deepcopy=False)]


# What is told -----------------------------------------------------------------------------------


def test_an_arm_at_full_budget_is_complete_with_its_value(tmp_path: Path) -> None:
    arms = opened(tmp_path)
    number = ask(arms).number
    arms.note(number, 1, 40.0)
    arms.note(number, 2, 61.5)
    arms.tell(number, answer(number, 61.5))
    trial = arms.optuna.trials[number]
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 61.5)
    assert trial.intermediate_values == {1: 40.0, 2: 61.5}
    assert trial.user_attrs["arm"] == f"arm{number}"


def test_an_arm_that_left_early_is_pruned_and_keeps_its_intermediate_values(tmp_path: Path) -> None:
    arms = opened(tmp_path)
    number = ask(arms).number
    arms.note(number, 1, 30.0)
    arms.tell(number, answer(number, 30.0, "pruned", epochs=1))
    trial = arms.optuna.trials[number]
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {1: 30.0}
    assert arms.optuna.get_trials(states=(TrialState.COMPLETE,)) == []


@pytest.mark.parametrize("lost", [True, False])
def test_a_failed_arm_and_one_without_a_record_are_failed_trials(tmp_path: Path, lost: bool) -> None:
    arms = opened(tmp_path)
    number = ask(arms).number
    arms.tell(number, None if lost else answer(number, status="failed", epochs=0))
    assert states(arms) == ["FAIL"]
    assert arms.optuna.trials[number].value is None


def test_a_failed_arm_whose_values_are_not_finite_never_becomes_a_value(tmp_path: Path) -> None:
    arms = opened(tmp_path)
    number = ask(arms).number
    record = answer(number, status="failed", epochs=1)
    record["arm"]["objective"] = math.nan
    arms.tell(number, record)
    assert states(arms) == ["FAIL"]


def test_proposals_stay_inside_the_space_and_leave_out_inactive_keys(tmp_path: Path) -> None:
    arms = opened(tmp_path, arms=40, startup_arms=5)
    for number in range(20):
        overrides = ask(arms).overrides
        study_file.resolve(arms.study, overrides)
        space = arms.study.search.space
        assert all(space[key].holds(value) for key, value in overrides.items())
        assert ("student.attention_scale" in overrides) == overrides["student.edu_attention"]
        arms.tell(number, answer(number, 50.0 + 10 * overrides["student.ifalign"]))
    assert {trial.params["student.ifalign"] for trial in arms.optuna.trials} == {True, False}


def test_every_kind_of_dimension_has_its_distribution() -> None:
    space = {
        "a": Dimension(float=(0.1, 1.0), log=True),
        "b": Dimension(float=(0.0, 1.0), step=0.25),
        "c": Dimension(int=(1, 9), step=4.0),
        "d": Dimension(int=(1, 64), log=True),
        "e": Dimension(choice=(True, "sqrt_width", 2)),
    }
    assert distributions(space) == {
        "a": FloatDistribution(0.1, 1.0, log=True),
        "b": FloatDistribution(0.0, 1.0, step=0.25),
        "c": IntDistribution(1, 9, step=4),
        "d": IntDistribution(1, 64, log=True),
        "e": CategoricalDistribution((True, "sqrt_width", 2)),
    }


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_every_kind_of_dimension_can_be_asked_for(tmp_path: Path, sampler: str) -> None:
    space: Tree = {
        "train.epochs": {"int": [2, 6], "step": 2},
        "train.batch_size": {"int": [2, 64], "log": True},
        "train.momentum": {"float": [0.0, 0.75], "step": 0.25},
        "loss.kd_weight": {"float": [0.1, 10.0], "log": True},
        "student.alpha": {"choice": ["scalar", "vector"]},
    }
    arms = opened(tmp_path, space=space, sampler=sampler)
    for _ in range(6):
        proposal = ask(arms)
        assert all(arms.study.search.space[key].holds(value) for key, value in proposal.overrides.items())
        arms.tell(proposal.number, answer(proposal.number))


# Named first arms -------------------------------------------------------------------------------


def test_named_arms_come_first_filled_up_with_the_studys_own_values(tmp_path: Path) -> None:
    arms = opened(tmp_path, first=FIRST)
    one, two, three = (ask(arms) for _ in range(3))
    assert one.overrides == {
        "student.ifalign": False,
        "student.edu_attention": False,
        "loss.temperature": 1.0,
        "train.lr": 0.02,
    }
    assert two.overrides == {
        "student.ifalign": True,
        "student.edu_attention": True,
        "student.attention_scale": 1.0,
        "loss.temperature": 1.0,
        "train.lr": 0.01,
    }
    assert (one.protected, two.protected, three.protected) == (True, True, False)


def test_named_arms_come_only_once_however_often_the_journal_is_opened(tmp_path: Path) -> None:
    for asked in range(4):
        arms = opened(tmp_path, first=FIRST)
        proposal = ask(arms)
        assert proposal.protected == (asked < len(FIRST))
        arms.tell(proposal.number, answer(proposal.number))
    assert len(arms.optuna.trials) == 4


# How many are left ------------------------------------------------------------------------------


def test_every_ended_or_running_arm_counts(tmp_path: Path) -> None:
    arms = opened(tmp_path, arms=6, first=FIRST)
    assert arms.left() == 6
    numbers = [ask(arms).number for _ in range(4)]
    assert arms.left() == 2
    arms.tell(numbers[0], answer(0))
    arms.tell(numbers[1], answer(1, status="pruned"))
    arms.tell(numbers[2], answer(2, status="failed"))
    arms.tell(numbers[3], None)
    assert arms.left() == 2


@pytest.mark.parametrize("known", ["complete", "pruned", "failed", "running"])
def test_a_repeated_proposal_does_not_count_whatever_became_of_the_arm(tmp_path: Path, known: str) -> None:
    arms = opened(tmp_path, arms=3)
    ask(arms)
    repeat = arms.ask()
    arms.tell(repeat.number, None if known == "running" else answer(0, status=known), same_as="arm0")
    assert arms.left() == 2
    assert arms.optuna.trials[repeat.number].user_attrs["same_as"] == "arm0"
    assert arms.optuna.trials[repeat.number].state != TrialState.RUNNING


def test_a_repeat_tells_the_sampler_what_is_known_of_the_arm(tmp_path: Path) -> None:
    arms = opened(tmp_path)
    repeat = arms.ask()
    arms.tell(repeat.number, answer(0, 66.0, epochs=3), same_as="arm0")
    trial = arms.optuna.trials[repeat.number]
    assert (trial.value, trial.intermediate_values) == (66.0, {1: 64.0, 2: 65.0, 3: 66.0})


def test_a_space_that_only_repeats_itself_is_exhausted(tmp_path: Path) -> None:
    space: Tree = {"student.alpha": {"choice": ["scalar", "vector"]}}
    arms = opened(tmp_path, arms=50, space=space, sampler="random")
    ask(arms)
    arms.repeats = MAX_REPEATS - 3
    for _ in range(3):
        assert arms.left() == 49
        arms.tell(arms.ask().number, answer(0), same_as="arm0")
    assert arms.left() == 0


def test_a_new_arm_starts_the_count_of_repeats_again(tmp_path: Path) -> None:
    arms = opened(tmp_path, arms=50, sampler="random")
    arms.repeats = MAX_REPEATS - 1
    ask(arms)
    arms.tell(arms.ask().number, answer(0), same_as="arm0")
    assert arms.left() == 49


# After a crash ----------------------------------------------------------------------------------


def test_a_trial_cut_off_is_told_from_its_record(tmp_path: Path) -> None:
    before = opened(tmp_path, arms=4)
    for _ in range(3):
        ask(before)
    before.note(0, 1, 49.0)
    after = opened(tmp_path, arms=4)
    records = {
        "arm0": answer(0, 50.0),
        "arm1": answer(1, 20.0, "pruned", epochs=1),
        "arm2": answer(2, status="failed", epochs=0),
    }
    assert after.reconcile(records) == 0
    assert states(after) == ["COMPLETE", "PRUNED", "FAIL"]
    assert after.optuna.trials[0].value == 50.0
    assert after.optuna.trials[0].intermediate_values == {1: 49.0, 2: 50.0}
    assert after.optuna.trials[1].intermediate_values == {1: 20.0}
    assert after.left() == 1


def test_a_trial_without_a_record_is_asked_again_exactly_once(tmp_path: Path) -> None:
    lost = ask(opened(tmp_path, arms=3))
    after = opened(tmp_path, arms=3)
    assert after.reconcile({}) == 1
    assert after.left() == 3
    again, other = ask(after), ask(after)
    assert again.overrides == lost.overrides
    assert other.overrides != lost.overrides
    assert after.optuna.trials[again.number].user_attrs["retry_of"] == lost.number
    assert states(after) == ["FAIL", "RUNNING", "RUNNING"]
    assert after.left() == 1


def test_an_arm_lost_twice_is_asked_a_third_time_and_once(tmp_path: Path) -> None:
    lost = ask(opened(tmp_path, arms=2))
    for _ in range(2):
        arms = opened(tmp_path, arms=2)
        assert arms.reconcile({}) == 1
        assert arms.left() == 2
        assert ask(arms).overrides == lost.overrides
    assert states(arms) == ["FAIL", "FAIL", "RUNNING"]


def test_reconciling_again_asks_once_and_says_what_still_waits(tmp_path: Path) -> None:
    """A process that was killed before it asked left the arm waiting: it is still trained first."""
    ask(opened(tmp_path))
    for _ in range(3):
        arms = opened(tmp_path)
        assert arms.reconcile({}) == 1
        assert states(arms) == ["FAIL", "WAITING"]


def test_a_kill_between_asking_again_and_giving_up_asks_once(tmp_path: Path) -> None:
    lost = ask(opened(tmp_path, arms=3))
    opened(tmp_path, arms=3).optuna.enqueue_trial(lost.overrides, user_attrs={"retry_of": lost.number})
    after = opened(tmp_path, arms=3)
    assert after.reconcile({}) == 1
    assert states(after) == ["FAIL", "WAITING"]
    assert ask(after).overrides == lost.overrides


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_kill_between_two_values_of_an_arm_changes_none_of_it(tmp_path: Path, sampler: str) -> None:
    """Two arms have ended, a third has one of its values; it and the arms after it are those of no kill."""
    asked: dict[str, list[Tree]] = {}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        arms = opened(tmp_path / name, sampler=sampler, startup_arms=2)
        for number in range(2):
            ask(arms)
            arms.tell(number, answer(number, 50.0 - number))
        if name == "killed":
            known = arms.known()
            search = arms.study.search
            arms.optuna.sampler = samplers.make_sampler(search, samplers.draw_seed(search, len(known)))
            trial, key = arms.optuna.ask(), search_space.order(search.space)[0]
            suggest(trial, key, search.space[key])
            arms = opened(tmp_path / name, sampler=sampler, startup_arms=2)
            assert arms.reconcile({f"arm{n}": answer(n, 50.0 - n) for n in range(2)}) == 1
        asked[name] = [ask(arms).overrides for _ in range(3)]
    assert asked["killed"] == asked["whole"]


def test_protection_survives_the_crash(tmp_path: Path) -> None:
    lost = ask(opened(tmp_path, first=FIRST))
    arms = opened(tmp_path, first=FIRST)
    arms.reconcile({})
    proposals = [ask(arms) for _ in range(3)]
    assert [one.protected for one in proposals] == [True, True, False]
    assert lost.overrides in [one.overrides for one in proposals[:2]]


def test_a_named_arm_survives_a_crash_right_after_it_was_taken(tmp_path: Path) -> None:
    """The journal then has the trial, but not one of its values."""
    before = opened(tmp_path, first=FIRST[:1])
    before._enqueue_next(before.known())
    before.optuna.ask()
    after = opened(tmp_path, first=FIRST[:1])
    assert after.reconcile({}) == 1
    again = ask(after)
    assert again.protected
    assert again.overrides["train.lr"] == 0.02
    assert again.overrides["student.ifalign"] is False


def test_a_crash_between_asking_and_assigning_loses_nothing(tmp_path: Path) -> None:
    lost = opened(tmp_path).ask()
    after = opened(tmp_path)
    assert after.reconcile({"arm0": answer(0)}) == 1
    assert ask(after).overrides == lost.overrides


def test_a_resumed_search_does_not_repeat_its_first_proposals(tmp_path: Path) -> None:
    seen: list[Tree] = []
    for _ in range(3):
        arms = opened(tmp_path, arms=12)
        for _ in range(3):
            proposal = ask(arms)
            seen.append(proposal.overrides)
            arms.tell(proposal.number, answer(proposal.number))
    assert all(one not in seen[:place] for place, one in enumerate(seen))


def test_two_studies_of_one_seed_ask_the_same(tmp_path: Path) -> None:
    asked = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        arms = opened(tmp_path / name, arms=8)
        asked.append([])
        for number in range(5):
            asked[-1].append(ask(arms).overrides)
            arms.tell(number, answer(number, 50.0 + number))
    assert asked[0] == asked[1]


# The journal itself -----------------------------------------------------------------------------


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    arms = opened(tmp_path)
    arms.tell(ask(arms).number, answer(0))
    journal = tmp_path / "optuna.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "worker_id": "half a li')
    again = opened(tmp_path)
    assert journal.read_bytes().startswith(whole)
    assert b"half a li" not in journal.read_bytes()
    again.tell(ask(again).number, answer(1))
    assert states(opened(tmp_path)) == ["COMPLETE", "COMPLETE"]


def test_a_line_torn_by_the_crash_itself_is_cut_off(tmp_path: Path) -> None:
    arms = opened(tmp_path)
    arms.tell(ask(arms).number, answer(0))
    journal = tmp_path / "optuna.journal"
    journal.write_bytes(journal.read_bytes()[:-7])
    again = opened(tmp_path)
    assert again.reconcile({"arm0": answer(0)}) == 0
    assert states(again) == ["COMPLETE"]


def test_a_lock_left_by_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    ask(opened(tmp_path))
    journal = tmp_path / "optuna.journal"
    Path(f"{journal}.lock").symlink_to(journal)
    (tmp_path / "optuna.journal.lock.rename").touch()
    arms = opened(tmp_path)
    ask(arms)
    assert states(arms) == ["RUNNING", "RUNNING"]
    assert [path.name for path in tmp_path.iterdir()] == ["optuna.journal"]


def test_an_empty_journal_is_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "optuna.journal").write_bytes(b"")
    assert opened(tmp_path).left() == 6


def test_optuna_and_its_dashboard_can_open_the_journal(tmp_path: Path) -> None:
    arms = opened(tmp_path, first=FIRST)
    for _ in range(3):
        proposal = ask(arms)
        arms.tell(proposal.number, answer(proposal.number, 40.0 + proposal.number))
    study = optuna.load_study(study_name="tiny", storage=open_journal(tmp_path / "optuna.journal"))
    assert [trial.value for trial in study.trials] == [40.0, 41.0, 42.0]
    assert study.direction.name == "MAXIMIZE"
    assert study.best_trial.params["loss.temperature"] > 0
