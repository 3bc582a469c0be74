"""What a study would take: counted, never started."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniatures
import outer
import pytest
from click.testing import CliRunner

from comkd_ray.cli import main
from comkd_ray.config import Study, Tower
from comkd_ray.data.datasets import ROWS
from comkd_ray.errors import UserError
from comkd_ray.plan import RATE, cost_of, make_plan, reach_of
from comkd_ray.protocols import PROTOCOLS, is_transductive

MakeStudy = Callable[..., Study]


def test_images_steps_and_bytes_follow_from_the_study(make_study: MakeStudy) -> None:
    """4 classes of 8 / 5 / 5 images; teacher width 24; two views; the student's tower is prompted."""
    plan = make_plan(make_study({"search.arms": 7}))
    assert plan.images == {"train": 32, "val": 20, "test": 20}
    assert (plan.arms, plan.epochs, plan.steps, plan.views) == (7, 2, 2 * (32 // 12), 2)
    assert plan.bank_bytes == 2 * ((2 * 32 + 40) * 24 + 40 * 16)
    assert plan.pixel_bytes == 72 * 3 * 40 * 40
    assert plan.arms_per_trial == 8
    assert plan.gpu_hours == (plan.teacher_flops + plan.student_flops) / RATE / 3600
    assert dict(plan.explained)["teacher learns from"].startswith("8 ")


def test_pixels_that_do_not_fit_are_streamed_and_it_is_said(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COMKD_CACHE", str(tmp_path / "none"))
    words = [dict(make_plan(make_study()).lines())["pixels"]]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100_000, 99_000, 1_000))
    plan = make_plan(make_study())
    words.append(dict(plan.lines())["pixels"])
    assert words == [
        "data: stored, 346 kB; a store takes less than 50% of the free disk and of the memory",
        "data: decoded from files at every use; a store would take more than 50% of the free disk (346 kB)",
    ]
    assert plan.pixel_bytes == 0
    assert json.loads(plan.as_json())["pixels"] == words[1:]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("value", "words"), [
    (5, "5"), ("auto", "as many as 80% of the memory holds, on a CPU at most 8; probed before the search"),
])  # fmt: skip
def test_the_size_of_cohorts_is_said(make_study: MakeStudy, value: int | str, words: str) -> None:
    plan = make_plan(make_study({"search.arms_per_trial": value}))
    assert dict(plan.lines())["arms in a cohort"] == words
    assert json.loads(plan.as_json())["arms_per_trial"] == value


def test_work_is_counted_by_what_is_done_with_an_image(make_study: MakeStudy) -> None:
    """The teacher: two views and the evaluated, zero-shot too; `keep: best` watches 10 images in 4 epochs."""
    plan = make_plan(make_study())
    assert (plan.teacher_images, plan.teacher_trained) == (2 * 32 + 40 + 40 + 4 * 10, 4 * 8)
    assert (plan.teacher_steps, plan.student_images, plan.stored, plan.learned_classes) == (4, 40, 72, 2)
    spoken = plan.teacher_images + 3 * plan.teacher_trained
    assert plan.teacher_flops == spoken * cost_of(make_study().teacher).flops


def test_an_arm_without_prompts_banks_its_tower_and_costs_nothing_more(make_study: MakeStudy) -> None:
    """Searched or not: then the student says all views, too, and half of the arms run no tower."""
    always = make_plan(make_study())
    space = {"student.prompt_length": {"choice": [0, 2]}, "train.seed": {"choice": [1, 2]}}
    some = make_plan(make_study({"search": {"sampler": "grid", "space": space}}))
    assert some.student_images == 2 * 32 + 40
    assert some.bank_bytes - always.bank_bytes == 2 * 2 * 32 * 16
    never = make_plan(make_study({"student.prompt_length": 0, "search.arms": 50}))
    assert never.student_flops == (2 * 32 + 40) * cost_of(make_study().student).flops


def test_students_cost_as_many_times_more_as_there_are_arms(make_study: MakeStudy) -> None:
    few, many = (make_plan(make_study({"search.arms": arms})) for arms in (1, 11))
    once = few.student_flops - (many.student_flops - few.student_flops) / 10
    assert once == pytest.approx(40 * cost_of(make_study().student).flops)  # its zero-shot, banked


def test_a_tower_of_another_size_is_counted_at_it_or_refused() -> None:
    """open_clip makes positions for any size of its own models; those of a folder are what they are."""
    small, large = (cost_of(Tower(model="ViT-B-16", image_size=size)) for size in (128, 224))
    assert 2.5 < large.flops / small.flops < 4
    with pytest.raises(UserError, match=r"image_size: this ViT was made for 64 pixels, not 100"):
        cost_of(Tower(model="assets:mini_student", image_size=100))


@pytest.mark.parametrize(("name", "width", "gflop"), [("ViT-B-16", 512, 35.1), ("ViT-L-14", 768, 162.0)])
def test_the_papers_towers_are_counted_without_their_weights(name: str, width: int, gflop: float) -> None:
    """A multiplication and an addition are two operations: B/16 has 17.5 GMAC, L/14 81 (PAPER 2.2)."""
    cost = cost_of(Tower(model=name, pretrained="openai"))
    assert (cost.width, round(cost.flops / 1e9, 1)) == (width, gflop)


