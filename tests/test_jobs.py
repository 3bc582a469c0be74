"""Work orders: what makes an arm the same arm, who trains together, and what is left on disk."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import outer
import pytest
import torch

from comkd_ray import jobs, prepare, results, study_file
from comkd_ray.cohort import Arm
from comkd_ray.errors import UserError
from comkd_ray.jobs import Asked, Job
from comkd_ray.material import write_card
from comkd_ray.train import EpochReport, Share, fit

Tree = dict[str, Any]
HALVING: Tree = {"eta": 2, "min_epochs": 1}
BROKEN = "RuntimeError: shapes do not fit: 3 and 4"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory right before its first cohort; its cache stands beside it."""
    root = outer.world(tmp_path_factory.mktemp("jobs"))
    study = outer.study(root, outer.tpe(8, halving=HALVING))
    run = root / "run"
    run.mkdir()
    study_file.dump(study, run / "study.yaml")
    write_card(run, prepare.prepare(study, root / "cache", lambda *_: None))
    return run


@pytest.fixture
def run(prepared: Path, tmp_path: Path) -> Path:
    """The same in a directory of the test's own."""
    for name in ("study.yaml", "material.json"):
        (tmp_path / name).write_bytes((prepared / name).read_bytes())
    return tmp_path


@pytest.fixture
def order(prepared: Path, run: Path) -> Callable[..., Job]:
    """Work orders with arms `arm0`, `arm1`, ... of these overrides."""

    def order(*overrides: Tree, protected: tuple[int, ...] = (), **fields: Any) -> Job:
        arms = tuple(Asked(f"arm{n}", 10 + n, one, n in protected) for n, one in enumerate(overrides))
        cache = prepared.parent / "cache"
        return Job("c0007", str(run), str(cache), 1, 0, 1.0, 0.0, arms, **({"history": {}} | fields))

    return order


def carry_out(job: Job, share: Share | None = None) -> list[Tree]:
    reports: list[Tree] = []
    jobs.run_job(jobs.write_job(job), reports.append, share or Share())
    return reports


def break_down(monkeypatch: pytest.MonkeyPatch, layers: int, epoch: int) -> None:
    """Let training break in an epoch, where arms have this many projector layers."""

    def broken_fit(arms: list[Arm], material: Any, report: Callable[[EpochReport], None], *rest: Any) -> None:
        def tell(said: EpochReport) -> None:
            if said.epoch == epoch and arms[0].study.student.projector_layers == layers:
                raise RuntimeError("shapes do not fit:\n  3\n  and 4")
            report(said)

        fit(arms, material, tell, *rest)

    monkeypatch.setattr(jobs, "fit", broken_fit)


# Identity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "change", "same"),
    [
        ({}, {}, True),
        ({}, {"loss.temperature": 2.0}, False),
        ({}, {"train.seed": 2}, False),
        ({}, {"train.epochs": 3}, False),
        ({}, {"train.precision": "float16"}, False),
        ({}, {"student.ifalign": False}, False),
        ({}, {"student.attention_scale": 2.0}, False),
        ({}, {"loss.align_weight": 2.0}, False),
        ({"student.edu_attention": False}, {"student.attention_scale": 2.0}, True),
        ({"student.edu_attention": False}, {"student.attention_layers": "shared"}, True),
        ({"student.edu_attention": False}, {"student.alpha": "vector"}, True),
        ({"student.edu_attention": False}, {"student.renormalize": False}, True),
        ({}, {"student.alpha": "vector"}, False),
        ({"student.edu_attention": False}, {"loss.align_weight": 2.0}, False),
        ({"student.ifalign": False}, {"loss.align_weight": 2.0}, True),
        ({"student.ifalign": False}, {"student.align_axis": "width"}, True),
        ({"student.ifalign": False}, {"student.attention_scale": 2.0}, False),
    ],
)
def test_an_arm_is_what_has_an_effect_on_its_numbers(
    tmp_path: Path, base: Tree, change: Tree, same: bool
) -> None:
    study = outer.study(tmp_path)
    one, two = (
        jobs.arm_identity("material", study_file.resolve(study, values)) for values in (base, base | change)
    )
    assert (one == two) == same
    assert len(one) == 12


def test_an_arm_does_not_hang_on_how_it_was_searched_and_where_it_ran(tmp_path: Path) -> None:
    plain = outer.study(tmp_path)
    other = outer.study(
        tmp_path,
        outer.tpe(9, halving=HALVING),
        compute={"cpus": 4, "workers": 2},
        data={"root": "/elsewhere"},
    )
    assert jobs.arm_identity("m", plain) == jobs.arm_identity("m", other.model_copy(update={"note": "other"}))


def test_an_arm_hangs_on_its_material(tmp_path: Path) -> None:
    study = outer.study(tmp_path)
    assert jobs.arm_identity("one", study) != jobs.arm_identity("two", study)


