"""A tiny world for the outer rooms: two CLIP models of two layers, four classes of coloured noise.

A whole study of it takes seconds on one CPU; everything in it is real, only small.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from comkd_ray import study_file
from comkd_ray.config import Study

Tree = dict[str, Any]

CLASSES = ("apple", "berry", "cherry", "dates")
HUES = {"apple": (220, 30, 30), "berry": (30, 30, 220), "cherry": (30, 200, 30), "dates": (200, 180, 20)}
SIDE = 32
PATIENCE = 600.0
"""Seconds after which a machine under load counts as hanging."""
GRID: Tree = {
    "student.ifalign": {"choice": [False, True]},
    "student.edu_attention": {"choice": [False, True]},
}
SPACE: Tree = {
    **GRID,
    "student.attention_scale": {"float": [0.01, 10.0], "log": True, "when": {"student.edu_attention": True}},
    "loss.temperature": {"float": [0.5, 4.0], "log": True},
    "train.lr": {"float": [0.003, 0.1], "log": True},
}


def clip_folder(folder: Path, seed: int, width: int, layers: int = 2) -> Path:
    """A CLIP with random weights in open_clip's `local-dir` form."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = {
        "embed_dim": width,
        "vision_cfg": {
            "image_size": SIDE, "patch_size": 16, "width": 32, "head_width": 16, "layers": layers,
        },
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }  # fmt: skip
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config)
    folder.mkdir(parents=True)
    card = {"model_cfg": config, "preprocess_cfg": {"size": SIDE}}
    (folder / "open_clip_config.json").write_text(json.dumps(card))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def photographs(root: Path, images: int = 10, classes: tuple[str, ...] = CLASSES) -> Path:
    """Class folders of coloured noise; the same pixels every time."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(images):
            noise = np.random.default_rng([label, number]).normal(0, 40, (SIDE, SIDE, 3))
            pixels = (np.array(HUES[name]) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")
    return root


def world(root: Path) -> Path:
    """Teacher, student and photographs in one folder."""
    clip_folder(root / "teacher", seed=1, width=24)
    clip_folder(root / "student", seed=2, width=16)
    photographs(root / "photographs")
    return root


def tree(root: Path, search: Tree | None = None, **sections: Tree) -> Tree:
    """A study of that world as plain values; a grid of four arms unless `search` says otherwise."""
    base: Tree = {
        "study": "tiny",
        "data": {"root": str(root / "photographs"), "side": SIDE, "shots": 2, "views": 2},
        "teacher": {
            "model": f"local-dir:{root / 'teacher'}",
            "prompt_length": 2, "prompt_depth": 2, "text_prompt_depth": 2,
            "epochs": 1, "average_mean": 1,
        },
        "student": {"model": f"local-dir:{root / 'student'}", "prompt_length": 2, "prompt_depth": 2},
        "train": {"epochs": 2, "batch_size": 8, "lr": 0.02},
        "search": search or {"sampler": "grid", "arms_per_trial": 2, "space": GRID},
        "compute": {"workers": 0, "cpus": 1},
    }  # fmt: skip
    return base | {name: base.get(name, {}) | values for name, values in sections.items()}


def tpe(arms: int, first: list[Tree] | None = None, **more: Any) -> Tree:
    """A `search` section that asks TPE."""
    return {"sampler": "tpe", "arms": arms, "startup_arms": 3, "first": first or [], "space": SPACE} | more


def study(root: Path, search: Tree | None = None, **sections: Tree) -> Study:
    """The same as a checked study."""
    return study_file.build(tree(root, search, **sections), "tiny")


def write_yaml(path: Path, content: Tree) -> Path:
    """A study file."""
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def environment(cache: Path, **more: str) -> dict[str, str]:
    """What a run in a process of its own sees: its own cache, one thread, no cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))}
    return kept | {"COMKD_CACHE": str(cache), "OMP_NUM_THREADS": "1"} | more


def start(words: list[str], cache: Path, folder: Path, **more: str) -> subprocess.Popen[str]:
    """`comkd-ray WORDS` in a process group of its own, in `folder`; `more` goes to its environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "comkd_ray.cli", *words],
        cwd=folder,
        env=environment(cache, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def comkd(words: list[str], cache: Path, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """`comkd-ray WORDS` to its end."""
    process = start(words, cache, folder, **more)
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def record(arm: str, value: float = 50.0, status: str = "complete", epochs: int = 2, **more: Any) -> Tree:
    """A record as `jobs.run_job` leaves it, as far as the search reads it."""
    rows = [{"arm": arm, "epoch": e, "loss": 1.0, "objective": value - epochs + e}
            for e in range(1, epochs + 1)]  # fmt: skip
    own = {"arm": arm, "status": status, "number": 0, "epochs_done": epochs}
    if status != "failed":
        own["objective"] = value
    return {"arm": own | more, "epochs": rows}
