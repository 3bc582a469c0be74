"""Studies on a real Ray: from file to report, the same numbers everywhere, and through every crash.

One study starts a Ray of its own, as a person's does; the others join one that this module starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from subprocess import Popen
from typing import Any, NamedTuple

import optuna
import outer
import psutil
import pytest

from comkd_ray import cluster, prepare, ray_train, results, study_file
from comkd_ray import tune as ray_search
from comkd_ray.ablation import GridArms
from comkd_ray.cohort_size import read_memory
from comkd_ray.config import Compute
from comkd_ray.errors import UserError
from comkd_ray.jobs import read_job
from comkd_ray.material import read_card, write_card
from comkd_ray.optuna_search import open_journal

pytestmark = pytest.mark.slow

Tree = dict[str, Any]
SEEDS: Tree = {"train.seed": {"choice": [1, 2, 3, 4, 5]}}
WILD: Tree = {"train.lr": {"choice": [0.02, 1e30]}, "train.seed": {"int": [1, 1000]}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return outer.world(tmp_path_factory.mktemp("tune"))


class Searched(NamedTuple):
    """What a search left behind."""

    slots: int
    cohorts: int
    losses: dict[int, list[float]]
    """Number of an arm -> its losses by epoch."""


# What a driver does: these run in a process of their own, where Ray is not imported before its
# settings are there.

_ray = contextlib.ExitStack()


def start_ray() -> str:
    cluster.set_environment(None)
    _ray.enter_context(cluster.connect(None, verbose=False))
    import ray

    return str(ray.get_runtime_context().gcs_address)


def stop_ray() -> None:
    _ray.close()


def slots(**compute: Any) -> int | str:
    """Slots, or why there are none."""
    try:
        return cluster.trial_slots(Compute(**compute))
    except UserError as error:
        return str(error)


def search_grid(world: Path, run: Path, arms_per_trial: int, **compute: Any) -> Searched:
    """Search a grid of five seeds."""
    grid = {"sampler": "grid", "arms_per_trial": arms_per_trial, "space": SEEDS}
    study = outer.study(world, grid, compute=compute)
    run.mkdir()
    study_file.dump(study, run / "study.yaml")
    card = prepare.prepare(study, world / "cache", lambda *_: None)
    write_card(run, card)
    arms = GridArms(study, lambda cell: ray_search.identify(study, card, cell), ())
    searcher = ray_search.CohortSearcher(study, run, world / "cache", arms, card, arms_per_trial)
    count = cluster.trial_slots(study.compute)
    ray_search.search(searcher, count, verbose=False)
    assert searcher.total == len(searcher.records)
    found = results.read_records(run).values()
    assert {one["arm"]["error"] for one in found} == {None}
    losses = {one["arm"]["number"]: [row["loss"] for row in one["epochs"]] for one in found}
    return Searched(count, len(list((run / "cohorts").iterdir())), losses)


class Driver:
    """A process with a local Ray as the command line starts it; other drivers may join that Ray."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self.pool = pool
        self.address: str = self.run(start_ray)
        self.cpus: float = self.run(cluster.free_cpus)[1]

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.pool.submit(function, *args, **kwargs).result(outer.PATIENCE)

    def wait_until_all_is_free(self) -> None:
        def all_free() -> bool:
            free, everything = self.run(cluster.free_cpus)
            return bool(free == everything)

        wait_until(all_free, "CPUs stay taken")


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in (cluster.QUIET | cluster.LOCAL).items():
            patch.setenv(name, value)
        one = Driver(pool)
        yield one
        one.run(stop_ray)


def wait_until(what: Callable[[], bool], message: str, patience: float = outer.PATIENCE) -> None:
    end = time.monotonic() + patience
    while not what():
        assert time.monotonic() < end, message
        time.sleep(0.2)


def records(run: Path) -> int:
    return len(list((run / "records").glob("*.json")))


def stop(process: Popen[str], run: Path, count: int, how: Callable[[Popen[str]], None]) -> str:
    """Wait for `count` records, stop the driver, and return what it said on stderr."""
    ready = f"no {count} records: {process.args}"
    wait_until(lambda: records(run) >= count or process.poll() is not None, ready)
    assert process.poll() is None, process.communicate()
    how(process)
    return process.communicate(timeout=outer.PATIENCE)[1]


