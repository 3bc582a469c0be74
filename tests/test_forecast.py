"""Wall time from counts and a pace: each stage against its own arithmetic, cohorts against the search's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import outer
import pytest
from click.testing import CliRunner

from comkd_ray import forecast as room
from comkd_ray.cli import main
from comkd_ray.config import Study
from comkd_ray.errors import UserError
from comkd_ray.forecast import (
    ACTOR_START,
    GROUP_START,
    HANDOVER,
    cohorts_of,
    counted_pace,
    expect,
    forecast,
    own_slots,
    teacher_seconds,
)
from comkd_ray.lineup import BANKED, PROMPTED, arms_of, kinds_of
from comkd_ray.plan import RATE, Plan, cost_of, make_plan
from comkd_ray.probe import Line, Pace
from comkd_ray.simulate import Cluster, simulate

MakeStudy = Callable[..., Study]
PACE = Pace(
    where="a test",
    import_seconds=5.0,
    list_seconds=0.25,
    load_teacher=0.5,
    load_student=0.25,
    decode=0.01,
    teacher_image=0.02,
    student_image=0.01,
    class_text=0.8,
    teacher_step=0.1,
    inputs=0.001,
    steps={PROMPTED: Line(0.01, 0.1), BANKED: Line(0.0, 0.001)},
    evaluations={PROMPTED: Line(0.002, 0.03), BANKED: Line(0.0, 0.0005)},
    seconds=20.0,
)
"""4 classes of 8 / 5 / 5 images, batches of 12: an epoch trains on 24 images and looks at 20."""


def planned(study: Study) -> tuple[Study, Plan]:
    return study, make_plan(study)


# Stages ----------------------------------------------------------------------------------------


def test_stages_follow_from_counts_and_pace(make_study: MakeStudy) -> None:
    study, plan = planned(make_study({"search.arms": 4, "search.arms_per_trial": 4, "compute.cpus": 1}))
    found = forecast(study, plan, PACE, 1)
    epoch = 24 * (0.01 + 4 * 0.1) + 20 * (0.002 + 4 * 0.03)
    tested = 20 * (0.002 + 4 * 0.03)  # once, when the arms end
    start = room.RAY_START + ACTOR_START + 2 * (5.0 + 0.25 + 0.5 + 0.25)  # driver, and one task that prepares
    assert found.stages["start"] == pytest.approx(start)
    assert found.stages["pixels"] == pytest.approx(72 * 0.01)
    assert found.stages["bank"] == pytest.approx(plan.teacher_images * 0.02 + 40 * 0.01)
    assert found.stages["search"] == pytest.approx(5.0 + 0.25 + 0.25 + ACTOR_START + 2 * epoch + tested)
    assert found.seconds == pytest.approx(sum(found.stages.values()))
    held = found.stages["teacher"] + found.stages["bank"] + found.stages["search"]
    assert (found.device_hours, found.kind) == (pytest.approx(held / 3600), "CPU")


def test_stage_one_is_its_steps_and_the_words_of_its_classes(make_study: MakeStudy) -> None:
    """4 epochs of 8 images in batches of 8; 2 base classes in all 80 templates, 2 + 3 * 4 texts once."""
    study, plan = planned(make_study())
    assert (plan.teacher_steps, plan.learned_classes) == (4, 2)
    assert teacher_seconds(study, plan, PACE) == pytest.approx(4 * 0.1 + (2 + 14 / 80) * 0.8)
    study, plan = planned(make_study({"teacher.epochs": 0}))
    assert teacher_seconds(study, plan, PACE) == pytest.approx((2 + 4 + 14 / 80) * 0.8)


def test_more_slots_shorten_the_search_and_hold_no_less(make_study: MakeStudy) -> None:
    over = {"search.arms": 12, "search.arms_per_trial": 2}
    one, three = (forecast(*planned(make_study(over)), PACE, slots) for slots in (1, 3))
    later = 2 * (ACTOR_START + 5.5 - HANDOVER)
    assert 3 * three.stages["search"] == pytest.approx(one.stages["search"] + later - 0.0)
    assert three.device_hours > one.device_hours


def test_a_worker_group_starts_anew_for_every_cohort_and_shares_its_arms(make_study: MakeStudy) -> None:
    over = {"search.arms": 4, "search.arms_per_trial": 2}
    alone = forecast(*planned(make_study(over)), PACE, 1).search
    group = forecast(*planned(make_study(over | {"compute.workers": 2})), PACE, 1).search
    shared = 2 * 2 * (2 * (24 * 0.1 + 20 * 0.03) + 20 * 0.03) / 2  # of 2 x 2 arms, half in each process
    starts = 2 * GROUP_START - ACTOR_START + 5.5 - HANDOVER
    assert group.seconds == pytest.approx(alone.seconds - shared + starts)


def test_a_published_selection_looks_at_test_images_after_every_epoch(make_study: MakeStudy) -> None:
    over = {"search.arms_per_trial": 1}
    strict = forecast(*planned(make_study(over)), PACE, 1).search.seconds
    habit = forecast(*planned(make_study(over | {"selection": "promptkd"})), PACE, 1).search.seconds
    assert habit - strict == pytest.approx((2 - 1) * 20 * 0.032)


def test_streamed_images_are_decoded_at_every_use(make_study: MakeStudy) -> None:
    """One arm: 2 epochs of 24 and 20 images, 20 test images, and once those of all views of the bank."""
    stored, streamed = (
        forecast(*planned(make_study({"data.pixels": pixels, "search.arms_per_trial": 1})), PACE, 1)
        for pixels in ("store", "stream")
    )
    assert streamed.search.seconds - stored.search.seconds == pytest.approx((2 * 44 + 20) * 0.01)
    assert streamed.stages["bank"] - stored.stages["bank"] == pytest.approx(32 * 0.01)


def test_no_slots_are_refused(make_study: MakeStudy) -> None:
    with pytest.raises(UserError, match="--slots 0"):
        forecast(*planned(make_study()), PACE, 0)


# Arms and cohorts ------------------------------------------------------------------------------


def test_arms_come_as_the_search_asks_for_them(make_study: MakeStudy) -> None:
    first = [{"loss.temperature": 2.0}, {"loss.temperature": 3.0}]
    study = make_study({"search.arms": 5, "search.first": first})
    arms = list(arms_of(study, 5))
    assert [arm.study.loss.temperature for arm in arms[:2]] == [2.0, 3.0]
    assert [arm.protected for arm in arms] == [True, True, False, False, False]
    assert len({arm.study.loss.temperature for arm in arms}) == 5
    assert [a.study for a in arms_of(study, 5)] == [a.study for a in arms]
    assert len(list(arms_of(make_study({"search.arms": 1, "search.first": first}), 9))) == 1


def test_cells_that_differ_in_nothing_are_one_arm(make_study: MakeStudy) -> None:
    space = {
        "student.edu_attention": {"choice": [False, True]},
        "student.attention_scale": {"choice": [1.0, 2.0]},
    }
    study, plan = planned(make_study({"search": {"sampler": "grid", "space": space}}))
    assert len(list(arms_of(study, 100))) == plan.arms == 3


def test_a_cohort_is_cut_into_structures_and_each_has_its_kind(make_study: MakeStudy) -> None:
    space = {"student.prompt_length": {"choice": [0, 2]}, "train.seed": {"choice": [1, 2, 3]}}
    study, plan = planned(make_study({"search": {"sampler": "grid", "arms_per_trial": 6, "space": space}}))
    ((banked, prompted),) = cohorts_of(list(arms_of(study, 99)), study, plan, PACE)
    assert (banked.arms, banked.arm_seconds) == (3, pytest.approx(24 * 0.001 + 20 * 0.0005))
    assert (banked.base_seconds, prompted.arms) == (0.0, 3)
    assert prompted.base_seconds == pytest.approx(24 * (0.01 + 2 * 0.001) + 30 * 0.002)  # two more seeds


def test_halving_reaches_the_simulation(make_study: MakeStudy) -> None:
    over = {"search.arms": 8, "train.epochs": 9, "search.halving": {"eta": 3, "min_epochs": 1}}
    study, plan = planned(make_study(over))
    ((group,),) = cohorts_of(list(arms_of(study, 99)), study, plan, PACE)
    assert (group.rungs, group.eta, group.epochs) == ((1, 3), 3, 9)
    assert forecast(study, plan, PACE, 1).search.full_arms < 2


def test_a_search_that_prefers_prompts_takes_longer(make_study: MakeStudy) -> None:
    """Named arms stay as they are; random draws have no taste; a grid knows its arms."""
    grid = {"student.prompt_length": {"choice": [0, 2]}}
    space = grid | {"loss.temperature": {"float": [0.5, 2.0]}}
    search = {"arms": 20, "first": [{"student.prompt_length": 0}], "space": space}
    study, plan = planned(make_study({"search": search}))
    prompted = list(arms_of(make_study({"search.arms": 19}), 19))
    found = forecast(study, plan, PACE, 1)
    as_if = simulate(
        list(cohorts_of([*arms_of(study, 1), *prompted], study, plan, PACE)), Cluster(1, 6.5, HANDOVER)
    )
    assert found.search.seconds + found.longer == pytest.approx(as_if.seconds)
    assert found.longer > 0
    for sampler in ({"sampler": "random"}, {"sampler": "grid", "first": [], "space": grid}):
        assert forecast(*planned(make_study({"search": search | sampler})), PACE, 1).longer == 0


def test_the_commonest_shape_stands_for_its_kind(make_study: MakeStudy) -> None:
    first = [{"student.prompt_length": n} for n in (0, 1, 2, 2, 0)]
    study = make_study(
        {"search": {"sampler": "list", "first": first, "space": {"train.seed": {"choice": [1]}}}}
    )
    kinds = kinds_of(study, True)
    assert {kind: arm.student.prompt_length for kind, arm in kinds.items()} == {BANKED: 0, PROMPTED: 1}
    assert list(kinds_of(study, False)) == [BANKED]


def test_cohorts_that_memory_will_size_count_as_eight(make_study: MakeStudy) -> None:
    study, plan = planned(make_study({"search.arms": 20, "search.arms_per_trial": "auto"}))
    cohorts = cohorts_of(list(arms_of(study, 20)), study, plan, PACE)
    assert [sum(group.arms for group in cohort) for cohort in cohorts] == [8, 8, 4]


# Counted ---------------------------------------------------------------------------------------


def test_a_counted_search_takes_the_operations_of_the_plan(make_study: MakeStudy) -> None:
    study, plan = planned(make_study({"search.arms": 3}))
    found = forecast(study, plan, counted_pace(study), 1)
    tower = cost_of(study.student).flops
    once = plan.student_images * tower
    starts = found.search.seconds - (plan.student_flops - once) / RATE
    assert starts == pytest.approx(10 + 5 + 2 + ACTOR_START)
    bank = plan.teacher_images * cost_of(study.teacher).flops + once
    assert found.stages["bank"] == pytest.approx(bank / RATE)
    assert found.stages["teacher"] == pytest.approx(8 * 4 * cost_of(study.teacher).flops * 3 / RATE)


# This machine ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("over", "cores", "gpus", "slots"), [
    ({"compute.cpus": 2}, 7, 0, 3), ({"compute.cpus": 0.5}, 1, 0, 2),
    ({"compute.cpus": 1, "compute.gpus": 0.5}, 8, 2, 4), ({"compute.cpus": 4, "compute.gpus": 1}, 8, 8, 2),
    ({"compute.cpus": 1, "compute.workers": 3}, 8, 0, 2),
])  # fmt: skip
def test_slots_are_those_that_ray_would_find(
    make_study: MakeStudy, over: dict[str, Any], cores: int, gpus: int, slots: int
) -> None:
    assert own_slots(make_study(over), cores, gpus) == slots


def test_a_machine_that_can_run_no_cohort_is_named(make_study: MakeStudy) -> None:
    with pytest.raises(UserError, match=r"4 cores and 0 GPUs here run no cohort; --slots"):
        own_slots(make_study({"compute.gpus": 1}), 4, 0)


def test_a_probe_where_no_gpu_is_says_what_to_do(make_study: MakeStudy, cpu: None) -> None:
    study = make_study({"compute.gpus": 1})
    with pytest.raises(UserError, match=r"no GPU to probe.*--slots without --probe"):
        expect(study, make_study() and make_plan(study), True, 8)


# The command line ------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return outer.write_yaml(tmp_path / "tiny.yaml", outer.tree(outer.world(tmp_path / "world")))


def ask(*words: str) -> Any:
    return CliRunner().invoke(main, ["tune", *words])


def test_slots_are_simulated_and_nothing_is_written(tiny: Path) -> None:
    before = sorted(tiny.parent.rglob("*"))
    told = json.loads(ask(str(tiny), "--dry-run", "--slots", "3", "--json").stdout)["forecast"]
    assert (told["slots"], told["kind"], told["search"]["full_arms"]) == (3, "CPU", 4.0)
    assert told["seconds"] == pytest.approx(sum(told["stages"].values()))
    plain = ask(str(tiny), "--dry-run", "--slots", "1").stdout
    assert "on 1 slot, nothing cached (counted at 100 TFLOP/s)" in plain
    assert "device-hours" in plain
    assert sorted(tiny.parent.rglob("*")) == before


def test_a_probe_tells_what_it_measured(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "probe", lambda *_: replace(PACE, random_towers=("ViT-B-16",), others=0.3))
    plain = ask(str(tiny), "--dry-run", "--probe", "--slots", "1").stdout
    assert "(probe of 20 s: a test)" in plain
    assert "random weights" in plain
    assert "other processes took 30% of this machine" in plain


@pytest.mark.parametrize("words", [["--probe"], ["--slots", "2"]])
def test_without_dry_run_there_is_nothing_to_expect(tiny: Path, words: list[str]) -> None:
    done = ask(str(tiny), *words)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "belong to --dry-run" in done.stderr


def test_no_slots_at_all_are_refused(tiny: Path) -> None:
    done = ask(str(tiny), "--dry-run", "--slots", "0")
    assert (done.exit_code, "0 is not in the range" in done.stderr) == (2, True)
