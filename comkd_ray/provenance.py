"""Where numbers come from: versions, code state, machine, and what the run took."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

import comkd_ray
from comkd_ray.results import write_atomic

FILE = "provenance.json"
PACKAGES = (
    "torch", "open_clip_torch", "timm", "ray", "optuna", "polars", "plotly", "numpy", "scipy", "safetensors",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Python, comkd-ray, and what decides about numbers."""
    found = {"python": platform.python_version(), "comkd-ray": comkd_ray.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any] | None:
    """Commit of the source tree that this package runs from, if it is one."""
    source = Path(comkd_ray.__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(source), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        if not git("ls-files", "__init__.py"):
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "."))}
    except (OSError, subprocess.SubprocessError):
        return None


def machine(gpus: Sequence[str] = ()) -> dict[str, Any]:
    """Processor, cores, memory and GPUs of the driver's machine."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": list(gpus),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def command() -> str:
    """What was typed, without the path of the program."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def tree_memory() -> int:
    """Bytes that this process and its descendants hold, shared pages counted once (PSS)."""
    return memory_of(os.getpid())


def memory_of(pid: int, alone: bool = False) -> int:
    """Bytes that a process and its descendants hold, shared pages counted once (PSS); 0 if it is gone.

    alone: without the descendants.
    """
    total = 0
    try:
        root = psutil.Process(pid)
        family = [root] if alone else [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0
    for process in family:
        try:
            full = process.memory_full_info()
            total += getattr(full, "pss", full.rss)
        except psutil.Error:
            continue
    return total


def read(run: Path) -> dict[str, Any]:
    """What a run directory says of itself; empty where it says nothing readable."""
    try:
        found: dict[str, Any] = json.loads((run / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def update(run: Path, **entries: Any) -> None:
    """Add entries to the run's provenance."""
    write_atomic(run / FILE, json.dumps(read(run) | entries, indent=1).encode())
