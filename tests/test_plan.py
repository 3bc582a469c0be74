"""What a study would take: counted, never started."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import outer
import pytest
from click.testing import CliRunner

from comkd_ray.cli import main
from comkd_ray.config import Study, Tower
from comkd_ray.errors import UserError
from comkd_ray.plan import RATE, cost_of, make_plan

MakeStudy = Callable[..., Study]


def test_images_steps_and_bytes_follow_from_the_study(make_study: MakeStudy) -> None:
    """4 classes of 8 / 5 / 5 images; teacher width 24; two views; the student's tower is prompted."""
    plan = make_plan(make_study({"search.arms": 7}))
    assert plan.images == {"train": 32, "val": 20, "test": 20}
    assert (plan.arms, plan.epochs, plan.steps, plan.views) == (7, 2, 2 * (32 // 12), 2)
    assert plan.bank_bytes == 2 * ((2 * 32 + 40) * 24 + 40 * 16)
    assert plan.pixel_bytes == 72 * 3 * 40 * 40
    assert plan.gpu_hours == (plan.teacher_flops + plan.student_flops) / RATE / 3600
    assert dict(plan.explained)["teacher learns from"].startswith("8 ")


def test_students_cost_as_many_times_more_as_there_are_arms(make_study: MakeStudy) -> None:
    few, many = (make_plan(make_study({"search.arms": arms})) for arms in (1, 11))
    once = few.student_flops - (many.student_flops - few.student_flops) / 10
    assert once == pytest.approx(40 * cost_of(make_study().student).flops)  # its zero-shot, banked


@pytest.mark.parametrize(("name", "width", "gflop"), [("ViT-B-16", 512, 35.1), ("ViT-L-14", 768, 162.0)])
def test_the_papers_towers_are_counted_without_their_weights(name: str, width: int, gflop: float) -> None:
    """A multiplication and an addition are two operations: B/16 has 17.5 GMAC, L/14 81 (PAPER 2.2)."""
    cost = cost_of(Tower(model=name, pretrained="openai"))
    assert (cost.width, round(cost.flops / 1e9, 1)) == (width, gflop)


def test_a_configuration_that_cannot_run_is_found(make_study: MakeStudy) -> None:
    space = {"train.batch_size": {"choice": [8, 33]}}
    with pytest.raises(UserError, match=r"train.batch_size: 33, but 32 training images"):
        make_plan(make_study({"search.space": space}))


def test_a_list_has_its_arms_in_every_cell_and_each_is_checked(make_study: MakeStudy) -> None:
    def listed(*first: dict[str, Any]) -> Study:
        space = {"train.seed": {"choice": [1, 2, 3]}}
        return make_study({"search": {"sampler": "list", "first": list(first), "space": space}})

    assert make_plan(listed({}, {"student.alpha": "vector"})).arms == 6
    with pytest.raises(UserError, match=r"train.batch_size: 33, but 32 training images"):
        make_plan(listed({}, {"train.batch_size": 33}))


def test_nothing_is_written_and_json_is_one_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = outer.world(tmp_path / "world")
    tree: dict[str, Any] = outer.tree(world)
    file = outer.write_yaml(tmp_path / "tiny.yaml", tree)
    monkeypatch.setenv("COMKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    answer = CliRunner().invoke(main, ["tune", str(file), "--dry-run", "--json"], catch_exceptions=False)
    assert json.loads(answer.stdout)["arms"] == 4
    plain = CliRunner().invoke(main, ["tune", str(file), "--dry-run"], catch_exceptions=False)
    assert "student trains on" in plain.stdout
    assert sorted(tmp_path.rglob("*")) == before