def trials(run: Path) -> list[optuna.trial.FrozenTrial]:
    storage = open_journal(run / "optuna.journal")
    return optuna.load_study(study_name="tiny", storage=storage).trials


# One process, one Ray of its own ------------------------------------------------------------------


def test_a_study_goes_from_file_to_report(world: Path, tmp_path: Path) -> None:
    """A 2x2 grid, begun where a sample report lay, and beside another package of the same name."""
    other = tmp_path / "comkd_ray"
    other.mkdir()
    (other / "__init__.py").write_text("raise ImportError('not the code that was started')")
    run = tmp_path / "reports" / "tiny"
    run.mkdir(parents=True)
    for name in ("study.yaml", "report.html"):
        (run / name).write_text("sample")
    (run / "provenance.json").write_text(json.dumps({"sample": True}))
    outer.write_yaml(tmp_path / "tiny.yaml", outer.tree(world))

    ended = outer.comkd(["tune", "tiny.yaml", "--json"], world / "cache", tmp_path, PYTHONSAFEPATH="1")

    assert (ended.returncode, ended.stderr) == (0, "")
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    end = events[-1]
    assert (end["event"], end["arms"], end["failed"], end["left"]) == ("end", 4, 0, 0)
    assert "the sample that came with the source makes room for this study" in said(events)
    arms = results.read_arms(run)
    assert arms["status"].to_list() == ["complete"] * 4
    assert arms["number"].to_list() == [0, 1, 2, 3]
    cells = list(zip(arms["student.ifalign"], arms["student.edu_attention"], strict=True))
    assert cells == [(False, False), (False, True), (True, False), (True, True)]
    assert arms["epochs_done"].to_list() == [2] * 4
    assert len(results.read_epochs(run)) == 8
    assert end["best"]["val_harmonic_mean"] == arms["val_harmonic_mean"].max()
    assert end["report"] == str(run / "report.html")
    assert (run / "report.html").stat().st_size > 100_000
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["sample"] is False
    assert provenance["stages"].keys() >= {"pixels", "teacher", "bank", "search"}
    assert not (run / "ray").exists()
    study_file.load(run / "study.yaml")


def test_memory_is_probed_where_arms_run_and_sizes_the_cohorts(world: Path, tmp_path: Path) -> None:
    """With streamed images; the driver reads what the preparing worker measured, and writes down why."""
    outer.write_yaml(tmp_path / "tiny.yaml", outer.tree(world))
    auto = ["--set", "search.arms_per_trial=auto", "--set", "data.pixels=stream"]
    ended = outer.comkd(["tune", "tiny.yaml", "--json", *auto], world / "cache", tmp_path)

    assert (ended.returncode, ended.stderr) == (0, "")
    run = tmp_path / "reports" / "tiny"
    memory = read_memory(run)
    assert memory is not None
    assert memory.fits_more
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["data"]["pixels"] == "streamed"
    chosen = provenance["arms_per_trial"]
    assert "probed on" in chosen["because"]
    assert chosen["because"] in ended.stdout
    assert chosen["because"].split(" (")[0] in (run / "report.html").read_text()
    sizes = [len(json.loads(path.read_text())["arms"]) for path in sorted((run / "cohorts").iterdir())]
    assert sizes[0] == chosen["auto"]
    assert sum(sizes) == 4
    assert results.read_arms(run)["status"].to_list() == ["complete"] * 4


def prepare_beside(world: Path, run: Path, cache: Path, workers: int) -> dict[str, Any]:
    """The card that several preparing workers leave."""
    study = outer.study(world, compute={"cpus": 0.5})
    run.mkdir()
    study_file.dump(study, run / "study.yaml")
    ray_train.prepare(run, cache, 0.5, 0.0, workers)
    return asdict(read_card(run))


def test_several_preparing_workers_leave_the_card_that_one_leaves(
    driver: Driver, world: Path, tmp_path: Path
) -> None:
    cards = [driver.run(prepare_beside, world, tmp_path / f"{n}", tmp_path / f"cache-{n}", n) for n in (1, 3)]
    for card in cards:
        card.pop("stages")
    assert cards[0] == cards[1]
    states = sorted(path.name for path in (tmp_path / "3" / "progress").iterdir())
    assert states == ["prepare.0.json", "prepare.1.json", "prepare.2.json"]
    driver.wait_until_all_is_free()


# Where arms run -----------------------------------------------------------------------------------


