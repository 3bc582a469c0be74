"""Every sampler on a space with conditions: inside it, never twice, start points that spread and go on."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import outer
import pytest
from optuna.trial import TrialState
from scipy.stats import qmc

from comkd_ray import samplers, search_space
from comkd_ray.config import Search
from comkd_ray.optuna_search import OptunaArms, Proposal
from comkd_ray.search_space import Dimension, Overrides

Tree = dict[str, Any]
ASKED = ("tpe", "random", "gp", "qmc", "nsga2")
BOTH = ["objective", "trainable_parameters"]


@pytest.fixture(autouse=True)
def _warnings_of_optuna_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def opened(folder: Path, sampler: str, arms: int = 12, **search: Any) -> OptunaArms:
    study = outer.study(folder, outer.tpe(arms, sampler=sampler, startup_arms=4, **search))
    return OptunaArms(study, folder / "optuna.journal")


def cohort(arms: OptunaArms, size: int = 3) -> list[Proposal]:
    """Ask a cohort at once."""
    asked = [arms.ask() for _ in range(size)]
    for one in asked:
        arms.assign(one.number, f"arm{one.number}")
    return asked


def value(drawn: Overrides) -> float:
    """Best at temperature 1 with EduAttention."""
    return (
        60 - 10 * abs(math.log(float(drawn["loss.temperature"]))) + 5 * bool(drawn["student.edu_attention"])
    )


def answer(proposal: Proposal) -> Tree:
    row = {"trainable_parameters": 1000 + proposal.number}
    return outer.record(f"arm{proposal.number}", value(proposal.overrides), **row)


def searched(arms: OptunaArms) -> list[Overrides]:
    """Run a search to its end, a cohort at once."""
    seen = []
    while arms.left():
        for one in cohort(arms, min(3, arms.left())):
            seen.append(one.overrides)
            arms.tell(one.number, answer(one))
    return seen


# Every sampler ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ASKED)
def test_a_search_stays_inside_its_space_and_asks_nothing_twice(tmp_path: Path, sampler: str) -> None:
    arms = opened(tmp_path, sampler)
    seen, space = searched(arms), arms.study.search.space
    assert len(seen) == 12
    assert all(space[key].holds(found) for one in seen for key, found in one.items())
    assert all(("student.attention_scale" in one) == one["student.edu_attention"] for one in seen)
    assert all(one != other for one, other in itertools.combinations(seen, 2))
    assert {trial.state for trial in arms.known()} == {TrialState.COMPLETE}


@pytest.mark.parametrize("sampler", ASKED)
def test_a_cohort_asked_at_once_has_different_arms(tmp_path: Path, sampler: str) -> None:
    """After the start, too: the model does not put a whole cohort on one point."""
    arms = opened(tmp_path, sampler, arms=40)
    for _ in range(2):
        for one in cohort(arms, 4):
            arms.tell(one.number, answer(one))
    asked = [one.overrides for one in cohort(arms, 6)]
    assert all(one != other for one, other in itertools.combinations(asked, 2))


@pytest.mark.parametrize("sampler", ASKED)
def test_a_resumed_search_repeats_nothing(tmp_path: Path, sampler: str) -> None:
    seen: list[Overrides] = []
    for _ in range(4):
        arms = opened(tmp_path, sampler)
        for one in cohort(arms, 3):
            seen.append(one.overrides)
            arms.tell(one.number, answer(one))
    assert all(one != other for one, other in itertools.combinations(seen, 2))
    assert opened(tmp_path, sampler).left() == 0


@pytest.mark.parametrize("sampler", ASKED)
@pytest.mark.parametrize("found", [math.nan, math.inf, None])
def test_a_value_that_is_no_number_is_a_failure(tmp_path: Path, sampler: str, found: float | None) -> None:
    arms = opened(tmp_path, sampler)
    for one in cohort(arms, 6):
        record = answer(one)
        record["arm"]["objective"] = found
        arms.tell(one.number, record)
    assert {trial.state for trial in arms.known()} == {TrialState.FAIL}
    assert arms.left() == 6
    assert len(searched(arms)) == 6


@pytest.mark.parametrize("sampler", ASKED)
def test_arms_that_left_early_or_failed_do_not_stop_a_search(tmp_path: Path, sampler: str) -> None:
    arms, status = opened(tmp_path, sampler), itertools.cycle(["complete", "pruned", "failed"])
    while arms.left():
        one = cohort(arms, 1)[0]
        arms.note(one.number, 1, 40.0)
        arms.tell(one.number, outer.record(f"arm{one.number}", value(one.overrides), next(status), 1))
    states = [trial.state.name for trial in arms.known()]
    assert states == ["COMPLETE", "PRUNED", "FAIL"] * 4


@pytest.mark.parametrize("sampler", ASKED)
def test_a_crash_loses_no_arm_of_any_sampler(tmp_path: Path, sampler: str) -> None:
    before = opened(tmp_path, sampler)
    asked = cohort(before, 5)
    for one in asked[:2]:
        before.tell(one.number, answer(one))
    after = opened(tmp_path, sampler)
    assert after.reconcile({f"arm{one.number}": answer(one) for one in asked[:3]}) == 2
    assert [one.overrides for one in cohort(after, 2)] == [one.overrides for one in asked[3:]]
    assert after.left() == 12 - 5


FLAT: Tree = {
    "loss.temperature": {"float": [0.5, 40.0], "log": True},
    "student.edu_attention": {"choice": [False, True]},
}


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_model_comes_close_to_the_best(tmp_path: Path, sampler: str) -> None:
    values = [value(one) for one in searched(opened(tmp_path, sampler, arms=30, space=FLAT))]
    assert max(values) > max(64, *values[:4])  # of at most 65


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_later_arms_are_better_on_average(tmp_path: Path, sampler: str) -> None:
    values = [value(one) for one in searched(opened(tmp_path, sampler, arms=36, space=FLAT))]
    assert sum(values[-12:]) > sum(values[:12])


# Start points -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "starts"), [("tpe", 4), ("gp", 4), ("nsga2", 4), ("qmc", 12), ("random", 0)]
)
def test_a_search_begins_with_sobol_points_where_it_would_draw_at_random(
    tmp_path: Path, sampler: str, starts: int
) -> None:
    arms = opened(tmp_path, sampler)
    for _ in range(12):
        one = cohort(arms, 1)[0]
        arms.tell(one.number, answer(one))
    numbers = [trial.user_attrs["start"] for trial in arms.known() if "start" in trial.user_attrs]
    assert numbers == list(range(starts))


def test_arms_that_failed_are_made_up_for_by_further_start_points(tmp_path: Path) -> None:
    arms = opened(tmp_path, "tpe")
    for status in ["failed"] * 3 + ["complete"] * 6:
        one = cohort(arms, 1)[0]
        arms.tell(one.number, outer.record(f"arm{one.number}", 50.0, status))
    assert sum("start" in trial.user_attrs for trial in arms.known()) == 3 + 4


def test_named_arms_come_before_start_points_and_count_as_a_start(tmp_path: Path) -> None:
    first: list[Tree] = [{"student.ifalign": False}, {"student.ifalign": True}]
    study = outer.study(tmp_path, outer.tpe(8, first, startup_arms=4))
    arms = OptunaArms(study, None)
    for _ in range(6):
        one = arms.ask()
        arms.tell(one.number, outer.record("arm", value(one.overrides)))
    kinds = [next((k for k in ("first", "start") if k in t.user_attrs), "tpe") for t in arms.known()]
    assert kinds == ["first"] * 2 + ["start"] * 2 + ["tpe"] * 2


def space_of(**keys: Tree) -> dict[str, Dimension]:
    return {key: Dimension.model_validate(fields, strict=False) for key, fields in keys.items()}


def test_start_points_are_the_scrambled_sobol_sequence_mapped_through_the_space() -> None:
    space = space_of(
        a={"choice": ["x", "y"]},
        b={"float": (1.0, 100.0), "log": True, "when": {"a": "y"}},
        c={"int": (0, 9)},
    )
    search = Search(sampler="tpe", arms=16, seed=3, space=space)
    sequence = qmc.Sobol(3, scramble=True, rng=3).random(16)
    for index, (a, c, b) in enumerate(sequence):  # a key comes after those it hangs on
        expected: Overrides = {"a": "xy"[int(2 * a)], "c": int(10 * c)}
        if expected["a"] == "y":
            expected["b"] = pytest.approx(10 ** (2 * b))
        assert samplers.start_point(search, index) == expected


def test_sixteen_start_points_halve_every_range_and_every_pair_of_ranges_evenly() -> None:
    """What random draws do not do: each half of each key gets eight, each quarter of each pair four."""
    space = space_of(**{f"k{n}": {"float": (0.0, 1.0)} for n in range(4)})
    search = Search(sampler="qmc", arms=16, space=space)
    points = [samplers.start_point(search, index) for index in range(16)]
    for key in space:
        assert sum(float(point[key]) < 0.5 for point in points) == 8
    quarters = [(float(p["k0"]) < 0.5, float(p["k1"]) < 0.5) for p in points]
    assert {quarters.count(one) for one in quarters} == {4}


def test_a_search_with_the_next_seed_draws_no_arm_of_this_one(tmp_path: Path) -> None:
    """Seeds that are counted on draw by draw would give the next search all arms but the first."""
    drawn = []
    for seed in (3, 4):
        (tmp_path / str(seed)).mkdir()
        drawn.append([one.overrides for one in cohort(opened(tmp_path / str(seed), "random", seed=seed), 8)])
    assert not [one for one in drawn[0] if one in drawn[1]]


def test_another_seed_has_other_start_points() -> None:
    space = space_of(a={"float": (0.0, 1.0)})
    found = {samplers.start_point(Search(arms=4, seed=seed, space=space), 0)["a"] for seed in range(5)}
    assert len(found) == 5


# Several objectives -------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ASKED)
def test_two_objectives_are_told_in_their_own_directions(tmp_path: Path, sampler: str) -> None:
    arms = opened(tmp_path, sampler, objectives=BOTH)
    arms.note(cohort(arms, 1)[0].number, 1, 40.0)  # Optuna takes no intermediate values here
    arms.tell(0, answer(Proposal(0, {"loss.temperature": 1.0, "student.edu_attention": True})))
    assert [one.name for one in arms.optuna.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert arms.known()[0].values == [65.0, 1000.0]
    assert len(searched(arms)) == 11


def test_an_arm_without_its_second_value_is_a_failure(tmp_path: Path) -> None:
    arms = opened(tmp_path, "nsga2", objectives=BOTH)
    arms.tell(cohort(arms, 1)[0].number, outer.record("arm0", 50.0))
    assert arms.known()[0].state == TrialState.FAIL


def test_two_objectives_survive_a_crash(tmp_path: Path) -> None:
    asked = cohort(opened(tmp_path, "nsga2", objectives=BOTH), 3)
    after = opened(tmp_path, "nsga2", objectives=BOTH)
    assert after.reconcile({"arm1": answer(asked[1])}) == 2
    assert after.known()[1].values == [value(asked[1].overrides), 1001.0]


@pytest.mark.parametrize(
    ("one", "count"),
    [
        (Dimension(choice=("a", "b", "c")), 3),
        (Dimension(int=(2, 9)), 8),
        (Dimension(int=(0, 6), step=3.0), 3),
        (Dimension(float=(0.0, 1.0), step=0.25), 5),
    ],
)
def test_points_of_the_unit_interval_reach_every_value_evenly(one: Dimension, count: int) -> None:
    found = [one.at((n + 0.5) / 240) for n in range(240)]
    assert {found.count(each) for each in found} == {240 // count}
    assert tuple(dict.fromkeys(found)) == one.values()


def test_a_logarithmic_integer_reaches_both_ends_and_is_even_by_logarithm() -> None:
    one = Dimension(int=(1, 64), log=True)
    found = [one.at(n / 1000) for n in range(1000)]
    assert (found[0], found[-1]) == (1, 64)
    assert all(isinstance(each, int) and one.holds(each) for each in found)
    assert found.count(1) > found.count(2) > found.count(10) > 0
    assert search_space.count({"a": one}) is None
