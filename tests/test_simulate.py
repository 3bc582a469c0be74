"""A simulated search against schedules that a hand can compute, and its rule against the real one."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from comkd_ray.config import Halving
from comkd_ray.simulate import Cluster, Group, Span, simulate, staying
from comkd_ray.train import threshold

NINE = Group(arms=9, epochs=9, arm_seconds=1.0, rungs=(1, 3), eta=3)
"""Nine arms that become three and one: 9 + 2 * 3 + 6 * 1 seconds."""


def plain(arms: float, epochs: int = 1, arm_seconds: float = 1.0, base_seconds: float = 0.0) -> Group:
    return Group(arms, epochs, arm_seconds, base_seconds)


# Schedules computed by hand -----------------------------------------------------------------------


def test_cohorts_follow_each_other_on_one_slot() -> None:
    """An epoch takes 1 + 2 * 2 = 5 s, a cohort 15 s; the first starts in 10 s, the second in 1 s."""
    cohort = [plain(2, epochs=3, arm_seconds=2.0, base_seconds=1.0)]
    found = simulate([cohort, cohort], Cluster(1, start_seconds=10.0, handover_seconds=1.0))
    assert found.spans == (Span(0, 0, 0.0, 25.0, 0.0), Span(1, 0, 25.0, 41.0, 0.0))
    assert (found.seconds, found.busy_seconds, found.utilisation, found.tail_seconds) == (
        41.0,
        41.0,
        1.0,
        0.0,
    )
    assert (found.arm_epochs, found.cohort_epochs, found.full_arms) == (12.0, 6.0, 4.0)


def test_a_free_slot_takes_the_next_of_the_line() -> None:
    """10, 4 and 4 seconds on two slots: the second runs two, and then waits for the first."""
    found = simulate([[plain(10)], [plain(4)], [plain(4)]], Cluster(2))
    assert [(s.cohort, s.slot, s.begin, s.end) for s in found.spans] == [
        (1, 1, 0, 4),
        (2, 1, 4, 8),
        (0, 0, 0, 10),
    ]
    assert (found.seconds, found.tail_seconds, found.utilisation) == (10.0, 2.0, 0.9)


def test_structures_of_a_cohort_train_one_after_the_other() -> None:
    found = simulate([[plain(2), plain(3, epochs=2)]], Cluster(1))
    assert (found.seconds, found.full_arms) == (2 + 2 * 3, 5.0)


def test_arms_leave_at_the_rungs() -> None:
    found = simulate([[NINE]], Cluster(1))
    assert (found.seconds, found.arm_epochs, found.full_arms) == (21.0, 21.0, 1.0)


def test_arms_of_other_cohorts_count_where_they_were_known_when_a_cohort_began() -> None:
    """Two arms, eta 3: ceil(2/3) of 2 stay; then ceil(4/3) of 4, half; then ceil(6/3) of 6, a third."""
    pair = [Group(arms=2, epochs=2, arm_seconds=1.0, rungs=(1,), eta=3)]
    one_by_one = simulate([pair] * 3, Cluster(1))
    assert [span.end - span.begin for span in one_by_one.spans] == pytest.approx([3, 3, 2 + 2 / 3])
    at_once = simulate([pair] * 3, Cluster(3))
    assert [span.end - span.begin for span in at_once.spans] == [3, 3, 3]


def test_structures_of_a_cohort_know_of_each_other() -> None:
    pair = Group(arms=2, epochs=2, arm_seconds=1.0, rungs=(1,), eta=3)
    assert simulate([[pair, pair, pair]], Cluster(1)).seconds == pytest.approx(3 + 3 + 2 + 2 / 3)


def test_protected_arms_stay_and_take_places_of_others() -> None:
    """Nine arms of which three never leave: of the other six, a third stays at each rung."""
    found = simulate([[replace(NINE, protected=3)]], Cluster(1))
    assert found.full_arms == pytest.approx(3 + 6 / 3 * 2 / 5)  # ceil(5 / 3) of 5 at the second rung
    assert simulate([[replace(NINE, protected=9)]], Cluster(1)).seconds == 81.0


def test_an_arm_that_leaves_or_ends_takes_its_last_look() -> None:
    """Six, two and one arms, half a second each, beside the 21 s that they train."""
    assert simulate([[replace(NINE, end_seconds=0.5)]], Cluster(1)).seconds == 21.0 + 4.5


# The rule --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "others", "eta"), [(2, 3, 2), (3, 3, 3), (5, 0, 2), (1, 4, 4), (4, 2, 1)])
def test_as_many_stay_as_of_arms_in_every_order(own: int, others: int, eta: int) -> None:
    """The mean of `train.threshold` over all orders of values, exactly."""
    count, stay = 0, 0
    for values in itertools.permutations(range(own + others)):
        enough = threshold(values[:own], values[own:], Halving(eta=eta, min_epochs=1) if eta > 1 else None)
        stay += sum(value >= enough for value in values[:own])
        count += 1
    assert staying(own, 0, own + others, eta) == pytest.approx(float(Fraction(stay, count)))


# Failures --------------------------------------------------------------------------------------


def test_a_cohort_that_dies_begins_again_with_the_arms_that_had_not_left() -> None:
    """Dies between its rungs; the three arms that are left need 3 * 3 + 6 s in the second try."""
    seed = next(s for s in range(1000) if 9 < draws(s)[0] < 15 and draws(s)[1] > 40)
    first = draws(seed)[0]
    found = simulate([[NINE]], Cluster(1, start_seconds=2.0, failures_per_hour=60.0, seed=seed))
    assert found.failures == 1
    assert found.seconds == pytest.approx(first + 2 + 3 * 3 + 6)
    assert (found.full_arms, found.lost) == (1.0, 0.0)


def draws(seed: int) -> list[float]:
    stream = random.Random(seed)
    return [stream.expovariate(1 / 60) for _ in range(2)]


def test_what_dies_once_too_often_is_lost() -> None:
    cluster = Cluster(1, failures_per_hour=3600e3, retries=1)
    found = simulate([[plain(2), plain(3)], [plain(1)]], cluster)
    assert (found.lost, found.full_arms, found.failures) == (6.0, 0.0, 4)


def test_failures_are_the_same_every_time() -> None:
    cluster = Cluster(4, failures_per_hour=30.0, retries=2, seed=3)
    first, second = (simulate([[NINE]] * 40, cluster) for _ in range(2))
    assert first == second
    assert first.failures > 0
    assert first != simulate([[NINE]] * 40, replace(cluster, seed=4))


# Degenerate and bad input ----------------------------------------------------------------------


def test_nothing_to_do_takes_no_time() -> None:
    found = simulate([], Cluster(3))
    assert (found.seconds, found.utilisation, found.tail_seconds, found.lost) == (0.0, 0.0, 0.0, 0.0)


def test_a_cohort_without_arms_takes_its_start_alone() -> None:
    assert simulate([[]], Cluster(1, start_seconds=5.0)).seconds == 5.0
    assert simulate([[plain(0, epochs=7)]], Cluster(1, start_seconds=5.0)).seconds == 5.0


def test_slots_without_a_cohort_are_idle_from_the_start() -> None:
    found = simulate([[plain(6)]], Cluster(3))
    assert (found.tail_seconds, found.utilisation) == (6.0, pytest.approx(1 / 3))


@pytest.mark.parametrize("wrong", [
    {"arms": -1}, {"epochs": 0}, {"arm_seconds": -1.0}, {"base_seconds": -1.0}, {"protected": 10},
    {"end_seconds": -1.0},
    {"rungs": (3, 1)}, {"rungs": (9,)}, {"rungs": (0,)}, {"eta": 0},
])  # fmt: skip
def test_a_group_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no group of arms|rungs"):
        replace(NINE, **wrong)


@pytest.mark.parametrize("wrong", [{"slots": 0}, {"start_seconds": -1.0}, {"retries": -1}])
def test_a_cluster_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"slots|no cluster"):
        Cluster(**({"slots": 1} | wrong))


# Frozen ----------------------------------------------------------------------------------------


def test_a_large_search_takes_what_it_took() -> None:
    """125 cohorts of 8 arms on 64 slots with failures; a change of the rules shows here."""
    group = Group(arms=8, epochs=20, arm_seconds=30.0, base_seconds=5.0, rungs=(2, 6, 18), eta=3)
    found = simulate([[group]] * 125, Cluster(64, 30.0, 30.0, failures_per_hour=0.5, seed=1))
    assert math.fsum(span.end - span.begin for span in found.spans) == pytest.approx(found.busy_seconds)
    assert (round(found.seconds, 1), found.failures) == (3086.1, 24)