def test_arms_have_the_same_numbers_in_the_actor_and_in_worker_groups(
    driver: Driver, world: Path, tmp_path: Path
) -> None:
    """One cohort of five arms; five cohorts in worker groups of one; one shared by two workers."""
    local = driver.run(search_grid, world, tmp_path / "local", 5, workers=0, cpus=1)
    assert local.cohorts == 1
    assert sorted(local.losses) == [0, 1, 2, 3, 4]
    assert len({tuple(losses) for losses in local.losses.values()}) == 5
    groups = driver.run(search_grid, world, tmp_path / "groups", 1, workers=1, cpus=1)
    assert groups.cohorts == 5
    driver.wait_until_all_is_free()
    shared = driver.run(search_grid, world, tmp_path / "shared", 5, workers=2, cpus=0.5)
    driver.wait_until_all_is_free()
    for other in (groups, shared):
        assert sorted(other.losses) == sorted(local.losses)
        for number, losses in local.losses.items():
            assert other.losses[number] == pytest.approx(losses, rel=1e-4)


def test_a_worker_group_may_take_every_cpu_there_is(driver: Driver, world: Path, tmp_path: Path) -> None:
    everything = driver.run(cluster.free_cpus)[1]
    whole = driver.run(search_grid, world, tmp_path / "whole", 5, workers=1, cpus=everything)
    assert (whole.slots, whole.cohorts, len(whole.losses)) == (1, 1, 5)


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        ({"cpus": 1e6}, "a worker needs 1e+06 CPU, 0 GPU on one node and can never run here (nodes: "),
        ({"cpus": 1, "gpus": 99}, "needs 1 CPU, 99 GPU on one node and can never run here"),
        ({"cpus": 1, "workers": 999}, "999 workers of 1 CPU, 0 GPU each can never run at once here"),
    ],
)
def test_a_cohort_that_can_never_run_is_refused_with_the_reason(
    driver: Driver, compute: Tree, words: str
) -> None:
    assert words in driver.run(slots, **compute)


def test_slots_are_what_fits(driver: Driver) -> None:
    everything = driver.run(cluster.free_cpus)[1]
    assert driver.run(slots, cpus=everything) == 1
    assert driver.run(slots, cpus=everything / 2) == 2
    assert driver.run(slots, cpus=everything / 4, workers=2) == 2


# Stopped on the way -------------------------------------------------------------------------------


def test_a_killed_driver_loses_nothing(world: Path, tmp_path: Path, driver: Driver) -> None:
    """SIGKILL after the first records of a TPE study, some of whose arms diverge; then --resume."""
    search = outer.tpe(12, [{"train.lr": 1e30}], space=WILD, arms_per_trial=2)
    outer.write_yaml(tmp_path / "tiny.yaml", outer.tree(world, search, train={"epochs": 3}))
    words, run = ["tune", "tiny.yaml", "--quiet", "--address", driver.address], tmp_path / "reports" / "tiny"

    process = outer.start(words, world / "cache", tmp_path, **cluster.LOCAL)
    stop(process, run, 2, lambda one: os.killpg(one.pid, signal.SIGKILL))
    driver.wait_until_all_is_free()
    before = {path.name: path.read_bytes() for path in (run / "records").glob("*.json")}
    assert 2 <= len(before) < 12
    assert not (run / "results").exists()
    ended = outer.comkd([*words, "--resume"], world / "cache", tmp_path, **cluster.LOCAL)

    assert ended.returncode == 3, ended.stderr
    for name, content in before.items():
        assert (run / "records" / name).read_bytes() == content
    arms = results.read_arms(run)
    assert len(arms) == arms["arm"].n_unique() == records(run) == 12
    wild = [rate == 1e30 for rate in arms["train.lr"]]
    assert True in wild
    assert [status == "failed" for status in arms["status"]] == wild
    assert {error for error in arms["error"] if error} == {"loss is not finite in epoch 2"}
    asked = [one for one in trials(run) if not {"lost", "same_as"} & one.user_attrs.keys()]
    assert Counter(one.state.name for one in trials(run)).keys() <= {"COMPLETE", "PRUNED", "FAIL"}
    assert {one.user_attrs["arm"] for one in asked} == set(arms["arm"])
    assert len(asked) == 12
    complete = {one.user_attrs["arm"]: one.value for one in asked if one.state.name == "COMPLETE"}
    sound = arms.filter(arms["status"] == "complete")
    assert complete == dict(zip(sound["arm"], sound["val_harmonic_mean"], strict=True))