# Who trains together ----------------------------------------------------------------------------


def test_scalars_flags_and_seeds_may_differ_within_a_group(tmp_path: Path) -> None:
    together: list[Tree] = [
        {},
        {"student.ifalign": False},
        {"student.edu_attention": False},
        {"student.attention_scale": "sqrt_width"},
        {"loss.temperature": 3.0, "loss.kd_weight": 0.1, "loss.align_weight": 9.0},
        {"train.lr": 0.5, "train.warmup_lr": 0.1, "train.momentum": 0.0, "train.weight_decay": 0.1},
        {"train.seed": 2},
    ]
    study = outer.study(tmp_path)
    arms = [Arm(str(n), study_file.resolve(study, one)) for n, one in enumerate(together)]
    assert [[arm.arm for arm in group] for group in jobs.partition(arms)] == [list("0123456")]


@pytest.mark.parametrize(
    "apart",
    [
        {"train.precision": "float16"},
        {"student.projector_layers": 3},
        {"student.prompt_length": 1},
        {"student.prompt_depth": 1},
        {"student.alpha": "vector"},
        {"student.align_axis": "width"},
        {"student.attention_keys": "evaluated"},
        {"student.attention_layers": "shared"},
        {"student.renormalize": False},
        {"train.batch_size": 4},
        {"train.epochs": 3},
    ],
)
def test_another_structure_is_another_group_in_the_order_asked(tmp_path: Path, apart: Tree) -> None:
    study = outer.study(tmp_path)
    arms = [Arm(str(n), study_file.resolve(study, one)) for n, one in enumerate([{}, apart, {}, apart])]
    assert [[arm.arm for arm in group] for group in jobs.partition(arms)] == [["0", "2"], ["1", "3"]]


# Work orders ------------------------------------------------------------------------------------


def test_a_work_order_comes_back_as_it_was_written(order: Callable[..., Job], run: Path) -> None:
    overrides: Tree = {"student.ifalign": False, "student.attention_scale": "sqrt_width", "train.lr": 1e-7}
    job = order(overrides, {}, protected=(1,), history={1: [50.0, 49.5], 2: []})
    path = jobs.write_job(job)
    assert path == run / "cohorts" / "c0007.json"
    assert jobs.read_job(path) == job


# Carrying one out -------------------------------------------------------------------------------


def test_every_arm_leaves_one_record_before_it_is_reported(order: Callable[..., Job], run: Path) -> None:
    job = order({"train.seed": 1}, {"train.seed": 2}, protected=(0, 1))
    reports = []

    def report(row: Tree) -> None:
        reports.append(row)
        assert all((run / "records" / f"{arm}.json").is_file() for arm in row.get("ended", []))

    jobs.run_job(jobs.write_job(job), report)
    assert [row.get("ended") for row in reports] == [[], ["arm0", "arm1"], None]
    assert [row.get("epoch") for row in reports] == [1, 2, None]
    assert reports[-1] == {"done": True}
    assert [arm for arm, _ in reports[0]["values"]] == ["arm0", "arm1"]
    records = results.read_records(run)
    assert list(records) == ["arm0", "arm1"]
    for row, epochs in ((one["arm"], one["epochs"]) for one in records.values()):
        assert (row["status"], row["epochs_done"], row["cohort"]) == ("complete", 2, "c0007")
        assert [one["epoch"] for one in epochs] == [1, 2]
        assert row["val_harmonic_mean"] == max(one["val_harmonic_mean"] for one in epochs)


def test_a_record_says_what_was_asked_and_with_what_it_ran(order: Callable[..., Job], run: Path) -> None:
    overrides: Tree = {"loss.temperature": 2.5, "student.ifalign": False, "train.seed": 4}
    carry_out(order(overrides))
    row = results.read_records(run)["arm0"]["arm"]
    assert {key: row[key] for key in overrides} == overrides
    assert row["searched"] == sorted(overrides)
    assert (row["number"], row["seed"], row["train.lr"], row["student.edu_attention"]) == (10, 4, 0.02, True)
    assert results.compact(run) == 1
    assert results.read_arms(run)["train.seed"].to_list() == [4]


def test_an_arm_that_has_a_record_is_not_trained_again(order: Callable[..., Job], run: Path) -> None:
    carry_out(order({"train.seed": 1}))
    before = (run / "records" / "arm0.json").stat().st_mtime_ns
    reports = carry_out(order({"train.seed": 1}, {"train.seed": 2}))
    assert {arm for row in reports for arm, _ in row.get("values", [])} == {"arm1"}
    assert (run / "records" / "arm0.json").stat().st_mtime_ns == before
    assert carry_out(order({"train.seed": 1})) == [{"done": True}]


