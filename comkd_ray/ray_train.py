"""Ray Train around both training loops. The only room that imports ray.train.

Local mode (`num_workers=0`) runs the loop in the calling process; a group runs it in processes of
its own, each taking a share of the arms. The numbers are the same either way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from comkd_ray import jobs, memory_probe, study_file
from comkd_ray.config import Study
from comkd_ray.data.pixels import Progress
from comkd_ray.errors import UserError
from comkd_ray.material import Card, write_card
from comkd_ray.progress import Meter
from comkd_ray.results import Row
from comkd_ray.train import Share

Result = TypeVar("Result")
ERROR = "error.{}.txt"


def run_here(work: Callable[[], Result]) -> Result:
    """Train in this process: Train's local mode, which needs no cluster.

    What `work` returns or raises comes out.
    """
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    from comkd_ray import process

    process.set_up()
    logging.getLogger("ray.train").setLevel(logging.ERROR)  # it announces the mode every time
    results: list[Result] = []
    TorchTrainer(
        lambda config: results.append(work()),
        train_loop_config={},
        scaling_config=ScalingConfig(num_workers=0),
    ).fit()
    return results[0]


def run_local(path: Path, report: Callable[[Row], None]) -> None:
    """Train a cohort in this process; `report` is Tune's own, as Train's raises inside a trial."""
    run_here(partial(jobs.run_job, path, report))


def run_group(path: Path, callbacks: list[Any]) -> None:
    """Train a cohort in a worker group; `callbacks` carry its reports to Tune."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    job = jobs.read_job(path)
    resources = {"CPU": job.cpus, "GPU": job.gpus} if job.gpus else {"CPU": job.cpus}
    TorchTrainer(
        _cohort_loop,
        train_loop_config={"job": str(path)},
        torch_config=TorchConfig(backend="gloo"),  # only small Python objects are exchanged
        scaling_config=ScalingConfig(
            num_workers=job.workers, use_gpu=job.gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=job.cohort,
            storage_path=str(Path(job.run) / "ray"),
            callbacks=callbacks,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=3),
        ),
    ).fit()


def tune_teacher(study: Study, cache: Path, progress: Progress) -> str:
    """Stage I alone, in this process; returns the key of the teacher."""
    from comkd_ray import stage_one

    return run_here(partial(stage_one.tune_teacher, study, cache, progress)).key


def prepare_here(study: Study, cache: Path, progress: Progress) -> Card:
    """Stage I and the banks, in this process."""
    from comkd_ray import prepare

    return run_here(partial(prepare.prepare, study, cache, progress))


def prepare(run: Path, cache: Path, cpus: float, gpus: float, workers: int) -> None:
    """Stage I and the banks in workers of their own; leaves `material.json` in the run directory.

    All do the same: locks in the cache let one tune the teacher, and share the shards out. None waits for
    another, so each is a task in Train's local mode; a group would start processes more, and all at once. A
    task's process ends with it, and its models with the process. Should it be killed, it is tried once more.
    """
    import ray

    for old in run.glob(ERROR.format("*")):
        old.unlink()
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=1, max_retries=1)(_prepare_as)
    tasks = [task.remote(run, cache, max(1, int(cpus)), rank) for rank in range(workers)]
    try:
        ray.get(tasks)
    except ray.exceptions.RayError:  # one broke: the others end, and what a person can mend is said first
        for one in tasks:
            ray.cancel(one, force=True)
        _raise_told(run)
        raise
    _raise_told(run)


def _raise_told(run: Path) -> None:
    """Raise the UserError that a preparing worker met, if one did."""
    for error in sorted(run.glob(ERROR.format("*"))):
        raise UserError(error.read_text(encoding="utf-8"))


def _cohort_loop(config: dict[str, Any]) -> None:
    from ray import train

    context = train.get_context()
    share = Share(context.get_world_rank(), context.get_world_size(), _gather)
    jobs.run_job(Path(config["job"]), train.report, share)


def _gather(own: dict[str, Any]) -> list[dict[str, Any]]:
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [own]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return parts


def _prepare_as(run: Path, cache: Path, threads: int, rank: int) -> None:
    from comkd_ray import process

    process.set_up(threads)
    told = run / ERROR.format(rank)
    told.unlink(missing_ok=True)  # of a try before this one
    study, meter = study_file.load(run / "study.yaml"), Meter(run, f"prepare.{rank}")
    try:
        card = prepare_here(study, cache, meter)
        if rank == 0:
            write_card(run, card)
        if rank == 0 and study.search.arms_per_trial == "auto":  # here, as the driver may have no GPU
            meter("memory", 0, 1)
            memory_probe.probe(run, cache, threads)
            meter("memory", 1, 1)
    except UserError as error:  # a person's mistake is no crash: hand the words to the driver
        told.write_text(str(error), encoding="utf-8")