def test_a_configuration_that_cannot_run_is_found(make_study: MakeStudy) -> None:
    space = {"train.batch_size": {"choice": [8, 33]}}
    with pytest.raises(UserError, match=r"32 training images, fewer than train.batch_size: 33"):
        make_plan(make_study({"search.space": space}))


def test_length_and_depth_of_prompts_come_together_in_any_way(make_study: MakeStudy) -> None:
    """Neither of the two alone is too deep for a tower of three layers."""
    space = {"student.prompt_length": {"choice": [0, 2]}, "student.prompt_depth": {"choice": [2, 4]}}
    with pytest.raises(UserError, match=r"student\.prompt_depth: .* has 3 layers, not 4"):
        make_plan(make_study({"student.prompt_length": 0, "search.space": space}))
    depth = {"student.prompt_depth": {"choice": [2, 4]}}
    make_plan(make_study({"student.prompt_length": 0, "search.space": depth}))  # nothing is prompted


def test_a_list_has_its_arms_in_every_cell_and_each_is_checked(make_study: MakeStudy) -> None:
    def listed(*first: dict[str, Any]) -> Study:
        space = {"train.seed": {"choice": [1, 2, 3]}}
        return make_study({"search": {"sampler": "list", "first": list(first), "space": space}})

    assert make_plan(listed({}, {"student.alpha": "vector"})).arms == 6
    with pytest.raises(UserError, match=r"32 training images, fewer than train.batch_size: 33"):
        make_plan(listed({}, {"train.batch_size": 33}))


GRID: dict[str, Any] = {
    "student.ifalign": {"choice": [False, True]},
    "student.edu_attention": {"choice": [False, True]},
}


@pytest.mark.parametrize(("seeds", "words"), [
    (3, "3 seeds, 3 claims: smallest p 0.25, 0.75 after Holm; nothing can be decided, 7 seeds could"),
    (8, "8 seeds, 3 claims: smallest p 0.0078, 0.023 after Holm; effects from 1.5 sd are found in 80% of "
        "cases"),
])  # fmt: skip
def test_a_grid_with_seeds_says_what_it_can_find(make_study: MakeStudy, seeds: int, words: str) -> None:
    space = {**GRID, "train.seed": {"choice": list(range(seeds))}}
    plan = make_plan(make_study({"search": {"sampler": "grid", "space": space}}))
    assert dict(plan.lines())["can find"] == words
    told = json.loads(plan.as_json())["can_find"]
    assert (told["seeds"], told["claims"], told["fewest_seeds"]) == (seeds, 3, 7)
    assert (told["detectable"] is None) == (seeds == 3)


def test_claims_are_the_settings_but_the_first_and_seeds_those_of_both(make_study: MakeStudy) -> None:
    """Of a list, too, where an arm may name its own seed."""
    space = {"train.seed": {"choice": list(range(8))}}
    first: list[dict[str, Any]] = [{}, {"student.alpha": "vector"}, {"student.ifalign": False}]
    crossed = reach_of(make_study({"search": {"sampler": "list", "first": first, "space": space}}))
    assert crossed is not None
    assert (crossed.seeds, crossed.claims) == (8, 2)
    own = [
        {"train.seed": s, "student.ifalign": on} for on, s in ((True, 1), (True, 2), (False, 2), (False, 3))
    ]
    named = reach_of(make_study({"search": {"sampler": "list", "first": own, "space": {}}}))
    assert named is not None
    assert (named.seeds, named.claims) == (1, 1)
    scale = {"student.attention_scale": {"choice": [0.1, 1.0]}, "train.seed": {"choice": list(range(8))}}
    twice = reach_of(make_study({"search": {"sampler": "grid", "space": {**GRID, **scale}}}))
    assert twice is not None
    assert (twice.seeds, twice.claims) == (8, 5)  # C changes nothing where EduAttention is off


@pytest.mark.parametrize("search", [
    {"sampler": "grid", "space": GRID},
    {"sampler": "grid", "space": {"train.seed": {"choice": [1, 2]}}},
    {"sampler": "tpe", "arms": 7, "space": {**GRID, "train.seed": {"choice": [1, 2]}}},
])  # fmt: skip
def test_without_seeds_claims_or_a_known_list_of_arms_nothing_is_foretold(
    make_study: MakeStudy, search: dict[str, Any]
) -> None:
    plan = make_plan(make_study({"search": search}))
    assert plan.can_find is None
    assert "can find" not in dict(plan.lines())
    assert json.loads(plan.as_json())["can_find"] is None


