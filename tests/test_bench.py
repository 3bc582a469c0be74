"""`comkd-ray bench`: which arms it compares, how it counts, and the shape of what it prints.

Time is never asserted. Ray is not started: what tune says is a recorded end event.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import outer
import pytest
import torch
from click.testing import CliRunner

from comkd_ray import (
    bench_step,
    bench_sweep,
    cli,
    prepare,
    provenance,
    results,
    search_space,
    stopwatch,
    study_file,
)
from comkd_ray.bench_step import Limits, Step, Traffic
from comkd_ray.bench_sweep import (
    Sweep,
    at_once,
    end_event,
    name_of,
    run_timed,
    spread,
    stages_of,
    study_of,
    teacher_images,
    tune_command,
)
from comkd_ray.bench_table import Way, grown, growth_lines, lines, seed_deviation, summary
from comkd_ray.config import Compute
from comkd_ray.data.datasets import TEST, TRAIN, VAL
from comkd_ray.errors import UserError
from comkd_ray.material import write_card
from comkd_ray.photographs import open_photographs

Tree = dict[str, Any]
RECORDED = """\
{"event": "message", "text": "study bench-cohorts: /tmp/comkd-bench-x/cohorts.yaml"}
{"event": "progress", "stage": "arms", "done": 16.0, "total": 16, "seconds_left": 0.0}
{"event": "end", "seconds": 213.4, "report": "/tmp/x/report.html", "arms": 16, "failed": 0, "left": 0, \
"best": {"arm": "0123456789ab", "objective": 41.5, "test_harmonic_mean": 39.1}}
"""
WAYS = ("published", "cached_text", "kept_memory", "one_by_one", "cohorts", "halving")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return outer.world(tmp_path_factory.mktemp("bench"))


# The arms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arms", [8, 16, 40])
def test_every_way_trains_the_same_arms(world: Path, arms: int) -> None:
    grids = [list(search_space.grid(study_of(outer.study(world), way, arms).search.space)) for way in WAYS]
    assert all(grid == grids[0] for grid in grids)
    assert len({name_of(cell) for cell in grids[0]}) == arms
    modules = {(cell["student.ifalign"], cell["student.edu_attention"]) for cell in grids[0]}
    assert len(modules) == 4


def test_ways_differ_in_cohorts_and_halving_alone(world: Path) -> None:
    study = outer.study(world, outer.tpe(4, arms_per_trial=6, halving={"eta": 2, "min_epochs": 1}))
    made = {way: study_of(study, way, 16) for way in WAYS}
    assert {way: one.search.arms_per_trial for way, one in made.items()} == {
        "published": 6, "cached_text": 6, "kept_memory": 6, "one_by_one": 1, "cohorts": 6, "halving": 6,
    }  # fmt: skip
    assert [way for way, one in made.items() if one.search.halving] == ["halving"]
    same = {one.model_dump_json(exclude={"study", "search"}) for one in made.values()}
    assert len(same) == 1
    assert made["cohorts"].data.views == "epochs"


def test_a_study_without_halving_gets_rungs_below_its_epochs(world: Path) -> None:
    halving = study_of(outer.study(world), "halving", 8).search.halving
    assert halving is not None
    assert halving.min_epochs < outer.study(world).train.epochs


@pytest.mark.parametrize("arms", [0, 7, 12])
def test_arms_that_fill_no_grid_are_refused(world: Path, arms: int) -> None:
    with pytest.raises(UserError, match="a multiple of 8"):
        study_of(outer.study(world), "cohorts", arms)


def test_the_published_loop_runs_arms_from_both_ends(world: Path) -> None:
    cells = list(search_space.grid(study_of(outer.study(world), "published", 16).search.space))
    assert spread(cells, 1) == cells[-1:]
    assert spread(cells, 2) == [cells[0], cells[-1]]
    assert spread(cells, 16) == cells


# What processes say -----------------------------------------------------------------------------


def test_tune_is_started_as_a_person_starts_it(tmp_path: Path) -> None:
    words = tune_command(tmp_path / "a.yaml", tmp_path / "reports")
    assert words[:3] == [sys.executable, "-m", "comkd_ray.cli"]
    name, *rest = words[3:]
    assert name == "tune"
    with cli.main.commands["tune"].make_context("tune", rest) as context:
        assert context.params["as_json"]
        assert context.params["address"] is None


def test_the_end_event_is_found(tmp_path: Path) -> None:
    end = end_event(RECORDED)
    assert (end["arms"], end["seconds"]) == (16, 213.4)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("", "without its end event"),
        (RECORDED.replace('"failed": 0', '"failed": 3'), "3 arms failed"),
        (RECORDED.replace('"left": 0', '"left": 2'), "2 left"),
    ],
)
def test_a_study_that_did_not_end_well_is_no_measurement(said: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        end_event(said)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_sweep, "MEMORY_EVERY", 0.3)


@pytest.mark.usefixtures("often")
def test_a_process_is_timed_with_its_memory() -> None:
    code = "import time; held = bytearray(60_000_000); time.sleep(1.2); print(len(held))"
    done = run_timed([sys.executable, "-c", code], os.environ)
    assert done.out == "60000000\n"
    assert done.seconds > 1.2
    assert 60_000_000 < done.own_peak <= done.peak < 2_000_000_000


@pytest.mark.usefixtures("often")
def test_memory_alone_is_without_what_a_process_started() -> None:
    child = "held = bytearray(90_000_000); import time; time.sleep(1.2)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{child}'])"
    done = run_timed([sys.executable, "-c", code], os.environ)
    assert done.own_peak < 60_000_000
    assert done.peak > done.own_peak + 80_000_000


@pytest.mark.parametrize(
    ("arms", "words"), [((16, 20), "--arms 20: a multiple of 8"), ((16, 16), "few and many")]
)
def test_growth_of_no_grid_is_refused_before_anything_runs(
    world: Path, tmp_path: Path, arms: tuple[int, int], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        Sweep(outer.study(world), arms[0], 1, tmp_path / "new", print).growth(arms)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("gpus", "there", "loops"), [(0, 8, 1), (1, 8, 8), (0.5, 2, 4), (2, 1, 1)])
def test_on_gpus_the_loop_is_taken_to_run_as_often_as_cohorts_fit(
    world: Path, monkeypatch: pytest.MonkeyPatch, gpus: float, there: int, loops: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    assert at_once(outer.study(world).model_copy(update={"compute": Compute(cpus=1.0, gpus=gpus)})) == loops


def test_growth_is_told_from_the_fewest_to_the_most(world: Path) -> None:
    few, many = (
        Way("cohorts", n, s, m, 0, 0, driver_bytes=m) for n, s, m in ((8, 10.0, 2**30), (32, 30.0, 2**30))
    )
    found = grown(outer.study(world), {32: many, 8: few})
    assert (found["ratio_arms"], found["ratio_seconds"], found["ratio_driver_bytes"]) == (4, 3, 1)
    assert (
        growth_lines(found)[-1] == "4 times the arms: 3.00 times the seconds, 1.00 times the driver's memory"
    )


def test_a_process_that_fails_is_one_line() -> None:
    with pytest.raises(UserError, match=r"code 3: the last word"):
        run_timed(
            [sys.executable, "-c", "import sys; print('x\\nthe last word', file=sys.stderr); sys.exit(3)"], {}
        )


def test_the_published_way_runs_in_processes_of_its_own(world: Path, tmp_path: Path) -> None:
    said: list[str] = []
    sweep = Sweep(outer.study(world), 8, 1, tmp_path, said.append)
    sweep.prepare()
    found = sweep.baseline("published")
    study = study_of(outer.study(world), "published", 8)
    photographs = open_photographs(study, tmp_path / "cache", lambda *_: None)
    batch, train = study.train.batch_size, len(photographs.part(TRAIN))
    each = train // batch * batch + len(photographs.part(VAL))
    count = study.train.epochs * each + len(photographs.part(TEST))
    assert found.teacher_images_in_trials == 8 * count
    assert (found.arms_run, len(found.scores), len(said)) == (1, 1, 3)
    assert found.loader is not None
    assert found.loader["seconds_per_step"] > 0
    assert found.peak_memory_bytes > 1e8


def test_banks_tell_what_the_teacher_saw(world: Path, tmp_path: Path) -> None:
    study, run, cache = study_of(outer.study(world), "cohorts", 8), tmp_path / "run", tmp_path / "cache"
    card = prepare.prepare(study, cache, lambda *_: None)
    write_card(run, card)
    photographs = open_photographs(study, cache, lambda *_: None)
    views = study.train.epochs
    tuned = views * len(photographs.part(TRAIN)) + len(photographs.evaluated)
    seen = tuned + len(photographs.evaluated)  # and zero-shot
    assert teacher_images(run, cache, study.teacher.model) == (seen, 0)
    late = cache / "banks" / card.val_bank / "card.json"
    later = (run / "material.json").stat().st_mtime + 10
    late.write_text(json.dumps(json.loads(late.read_text()) | {"created": later}))  # as if by an arm
    assert teacher_images(run, cache, study.teacher.model) == (seen, len(photographs.evaluated))


# What they say together -------------------------------------------------------------------------


def way(name: str, seconds: float, shift: float = 0.0, **more: Any) -> Way:
    """A way whose eight arms score 50 and 52 under their two seeds, and `shift` more."""
    cells = [f"student.ifalign={k} train.seed={seed}" for k in range(4) for seed in (1, 2)]
    found = {cell: (40.0, 48.0 + 2 * int(cell[-1]) + shift) for cell in cells}
    counts = {"arms_run": 8, "peak_memory_bytes": 2**30, "teacher_images": 900, "teacher_images_in_trials": 0}
    return Way(name, seconds=seconds, scores=found, **(counts | more))


@pytest.fixture
def found(world: Path) -> Tree:
    ways = [
        way("published", 800.0, 0.5, arms_run=2, teacher_images=7000, teacher_images_in_trials=7000),
        way("cached_text", 600.0, 0.5, arms_run=2),
        way("kept_memory", 500.0, 0.5, arms_run=2),
        way("one_by_one", 400.0),
        way("cohorts", 200.0, 1e-4, stages={"bank": 30.4, "search": 120.0}, arm_seconds=99.6),
        way("halving", 100.0),
    ]
    return summary(outer.study(world), 8, ways)


def test_ratios_are_the_published_seconds_over_each(found: Tree) -> None:
    ratios = {key: value for key, value in found.items() if key.startswith("ratio_")}
    assert ratios == {
        "ratio_cached_text": pytest.approx(800 / 600), "ratio_kept_memory": 1.6, "ratio_one_by_one": 2.0,
        "ratio_cohorts": 4.0, "ratio_halving": 8.0,
    }  # fmt: skip
    assert found["fastest_loop"] == "kept_memory"
    assert found["against_fastest_loop"] == {"one_by_one": 1.25, "cohorts": 2.5, "halving": 5.0}
    assert "against kept_memory, the fastest loop: one_by_one 1.25, cohorts 2.50, halving 5.00" in lines(
        found
    )
    assert found["seconds"]["published"] == 800.0
    assert found["arms_per_hour"]["halving"] == pytest.approx(8 * 36)
    assert json.loads(json.dumps(found, allow_nan=False))["event"] == "bench sweep"


def test_numbers_agree_where_differences_are_within_seed_noise(found: Tree, world: Path) -> None:
    assert found["seed_deviation"] == pytest.approx(math.sqrt(2))
    assert found["same_numbers"]
    assert found["ways"]["published"]["largest_difference"] == pytest.approx(0.5)
    far = [way("published", 800.0, 6.0), way("one_by_one", 400.0)]
    apart = summary(outer.study(world), 8, far)
    assert not apart["same_numbers"]
    assert "DO NOT AGREE" in lines(apart)[-1]


def test_without_a_second_seed_nothing_is_called_equal(world: Path) -> None:
    alone = way("one_by_one", 1.0)
    alone.scores = {"train.seed=1": (40.0, 50.0)}
    assert seed_deviation(alone.scores) is None
    assert not summary(outer.study(world), 8, [alone])["same_numbers"]


def test_the_table_says_what_was_scaled(found: Tree) -> None:
    rows = lines(found)
    assert [row for row in rows if "scaled from 2 arms" in row] == rows[2:5]
    assert rows[7].split()[:4] == ["halving", "100", "288.0", "8.00"]


def test_the_table_says_where_the_seconds_of_a_study_went(found: Tree) -> None:
    spent = [row for row in lines(found) if " spent " in row]
    assert spent == [
        "cohorts      spent 30 s in bank, 120 s in search; its cohorts themselves 100 s, added up"
    ]


def test_stages_of_a_study_add_up_to_its_seconds(tmp_path: Path) -> None:
    provenance.update(tmp_path, stages={"pixels": 1.5, "search": 20.0})
    stages = stages_of(tmp_path, 30.0)
    assert stages == {"pixels": 1.5, "search": 20.0, "everything else": 8.5}


# One step ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(stopwatch, "SHARE", 0.0)
        return bench_step.bench_step(outer.study(world), tmp_path_factory.mktemp("cache"), (1, 2))


def test_steps_are_measured_by_cohort_size(measured: Tree) -> None:
    assert [step["arms"] for step in measured["steps"]] == [1, 2]
    one, two = measured["steps"]
    assert set(one) == {
        "arms", "seconds", "inputs_seconds", "seconds_per_arm", "flops", "flops_per_second",
        "matmul_share", "bytes", "copy_share",
    }  # fmt: skip
    assert one["flops"] < two["flops"] < 2.01 * one["flops"]  # the patch embedding is shared
    assert all(value > 0 for step in measured["steps"] for value in step.values())


def test_a_step_is_held_against_the_limits() -> None:
    limits = Limits("cpu", "float32", 1, matmul_flops=100.0, copy_bytes=50.0)
    held = Step(arms=4, seconds=2.0, inputs_seconds=0.5, flops=60.0, bytes=25.0).against(limits)
    assert held["seconds_per_arm"] == 0.5
    assert (held["flops_per_second"], held["matmul_share"], held["copy_share"]) == (30.0, 0.3, 0.25)


def test_traffic_counts_what_is_read_and_written_and_no_views() -> None:
    x, y = torch.ones(10, 20), torch.ones(20, 30)
    with Traffic() as traffic:
        x.T.reshape(2, 100)  # one copy of 200
    assert traffic.bytes == 4 * 400
    with Traffic() as traffic:
        (x @ y).view(30, 10)
    assert traffic.bytes == 4 * (200 + 600 + 300)


def test_the_whole_is_one_object_and_a_table(measured: Tree) -> None:
    assert json.loads(json.dumps(measured, allow_nan=False))["event"] == "bench step"
    assert {"limits", "steps", "epoch", "bank", "pixels", "machine"} <= set(measured)
    table = bench_step.lines(measured)
    assert table[2].split()[0] == "arms"
    assert [row.split()[0] for row in table[3:5]] == ["1", "2"]


def test_a_tower_without_prompts_is_measured_on_its_bank(world: Path, tmp_path: Path, measured: Tree) -> None:
    study = outer.study(world, student={"prompt_length": 0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(stopwatch, "SHARE", 0.0)
        found = bench_step.bench_step(study, tmp_path, (2,))
    assert 0 < found["steps"][0]["flops"] < measured["steps"][1]["flops"] / 2


# The command line -------------------------------------------------------------------------------


def test_step_prints_one_object(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "SHARE", 0.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("COMKD_CACHE", str(tmp_path / "cache"))
    path = outer.write_yaml(tmp_path / "tiny.yaml", outer.tree(world))
    done = CliRunner().invoke(cli.main, ["bench", "step", str(path), "--json"])
    assert done.exit_code == 0, done.exception
    assert [step["arms"] for step in json.loads(done.stdout)["steps"]] == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("command", ["sweep", "step"])
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["absent.yaml"], "absent.yaml: cannot be read"),
        (["--set", "train.epoch=1"], "did you mean 'train.epochs'?"),
    ],
)
def test_bad_input_is_one_line(command: str, words: list[str], why: str) -> None:
    done = CliRunner().invoke(cli.main, ["bench", command, *words])
    assert done.exit_code == 2
    assert done.stderr.startswith("comkd-ray: ")
    assert (why in done.stderr, done.stderr.count("\n"), done.stdout) == (True, 1, "")


@pytest.mark.parametrize(
    ("words", "why"),
    [(["--arms", "10"], "a multiple of 8"), (["--set", "teacher.epochs=0"], "teacher.epochs: 0")],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    words: list[str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the command sets it
    done = CliRunner().invoke(cli.main, ["bench", "sweep", *words])
    assert (done.exit_code, why in done.stderr) == (2, True)


@pytest.mark.parametrize("command", sorted(cli.main.commands["bench"].commands))  # type: ignore[attr-defined]
def test_every_option_says_what_it_does(command: str) -> None:
    one = cli.main.commands["bench"].commands[command]  # type: ignore[attr-defined]
    assert one.help
    assert all(option.help for option in one.params if option.param_type_name == "option")


def test_scores_are_read_from_records(world: Path, tmp_path: Path) -> None:
    """Columns that `name_of` reads are those of a record; JSON keeps the values as they are."""
    study = study_of(outer.study(world), "cohorts", 8)
    for cell in search_space.grid(study.search.space):
        flat = study_file.flatten(study_file.resolve(study, cell).model_dump(mode="json"))
        results.write_record(tmp_path, {"arm": "a", "status": "complete"} | flat, [])
        assert name_of(results.read_records(tmp_path)["a"]["arm"]) == name_of(cell)