def test_an_arm_gets_the_numbers_that_it_gets_alone(order: Callable[..., Job], run: Path) -> None:
    arms: list[Tree] = [{"train.seed": 1}, {"train.lr": 0.1}, {"student.edu_attention": False}]
    carry_out(order(*arms, protected=(0, 1, 2)))
    together = results.read_records(run)["arm1"]["epochs"]
    (run / "records" / "arm1.json").unlink()
    carry_out(order(*arms, protected=(0, 1, 2)))
    alone = results.read_records(run)["arm1"]["epochs"]
    for one, two in zip(together, alone, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
        assert one["val_harmonic_mean"] == pytest.approx(two["val_harmonic_mean"])


def test_what_earlier_arms_reached_ends_an_arm_at_its_rung(order: Callable[..., Job], run: Path) -> None:
    carry_out(order({"train.seed": 1}, {"train.seed": 2}, protected=(1,), history={1: [101.0] * 4}))
    ends = {arm: one["arm"]["status"] for arm, one in results.read_records(run).items()}
    assert ends == {"arm0": "pruned", "arm1": "complete"}


def test_an_error_ends_the_arms_it_hit_and_no_others(
    order: Callable[..., Job], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """arm0 ended before the error, arm1 is hit by it, arm2 trains in another group."""
    break_down(monkeypatch, layers=1, epoch=2)
    one_layer = {"student.projector_layers": 1}
    job = order(one_layer, one_layer | {"train.seed": 2}, {}, protected=(1, 2), history={1: [101.0] * 4})
    reports = carry_out(job)
    records = results.read_records(run)
    ends = {arm: (one["arm"]["status"], one["arm"]["error"]) for arm, one in records.items()}
    assert ends == {
        "arm0": ("pruned", None),
        "arm1": ("failed", BROKEN),
        "arm2": ("complete", None),
    }
    assert {"epoch": 0, "values": [], "ended": ["arm1"]} in reports
    assert records["arm1"]["arm"]["train.seed"] == 2
    assert results.compact(run) == 3
    assert results.read_arms(run)["epochs_done"].to_list() == [1, 0, 2]


def test_a_long_error_is_cut(order: Callable[..., Job], run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_fit(*_: Any) -> None:
        raise ValueError("x" * 9000)

    monkeypatch.setattr(jobs, "fit", broken_fit)
    carry_out(order({}))
    assert len(results.read_records(run)["arm0"]["arm"]["error"]) == 500


def in_two_processes(job: Job) -> list[list[Tree]]:
    """What each of two processes of a group reports; threads stand for them, and meet as they do."""
    meeting, parts = threading.Barrier(2, timeout=60), [[{}, {}], [{}, {}]]
    turn = [0, 0]

    def gather(rank: int, own: Tree) -> list[Tree]:
        parts[turn[rank] % 2][rank] = own
        meeting.wait()
        both = list(parts[turn[rank] % 2])
        turn[rank] += 1
        return both

    path, reports = jobs.write_job(job), ([], [])

    def process(rank: int) -> None:
        jobs.run_job(path, reports[rank].append, Share(rank, 2, partial(gather, rank)))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(process, (0, 1)))
    return list(reports)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("epoch", [1, 2])
def test_in_a_group_an_error_of_one_process_ends_the_structure_in_all(
    order: Callable[..., Job], run: Path, monkeypatch: pytest.MonkeyPatch, rank: int, epoch: int
) -> None:
    """arm0 and arm1 are of one structure, in a process each; arm2 and arm3 are of the next.

    In the last epoch the other process has stored its arm before it hears of the error.
    """

    def broken_fit(
        arms: list[Arm], material: Any, report: Any, history: Any, share: Share, meter: Any
    ) -> None:
        def tell(said: EpochReport) -> None:
            if said.epoch == epoch and share.rank == rank and arms[0].study.student.projector_layers == 1:
                raise RuntimeError("shapes do not fit:\n  3\n  and 4")
            report(said)

        fit(arms, material, tell, history, share, meter)

    monkeypatch.setattr(jobs, "fit", broken_fit)
    one_layer = {"student.projector_layers": 1}
    job = order(one_layer, one_layer | {"train.seed": 2}, {}, {"train.seed": 2}, protected=(0, 1, 2, 3))
    first, second = in_two_processes(job)
    assert first == second
    assert {"epoch": 0, "values": [], "ended": ["arm0", "arm1"]} in first
    records = results.read_records(run)
    ends = {arm: (one["arm"]["status"], one["arm"]["error"]) for arm, one in records.items()}
    hit, other = ("arm0", "arm1") if rank == 0 else ("arm1", "arm0")
    assert ends == {
        hit: ("failed", BROKEN),
        other: ("failed", BROKEN) if epoch == 1 else ("complete", None),
        "arm2": ("complete", None),
        "arm3": ("complete", None),
    }


def narrow(monkeypatch: pytest.MonkeyPatch, room: int) -> list[int]:
    """Let memory hold no more than `room` arms at once; the list says how many arms each try had."""
    tries: list[int] = []

    def narrow_fit(arms: list[Arm], *rest: Any) -> None:
        tries.append(len(arms))
        if len(arms) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        fit(arms, *rest)

    monkeypatch.setattr(jobs, "fit", narrow_fit)
    return tries


def scores(run: Path) -> dict[str, float]:
    return {arm: one["arm"].get("objective", -1) for arm, one in results.read_records(run).items()}


def test_arms_that_do_not_fit_into_memory_are_trained_in_halves(
    order: Callable[..., Job], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [{"train.seed": seed} for seed in range(1, 6)]
    job = order(*overrides, protected=(0, 1, 2, 3, 4))
    carry_out(job)
    whole = scores(run)
    shutil.rmtree(run / "records")
    tries = narrow(monkeypatch, room=2)
    carry_out(job)
    assert tries == [5, 3, 2, 1, 2]
    assert scores(run) == pytest.approx(whole)


def test_a_structure_is_halved_against_those_before_it(order: Callable[..., Job], run: Path) -> None:
    """arm0, of another structure, trains first; what it reached at the rung decides on arm1 alone."""
    carry_out(order({"student.projector_layers": 1}, {"train.seed": 5}, protected=(0,)))
    first, second = (results.read_records(run)[arm] for arm in ("arm0", "arm1"))
    assert second["epochs"][0]["objective"] < first["epochs"][0]["objective"]
    assert second["arm"]["status"] == "pruned"


def fail_at_once(monkeypatch: pytest.MonkeyPatch, errors: list[Exception]) -> None:
    """Let each process of a group fail with an error of its own, before it gathered anything."""

    def broken_fit(
        arms: list[Arm], material: Any, report: Any, history: Any, share: Share, meter: Any
    ) -> None:
        if len(arms) > 1:
            raise errors[share.rank]
        fit(arms, material, report, history, share, meter)

    monkeypatch.setattr(jobs, "fit", broken_fit)


@pytest.mark.parametrize(
    ("errors", "status"),
    [
        ([MemoryError("a"), ValueError("b")], "failed"),
        ([MemoryError("a"), RuntimeError("CUDA error: out of memory")], "complete"),
        ([KeyError("a"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")], "failed"),
    ],
)
def test_processes_that_fail_at_once_act_alike(
    order: Callable[..., Job],
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    errors: list[Exception],
    status: str,
) -> None:
    """Halves help only where memory was all that lacked, in each of them."""
    fail_at_once(monkeypatch, errors)
    first, second = in_two_processes(order({}, {"train.seed": 2}, protected=(0, 1)))
    assert first == second
    assert {one["arm"]["status"] for one in results.read_records(run).values()} == {status}


def test_an_arm_that_alone_does_not_fit_fails_and_says_so(
    order: Callable[..., Job], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow(monkeypatch, room=0)
    carry_out(order({}, {"train.seed": 2}))
    errors = {one["arm"]["error"] for one in results.read_records(run).values()}
    assert errors == {"OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB"}


def test_an_error_of_the_device_is_raised(
    order: Callable[..., Job], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is broken: the driver starts the cohort again in another one."""

    def broken_fit(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(jobs, "fit", broken_fit)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        carry_out(order({}))
    assert results.read_records(run) == {}


def test_an_arm_whose_loss_is_not_finite_fails_and_the_others_go_on(
    order: Callable[..., Job], run: Path
) -> None:
    wild = {"train.lr": 1e30, "train.warmup_lr": 1e30}
    carry_out(order(wild, {}, protected=(0, 1)))
    records = results.read_records(run)
    failed, sound = (records[arm]["arm"] for arm in ("arm0", "arm1"))
    assert (failed["status"], sound["status"]) == ("failed", "complete")
    assert "loss is not finite" in failed["error"]
    assert "NaN" not in (run / "records" / "arm0.json").read_text()
    assert results.compact(run) == 2


def test_a_study_that_changed_its_photographs_is_refused(order: Callable[..., Job], run: Path) -> None:
    card = json.loads((run / "material.json").read_text())
    (run / "material.json").write_text(json.dumps(card | {"data": "other"}))
    with pytest.raises(UserError, match="changed since this study began"):
        carry_out(order({}))


def test_every_cohort_says_that_its_banks_are_in_use(order: Callable[..., Job], run: Path) -> None:
    """An actor opens them once and may train for days: `bank gc` goes by when they were last used."""
    carry_out(order({}))
    cards = list(Path(order({}).cache).glob("banks/*/card.json"))
    assert cards
    for card in cards:
        os.utime(card, (1.0, 1.0))
    carry_out(order({}, {"train.seed": 3}))
    assert sum(card.stat().st_mtime > 1.0 for card in cards) >= 2