def test_a_sampled_space_that_is_small_is_planned_as_the_grid_that_it_is(make_study: MakeStudy) -> None:
    space = {**GRID, "train.seed": {"choice": [1, 2]}}
    small, grid = (
        make_plan(make_study({"search": {**search, "space": space}}))
        for search in ({"sampler": "tpe", "arms": 50}, {"sampler": "grid"})
    )
    assert small.arms == grid.arms == 8
    assert small.can_find == grid.can_find
    assert dict(small.lines())["arms come from"] == "all 8 of a finite space, each once: tpe is not asked"
    assert json.loads(small.as_json())["search"] == dict(small.lines())["arms come from"]


def test_every_kind_of_range_is_drawn_and_checked(make_study: MakeStudy) -> None:
    """Also a logarithmic integer, and one so wide that its values are not to be listed."""
    space = {
        "train.batch_size": {"int": [2, 16], "log": True},
        "train.seed": {"int": [0, 2**31 - 1]},
        "train.momentum": {"float": [0.0, 0.9], "step": 0.3},
    }
    plan = make_plan(make_study({"search": {"sampler": "qmc", "arms": 8, "space": space}}))
    assert plan.steps == 32 // 2 * 2
    with pytest.raises(UserError, match=r"32 training images, fewer than train.batch_size: \d+"):
        make_plan(make_study({"search": {"arms": 8, "space": {"train.batch_size": {"int": [16, 512]}}}}))


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


def test_a_source_is_counted_too(make_study: MakeStudy, image_folder: Path) -> None:
    """Its shots, validation and test images are decoded and seen by the teacher."""
    source = {"root": str(image_folder), "side": 20, "shots": 4, "views": 2}
    over = {"protocol": "cross_dataset", "source": source, "teacher.keep": "last"}
    plan, best = (make_plan(make_study(over | {"teacher.keep": keep})) for keep in ("last", "best"))
    assert plan.pixel_bytes == 3 * (72 * 40 * 40 + 56 * 20 * 20)
    cost = cost_of(make_study().teacher).flops
    own = 2 * 32 + 40  # views of the training images, and the evaluated ones
    stage_one = 4 * 16 * (1 + 2) + 40 + 40  # 4 epochs of shots and back; evaluated, zero-shot and prompted
    assert plan.teacher_flops == cost * (own + stage_one)
    assert best.teacher_flops - plan.teacher_flops == cost * 4 * 20


def test_cells_that_differ_in_nothing_are_one_arm(make_study: MakeStudy) -> None:
    """attention_scale has no effect where EduAttention is off."""
    space = {
        "student.edu_attention": {"choice": [False, True]},
        "student.attention_scale": {"choice": [1.0, 2.0]},
    }
    assert make_plan(make_study({"search": {"sampler": "grid", "space": space}})).arms == 3


def test_a_source_of_test_images_is_refused_as_by_tune(make_study: MakeStudy, tmp_path: Path) -> None:
    miniatures.TEST_SETS["imagenet_r"](tmp_path)
    source = {"dataset": "imagenet_r", "root": str(tmp_path), "shots": 1}
    with pytest.raises(UserError, match=r"source.dataset: imagenet_r: it has test images only"):
        make_plan(make_study({"protocol": "cross_dataset", "source": source}))


# Every data set under every protocol and selection ------------------------------------------------

EVERY = [(p, s) for p in PROTOCOLS for s in ("strict", "promptkd")]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """layout("sun397") -> that data set in miniature, as CoOp lays it out."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = root = tmp_path_factory.mktemp(name)
            if name in miniatures.DOWNLOADS:
                miniatures.write_split_file(root / ROWS[name].split, miniatures.DOWNLOADS[name](root))
            elif name in miniatures.TEST_SETS:
                miniatures.TEST_SETS[name](root)
            else:
                {"imagenet": miniatures.imagenet, "fgvc_aircraft": miniatures.fgvc_aircraft}[name](root)
        return made[name]

    return make


@pytest.mark.parametrize(("protocol", "selection"), EVERY)
@pytest.mark.parametrize("name", ROWS)
def test_every_data_set_plans_under_every_protocol_and_selection(
    make_study: MakeStudy, layout: Callable[[str], Path], name: str, protocol: str, selection: str
) -> None:
    """Only what cannot be is refused: a set of test images that would have to teach."""
    teaches = "caltech101"
    if protocol == "domain_generalization":  # its classes are those of its source
        teaches = "imagenet" if name in miniatures.TEST_SETS else name
    source = {"dataset": teaches, "root": str(layout(teaches)), "shots": 1}
    study = make_study(
        {
            "protocol": protocol,
            "selection": selection,
            "data": {"dataset": name, "root": str(layout(name)), "side": 16, "shots": 1},
            **({"source": source} if PROTOCOLS[protocol].has_source else {}),
            "train.batch_size": 2,
            "search": {"sampler": "list", "first": [{}]},
        }
    )
    if name in miniatures.TEST_SETS and not PROTOCOLS[protocol].has_source:
        with pytest.raises(UserError, match="test images only"):
            make_plan(study)
        return
    plan = make_plan(study)
    assert plan.images["train"] >= plan.classes
    assert plan.images["test"] >= plan.classes
    assert plan.steps == plan.images["train"] // 2 * 2
    if is_transductive(study):
        assert plan.images["train"] == plan.images["test"]
