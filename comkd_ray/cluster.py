"""Reaching a Ray cluster, and what fits on it. The only room that starts or leaves Ray.

Without an address a local Ray starts, on loopback sockets and with the dashboard: Ray Train frees
the resources of a worker group that died only where the State API answers. An existing cluster is
joined as it is; its resources are never set.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

from comkd_ray.config import Compute
from comkd_ray.errors import UserError

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a report waits for the controller's next look
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # compute.gpus: 0 means no GPU, also where one is
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own swallows Ctrl-C and returns as if it were done
}
LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # sockets on loopback only
    "RAY_AUTH_MODE": "token",
}
HOME = Path(__file__).parent.parent
"""Where this package lies. Ray lets its workers import from the driver's working directory before all else:
in a clone they would run the clone's code whatever is installed. So it is started from here."""
OBJECT_STORE = 200_000_000  # bytes; nothing large goes through it
DRIVER = {"memory": 1}  # of a trial that waits for its group, which may need every CPU of the node


def set_environment(address: str | None) -> None:
    """What Ray reads when it is first imported: call this before. What a person set stays."""
    alone = not (address or os.environ.get("RAY_ADDRESS"))
    for name, value in (QUIET | LOCAL if alone else QUIET).items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def connect(address: str | None, verbose: bool) -> Iterator[None]:
    """Join the cluster at `address` (or $RAY_ADDRESS), else start a local Ray; leave it at the end.

    Inside another such block nothing happens: several runs of one command share its Ray.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")

    level = logging.INFO if verbose else logging.ERROR
    if not verbose:
        warnings.filterwarnings("ignore", module=r"ray\.")
    try:
        with contextlib.chdir(HOME):
            if address is None:
                ray.init(
                    address="local",
                    include_dashboard=True,
                    log_to_driver=verbose,
                    logging_level=level,
                    object_store_memory=OBJECT_STORE,
                )
            else:
                ray.init(address=address, log_to_driver=verbose, logging_level=level)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"Ray at {address or 'this machine'}: {' '.join(str(error).split())[:300]}") from None
    for name in ("ray.tune", "ray.train", "ray"):
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        ray.shutdown()


def workers(compute: Compute) -> int:
    """Processes of a cohort's worker group; 0: it trains in the Tune actor itself."""
    if compute.workers == "auto":
        return 1 if compute.gpus > 0 else 0
    return compute.workers


def trial_slots(compute: Compute) -> int:
    """Cohorts that run at once. UserError for a cohort that can never run, with the reason."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    need = {"CPU": compute.cpus, "GPU": compute.gpus}
    per_node = [
        min(math.floor(node.get(kind, 0) / amount + 1e-9) for kind, amount in need.items() if amount > 0)
        for node in nodes
    ]
    if not any(per_node):
        have = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes)
        raise UserError(
            f"compute: a worker needs {compute.cpus:g} CPU, {compute.gpus:g} GPU on one node and can never"
            f" run here (nodes: {have}); lower compute.cpus or compute.gpus"
        )
    group = workers(compute) or 1
    slots = sum(per_node) // group
    if slots == 0:
        raise UserError(
            f"compute.workers: {group} workers of {compute.cpus:g} CPU, {compute.gpus:g} GPU each can never"
            f" run at once here: {sum(per_node)} fit"
        )
    return slots


def node_count() -> int:
    """Nodes of the cluster."""
    import ray

    return sum(bool(node["Alive"]) for node in ray.nodes())


def check_storage(folder: Path) -> None:
    """Every node must see the run directory and the cache. UserError names the node that does not."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    probe = folder / f".probe-{uuid.uuid4().hex}"
    folder.mkdir(parents=True, exist_ok=True)
    probe.write_text("comkd-ray", encoding="utf-8")

    @ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
    def sees() -> bool:
        return probe.is_file() and probe.read_text(encoding="utf-8") == "comkd-ray"

    try:
        tasks = {
            node["NodeManagerHostname"]: sees.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote()
            for node in nodes
        }
        for name, task in tasks.items():
            if not ray.get(task, timeout=120):
                raise UserError(f"node {name} cannot see {folder}; use a mount that all nodes share")
    finally:
        probe.unlink(missing_ok=True)


def free_cpus() -> tuple[float, float]:
    """(free, all) CPUs of the cluster."""
    import ray

    return ray.available_resources().get("CPU", 0.0), ray.cluster_resources().get("CPU", 0.0)
