"""`search.arms_per_trial: auto`: what is measured, what follows from it, and that it is measured once."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import outer
import pytest
import torch

from comkd_ray import cluster, memory_probe, prepare, ray_train, study_file
from comkd_ray.cohort_size import CPU_ARMS, SAFE, Memory, cohort_size, read_memory
from comkd_ray.config import Study
from comkd_ray.errors import UserError
from comkd_ray.material import open_material, read_card, write_card
from comkd_ray.memory_probe import heaviest_values, line
from comkd_ray.progress import Screen
from comkd_ray.report_facts import provenance_tables
from comkd_ray.study_run import _Run
from comkd_ray.tune import UNLIMITED

pytestmark = pytest.mark.usefixtures("cpu")

Tree = dict[str, Any]
GIB = 2**30
CPU = Memory("cpu", "cpu, x86_64", {}, fixed=GIB, per_arm=GIB // 2, fits_more=True, free=16 * GIB)
GPU = replace(CPU, device="cuda", name="NVIDIA H100", free=80 * GIB)


def size(
    memory: Memory, arms: int, slots: int = 1, workers: int = 1, nodes: int = 1, gpus: float = 1.0
) -> int:
    compute: Tree = {"gpus": gpus}
    study = study_file.build(outer.tree(Path(), outer.tpe(9, arms_per_trial="auto"), compute=compute), "test")
    found = cohort_size(study, memory, slots, workers, nodes, arms)
    assert found.why
    return found.arms


# What follows -----------------------------------------------------------------------------------


def test_a_gpu_is_filled_to_the_safe_share() -> None:
    """0.8 * 80 = 64 GiB, of which 1 is for whatever cohort, and half a GiB for each arm."""
    assert SAFE == 0.8
    assert size(GPU, 1000) == math.ceil(1000 / math.ceil(1000 / 126)) == 125
    assert size(GPU, 126) == 126
    assert size(GPU, 127) == 64  # two rounds, and none of them small


def test_a_part_of_a_gpu_holds_a_part_of_its_arms() -> None:
    """0.4 * 80 = 32 GiB: 62 arms; two cohorts share the GPU."""
    assert size(GPU, 10_000, slots=2, gpus=0.5) == math.ceil(10_000 / 2 / math.ceil(10_000 / 124))
    assert size(GPU, 62, gpus=0.5) == 62
    assert size(GPU, 64, gpus=0.5) == 32


@pytest.mark.parametrize(
    ("arms", "slots", "expected"),
    [(20, 2, 5), (16, 2, 8), (17, 2, 5), (8, 4, 2), (3, 4, 1), (1, 1, 1), (0, 2, 1)],
)
def test_no_slot_stands_idle(arms: int, slots: int, expected: int) -> None:
    memory = replace(CPU, free=10_000 * GIB)
    assert size(memory, arms, slots) == expected


def test_on_a_cpu_no_more_arms_than_pay() -> None:
    assert size(replace(CPU, free=10_000 * GIB), 1000) == CPU_ARMS == 8
    assert size(CPU, 1000, slots=1) == 8


def test_cohorts_of_a_node_share_its_memory() -> None:
    """0.8 * 16 = 12.8 GiB: of four cohorts each has 3.2, which are 1 + 4 * 0.5; on two nodes each has 6.4."""
    assert size(CPU, 1000, slots=4) == 4
    assert size(CPU, 1000, slots=4, nodes=2) == 8
    assert size(CPU, 1000, slots=2, workers=2) == 8  # two groups of two processes, four arms in each


def test_one_arm_always_fits() -> None:
    """Whether it does is for the cohort to find out."""
    assert size(replace(CPU, free=GIB // 2), 9) == 1
    assert size(replace(GPU, fits_more=False), 9) == 1


def test_the_reason_is_in_words() -> None:
    study = study_file.build(outer.tree(Path(), outer.tpe(9, arms_per_trial="auto")), "test")
    found = cohort_size(study, replace(CPU, structure={"train.batch_size": 64}), 2, 1, 1, 20)
    assert found.why == (
        "6.40 GiB, 80% of 0.5 of the node, holds 10 (1.00 GiB and 0.50 GiB an arm), of which 8 pay on a CPU;"
        " 20 arms over 2 at once are 2 rounds of 5; probed on cpu, x86_64 with train.batch_size 64"
    )


def test_a_line_goes_through_both_peaks() -> None:
    assert line({1: 150, 3: 250}) == (100, 50)
    assert line({1: 150}) == (149, 1)
    assert line({1: 150, 3: 150}) == (149, 1)  # no division by nothing


def test_the_largest_structure_of_the_space_is_tried(make_study: Callable[..., Study]) -> None:
    assert heaviest_values(make_study()) == {}
    space = {
        "student.prompt_length": {"choice": [0, 6, 2]}, "train.batch_size": {"int": [4, 20]},
        "student.edu_attention": {"choice": [False, True]}, "student.alpha": {"choice": ["scalar", "vector"]},
        "train.precision": {"choice": ["mixed", "float16"]}, "student.projector_layers": {"choice": [1, 2]},
        "student.attention_layers": {"choice": ["separate", "shared"]},
    }  # fmt: skip
    first = [{"student.prompt_length": 6}]
    study = make_study({"search": {"arms": 9, "space": space, "first": first}, "student.ifalign": False})
    assert heaviest_values(study) == {
        "student.prompt_length": 6, "train.batch_size": 20, "student.alpha": "vector",
        "train.precision": "float16",
    }  # fmt: skip


@pytest.mark.parametrize("content", [None, "", "[]", '{"device": "cpu"}'])
def test_what_cannot_be_read_was_not_probed(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "memory.json").write_text(content)
    assert read_memory(tmp_path) is None


def test_what_was_probed_is_read_back(tmp_path: Path) -> None:
    memory = replace(CPU, structure={"train.batch_size": 64, "student.alpha": "vector"})
    (tmp_path / "memory.json").write_text(json.dumps(asdict(memory)))
    assert read_memory(tmp_path) == memory


@pytest.mark.parametrize("value", [0, -1, "all", 1.5, True])
def test_only_numbers_and_auto_are_taken(make_study: Callable[..., Study], value: Any) -> None:
    with pytest.raises(UserError, match=r"search.*arms_per_trial"):
        make_study({"search.arms_per_trial": value})


# What is measured -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared run; its cache stands beside it."""
    root = outer.world(tmp_path_factory.mktemp("memory"))
    space = {"train.seed": {"int": [1, 9]}, "student.prompt_length": {"choice": [2, 3]}}
    study = outer.study(root, {"arms": 9, "arms_per_trial": "auto", "space": space})
    folder = root / "run"
    folder.mkdir()
    study_file.dump(study, folder / "study.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        write_card(folder, prepare.prepare(study, root / "cache", lambda *_: None))
    return folder


def test_a_batch_is_trained_and_evaluated_with_the_largest_structure(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, int, int]] = []
    tested: list[list[str]] = []
    study = study_file.load(run / "study.yaml")
    material = open_material(study, read_card(run), run.parent / "cache")

    class Watched(memory_probe.Cohort):
        def train_epoch(self, epoch: int, meter: Any) -> Any:
            steps: list[int] = []
            means = super().train_epoch(epoch, lambda done, total: steps.append(done))
            seeds = len({arm.study.train.seed for arm in self.arms})
            length = self.student.tensors["visual"].shape[2]
            seen.append((len(self.arms), seeds, length, len(steps)))
            return means

        def test(self, names: Any) -> None:
            super().test(names)
            tested.append([name for name, rows in self.history.items() if "test_" in str(rows[-1])])

    monkeypatch.setattr(memory_probe, "Cohort", Watched)
    memory_probe.exercise(study, material, 3)
    assert seen == [(3, 3, 3, 1)] * 2
    assert tested == [["0", "1", "2"]]  # each with its best state, which is held beside the last