def kill_actors_of(victim: int, run: Path) -> bool:
    """Kill the process of the latest cohort, if the arm of this seed is in it and it has begun."""
    orders = sorted((run / "cohorts").glob("*.json"))
    if not orders or not (run / "progress" / f"{orders[-1].stem}.0.json").exists():
        return False
    if all(one.overrides["train.seed"] != victim for one in read_job(orders[-1]).arms):
        return False
    actors = [
        one
        for one in psutil.process_iter(["cmdline"])
        if "ray::ImplicitFunc" in (one.info["cmdline"] or [""])[0]
    ]
    for actor in actors:
        actor.kill()
    return bool(actors)


def test_arms_that_break_harm_no_other(world: Path, tmp_path: Path, driver: Driver) -> None:
    """One diverges, one asks for 192 GB, the process of one dies whenever that arm is in it."""
    base = {"train.epochs": 2, "train.lr": 0.02, "student.prompt_length": 2}
    breaking = [{"train.epochs": 10**6}, {"train.lr": 1e30}, {"student.prompt_length": 10**9}]
    arms = [base | over | {"train.seed": seed} for seed, over in enumerate([*breaking, {}, {}, {}])]
    search = {"sampler": "list", "arms_per_trial": 6, "first": arms}
    compute = {"cpus": driver.cpus, "retries": 0}
    outer.write_yaml(tmp_path / "tiny.yaml", outer.tree(world, search, compute=compute))
    words, run = ["tune", "tiny.yaml", "--quiet", "--address", driver.address], tmp_path / "reports" / "tiny"
    process, kills = outer.start(words, world / "cache", tmp_path, **cluster.LOCAL), 0
    while process.poll() is None:
        kills += kill_actors_of(0, run)
        time.sleep(0.3)
    assert process.returncode == 3, process.communicate()
    assert kills >= 2
    found = results.read_arms(run)
    assert dict(zip(found["seed"], found["status"], strict=True)) == {
        1: "failed", 2: "failed", 3: "complete", 4: "complete", 5: "complete",
    }  # fmt: skip
    errors = [error or "" for error in found.sort("seed")["error"]]
    assert errors[0] == "loss is not finite in epoch 2"
    assert "memory" in errors[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_study_reports_what_it_has_and_goes_on(
    world: Path, tmp_path: Path, driver: Driver, number: signal.Signals
) -> None:
    grid = {"sampler": "grid", "arms_per_trial": 1, "space": SEEDS | outer.GRID}
    outer.write_yaml(tmp_path / "tiny.yaml", outer.tree(world, grid))
    words, run = ["tune", "tiny.yaml", "--quiet", "--address", driver.address], tmp_path / "reports" / "tiny"

    process = outer.start(words, world / "cache", tmp_path, **cluster.LOCAL)
    error = stop(process, run, 1, lambda one: one.send_signal(number))

    assert (process.returncode, error) == (130, "")
    first = results.read_arms(run)
    assert 1 <= len(first) < 20
    assert set(first["status"]) == {"complete"}
    assert (run / "report.html").exists()
    driver.wait_until_all_is_free()
    if number == signal.SIGTERM:
        return
    ended = outer.comkd([*words, "--resume"], world / "cache", tmp_path, **cluster.LOCAL)
    assert (ended.returncode, ended.stderr) == (0, "")
    arms = results.read_arms(run)
    assert arms["number"].to_list() == list(range(20))
    assert set(arms["status"]) == {"complete"}
    assert arms.filter(arms["arm"].is_in(first["arm"].implode())).select(first.columns).equals(first)


# How a search ends, goes on and begins again ------------------------------------------------------


class Command:
    """`comkd-ray tune tiny.yaml` on the Ray of the module, in a folder of its own."""

    def __init__(self, driver: Driver, world: Path, folder: Path, search: Tree) -> None:
        self.driver, self.world, self.folder = driver, world, folder
        self.run = folder / "reports" / "tiny"
        outer.write_yaml(folder / "tiny.yaml", outer.tree(world, search))

    def __call__(self, *words: str) -> tuple[int, list[Tree]]:
        """The exit code, and the events of stdout."""
        command = ["tune", "tiny.yaml", "--json", "--address", self.driver.address, *words]
        ended = outer.comkd(command, self.world / "cache", self.folder, **cluster.LOCAL)
        assert ended.returncode in (0, 2), ended.stderr
        return ended.returncode, [json.loads(line) for line in ended.stdout.splitlines()]


def said(events: list[Tree]) -> str:
    return "\n".join(event["text"] for event in events if event["event"] == "message")


def test_a_budget_ends_a_search_and_resuming_goes_on(driver: Driver, world: Path, tmp_path: Path) -> None:
    tune = Command(driver, world, tmp_path, outer.tpe(6, arms_per_trial=2))
    code, events = tune("--max-arms", "3")
    assert (code, events[-1]["arms"], events[-1]["left"]) == (0, 3, 3)
    assert events[-1]["stopped"].startswith("--max-arms 3: ")
    assert json.loads((tune.run / "provenance.json").read_text())["stopped"] == events[-1]["stopped"]
    code, events = tune("--resume")
    assert (code, events[-1]["arms"], events[-1]["left"], events[-1]["stopped"]) == (0, 6, 0, None)
    code, events = tune("--resume", "--add-arms", "2")
    assert (code, events[-1]["arms"], events[-1]["left"]) == (0, 8, 0)
    assert study_file.load(tune.run / "study.yaml").search.arms == 8
    code, events = tune("--resume")
    assert (code, events[-1]["arms"], events[-1]["left"]) == (0, 8, 0)
    assert len({one.user_attrs["start"] for one in trials(tune.run) if "start" in one.user_attrs}) == 3


def test_a_fork_begins_with_what_is_known(driver: Driver, world: Path, tmp_path: Path) -> None:
    tune = Command(driver, world, tmp_path, outer.tpe(4, arms_per_trial=2))
    assert tune()[0] == 0
    old = results.read_records(tune.run)
    wide = "search.space.train.lr={float: [0.001, 0.1], log: true}"
    code, events = tune("--fork", "wide", "--set", wide, "--set", "search.arms=2")
    assert (code, events[-1]["arms"], events[-1]["left"]) == (0, 6, 0)
    assert "search.space.train.lr.float: [0.003, 0.1] -> [0.001, 0.1]" in said(events)
    assert "of tiny, 4 arms are copied and 0 more are told to the sampler" in said(events)
    new = results.read_records(tune.run.parent / "wide")
    assert {arm: new[arm]["epochs"] for arm in old} == {arm: old[arm]["epochs"] for arm in old}
    assert sum("from" in record["arm"] for record in new.values()) == 4
    assert results.read_records(tune.run) == old
    code, events = tune("--fork", "wide", "--set", wide)
    assert code == 2


def test_damage_everywhere_is_named_and_made_good(driver: Driver, world: Path, tmp_path: Path) -> None:
    tune = Command(driver, world, tmp_path, outer.tpe(6, arms_per_trial=2))
    assert tune()[0] == 0
    before = results.read_records(tune.run)
    broken = sorted((tune.run / "records").iterdir())[2]
    broken.write_text("{")
    part = tune.run / "results" / "epochs" / "part-0.parquet"
    part.write_bytes(part.read_bytes()[:100])
    journal = tune.run / "optuna.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:10], b"\x00\x00\n", *lines[11:]]))
    code, events = tune("--resume")
    assert (code, events[-1]["arms"], events[-1]["left"]) == (0, 6, 0)
    for name in (broken.name, "results/epochs/part-0.parquet", "optuna.journal: damaged in line 11"):
        assert name in said(events)
    after = results.read_records(tune.run)
    kept = {arm: record for arm, record in before.items() if arm != broken.stem}
    assert {arm: after[arm] for arm in kept} == kept
    assert after.keys() == before.keys()
    assert set(results.read_epochs(tune.run)["arm"]) == set(after)


def test_a_search_has_two_objectives(driver: Driver, world: Path, tmp_path: Path) -> None:
    search = outer.tpe(6, sampler="nsga2", arms_per_trial=2, objectives=["objective", "trainable_parameters"])
    tune = Command(driver, world, tmp_path, search)
    code, events = tune()
    assert (code, events[-1]["arms"], events[-1]["left"]) == (0, 6, 0)
    assert [len(one.values) for one in trials(tune.run)] == [2] * 6
    assert "<h2>Front</h2>" in (tune.run / "report.html").read_text(encoding="utf-8")


def test_a_small_space_is_trained_whole_without_a_sampler(
    driver: Driver, world: Path, tmp_path: Path
) -> None:
    tune = Command(driver, world, tmp_path, outer.tpe(20, space=outer.GRID, arms_per_trial=4))
    code, events = tune()
    assert (code, events[-1]["arms"], events[-1]["left"]) == (0, 4, 0)
    assert not (tune.run / "optuna.journal").exists()


# Ablations ----------------------------------------------------------------------------------------

FLAGS: Tree = {"student.ifalign": [False, True], "student.edu_attention": [False, True]}


def ablation(folder: Path, world: Path, search: Tree, name: str = "tiny", **block: Any) -> Path:
    """A study file with an `ablate` block; two seeds of its 2x2 unless told otherwise."""
    own = {"design": "factorial", "factors": FLAGS, "seeds": 2} | block
    return outer.write_yaml(folder / f"{name}.yaml", outer.tree(world, search) | {"ablate": own})


def test_an_ablation_takes_the_cells_of_a_study_and_adds_seeds_to_open_claims(
    world: Path, tmp_path: Path, driver: Driver
) -> None:
    """Four arms are there already, a killed command goes on, and more seeds leave all records as they are."""
    grid = {"sampler": "grid", "arms_per_trial": 4, "space": {**outer.GRID, "train.seed": {"choice": [1]}}}
    ablation(tmp_path, world, grid)
    joined = ["tiny.yaml", "--quiet", "--address", driver.address]
    tuned = outer.comkd(["tune", *joined], world / "cache", tmp_path, **cluster.LOCAL)
    assert tuned.returncode == 0, tuned.stderr
    run = tmp_path / "reports" / "tiny-ablate"
    process = outer.start(["ablate", *joined], world / "cache", tmp_path, **cluster.LOCAL)
    stop(process, run, 6, lambda one: os.killpg(one.pid, signal.SIGKILL))
    driver.wait_until_all_is_free()
    before = {path.name: path.read_bytes() for path in (run / "records").glob("*.json")}
    ended = outer.comkd(["ablate", *joined], world / "cache", tmp_path, **cluster.LOCAL)
    assert ended.returncode == 0, ended.stderr
    arms = results.read_arms(run)
    assert arms["number"].to_list() == list(range(8))
    assert (arms["taken_from"].drop_nulls() == "tiny").sum() == 4
    for name, content in before.items():
        assert (run / "records" / name).read_bytes() == content
    words = ["ablate", *joined, "--until-decided", "--max-seeds", "4"]
    grown = outer.comkd(words, world / "cache", tmp_path, **cluster.LOCAL)
    assert grown.returncode == 0, grown.stderr
    more = results.read_arms(run)
    assert more["arm"].is_in(arms["arm"].implode()).sum() == 8
    assert set(more["seed"]) == {1, 2, 3, 4}
    assert "p at any look" in (run / "report.html").read_text()
    driver.wait_until_all_is_free()


def test_every_setting_is_re_tuned_with_one_ray_and_the_same_command_goes_on(
    world: Path, tmp_path: Path
) -> None:
    """A Ray of its own serves both searches and the cells; Ctrl-C between them loses nothing."""
    ablation(tmp_path, world, outer.tpe(6, arms_per_trial=2), factors={"student.ifalign": [False, True]})
    words, run = ["ablate", "tiny.yaml", "--retune", "3", "--quiet"], tmp_path / "reports" / "tiny-ablate"
    process = outer.start(words, world / "cache", tmp_path)
    first = run / "retune" / "00-ifalign-false"
    stop(process, first, 3, lambda one: one.send_signal(signal.SIGINT))
    assert process.returncode == 130
    ended = outer.comkd(words, world / "cache", tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    searches = [folder for folder in sorted((run / "retune").iterdir()) if folder.is_dir()]
    assert len(searches) == 2
    for folder in searches:
        arms = results.read_arms(folder)
        assert len(arms) == 3
        assert set(arms["seed"]) == {0}
    study = study_file.load(run / "study.yaml")
    assert study.ablate is not None
    assert len(study.ablate.retuned) == 2
    assert 4 <= len(results.read_arms(run)) <= 8
    assert "Fixed and re-tuned knobs, side by side" in (run / "report.html").read_text()