def test_the_peak_is_of_this_process_and_stays() -> None:
    cpu, slack = torch.device("cpu"), 2**20  # the kernel counts pages of each core apart
    held = torch.ones(100 * 2**20 // 4)
    after = memory_probe.peak_bytes(cpu)
    del held
    assert after > 100 * 2**20
    assert memory_probe.peak_bytes(cpu) > after - slack


def test_it_is_measured_once_by_a_process_of_its_own(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = run.parent / "cache"
    found = memory_probe.probe(run, cache, 1)
    assert read_memory(run) == found
    assert found.structure == {"student.prompt_length": 3}
    assert 100 * 2**20 < found.fixed < 4 * GIB  # Python, torch and the tiny towers
    assert 0 < found.per_arm < GIB
    assert found.fits_more
    assert found.free > 0
    (kept,) = (cache / "memory").glob("*.json")

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(subprocess, "run", never)
    assert replace(memory_probe.probe(run, cache, 1), free=found.free) == found
    with pytest.raises(AssertionError, match="measured again"):
        memory_probe.probe(run, cache, 2)  # with other threads it is another number
    kept.write_text("{")
    with pytest.raises(AssertionError, match="measured again"):
        memory_probe.probe(run, cache, 1)


def said(monkeypatch: pytest.MonkeyPatch, code: int, out: str, err: str) -> None:
    done = subprocess.CompletedProcess([], code, out, err)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)


@pytest.mark.parametrize(
    ("code", "err"),
    [(1, "torch.OutOfMemoryError: CUDA out of memory. Tried"), (-9, ""), (1, "Traceback\nMemoryError")],
)
def test_where_only_one_arm_fits_one_is_trained(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, err: str
) -> None:
    """And it is tried again next time, when there may be more room."""
    said(monkeypatch, code, "peak 1 5000\n", err)
    tmp_path.joinpath("teachers").symlink_to(run.parent / "cache" / "teachers")
    found = memory_probe.probe(run, tmp_path, 1)
    assert not found.fits_more
    assert found.fixed == 4999
    study = study_file.load(run / "study.yaml")
    assert cohort_size(study, found, 1, 1, 1, 9).arms == 1
    said(monkeypatch, 0, "peak 1 5000\npeak 3 7000\n", "")
    assert memory_probe.probe(run, tmp_path, 1).per_arm == 1000


@pytest.mark.parametrize(("out", "err"), [("", ""), ("peak 1 5000\n", "Traceback\nKeyError: 'x'")])
def test_a_probe_that_fails_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, out: str, err: str
) -> None:
    said(monkeypatch, 1, out, err)
    words = err.splitlines()[-1] if err else "it said nothing"
    with pytest.raises(UserError, match=rf"arms_per_trial: auto: .* code 1 \({words}\); set a number"):
        memory_probe.probe(run, run.parent / "cache", 5)


def test_a_container_has_what_its_limit_leaves(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 250\n")
    assert memory_probe._container_bytes(tmp_path) == 550
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_probe._container_bytes(tmp_path) > 2**60
    assert memory_probe._container_bytes(tmp_path / "none") > 2**60


# Around it --------------------------------------------------------------------------------------


@pytest.fixture
def begun(run: Path, tmp_path: Path) -> Path:
    """A prepared run of the test's own, that was not probed."""
    for name in ("study.yaml", "material.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    return tmp_path


def test_the_first_preparing_worker_probes(run: Path, begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said(monkeypatch, 0, "peak 1 5000\npeak 3 7000\n", "")
    cache = run.parent / "cache"
    for rank in (1, 0):
        ray_train._prepare_as(begun, cache, 7, rank)
        assert (read_memory(begun) is not None) == (rank == 0)
    memory = read_memory(begun)
    assert memory is not None
    assert (memory.fixed, memory.per_arm) == (4000, 1000)
    assert not list(begun.glob(ray_train.ERROR.format("*")))
    said(monkeypatch, 1, "", "KeyError: 'x'")
    ray_train._prepare_as(begun, cache, 8, 0)
    assert "arms_per_trial: auto" in (begun / ray_train.ERROR.format(0)).read_text()


def test_the_driver_takes_the_size_and_writes_down_why(
    run: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was prepared without a probe, as its study did not ask for it, is probed on resuming."""
    study, cache = study_file.load(begun / "study.yaml"), run.parent / "cache"
    asked: list[tuple[Any, ...]] = []

    def prepare_again(*given: Any) -> None:
        asked.append(given)
        (begun / "memory.json").write_text(json.dumps(asdict(replace(CPU, free=3 * GIB))))

    monkeypatch.setattr(ray_train, "prepare", prepare_again)
    monkeypatch.setattr(cluster, "node_count", lambda: 1)
    driver = _Run(study, begun, cache, Screen("quiet"), False, 0.0, UNLIMITED, None)
    for _ in range(2):
        assert driver.prepare(1) == read_card(run)
    assert len(asked) == 1
    assert driver.cohort_size(1, 9) == 2  # 0.8 * 3 GiB hold 1 + 2 * 0.5
    written = json.loads((begun / "provenance.json").read_text())["arms_per_trial"]
    assert written["auto"] == 2
    assert written["because"].endswith("probed on cpu, x86_64 with the values of the study")
    told = provenance_tables({"arms_per_trial": written})
    assert "auto 2" in told
    assert "2.40 GiB, 80% of the node, holds 2" in told
    fixed = study.model_copy(update={"search": study.search.model_copy(update={"arms_per_trial": 5})})
    assert _Run(fixed, begun, cache, Screen("quiet"), False, 0.0, UNLIMITED, None).cohort_size(1, 9) == 5
