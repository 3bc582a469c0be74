"""Shared fixtures: the smallest CLIP pair that has everything, and photographs that a child could tell apart.

The models are built by open_clip itself, saved as it saves them and loaded as a study loads them.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, by whichever test imports it first

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from comkd_ray.config import Study
    from comkd_ray.material import Card, Material
    from comkd_ray.models import Clip

Tree = dict[str, Any]
IMAGE_SIZE = 32
COLOURS = {"coal": (30, 30, 30), "grass": (40, 160, 50), "lemon": (230, 210, 40), "sea": (40, 70, 200)}
PARTS = ["train"] * 8 + ["val"] * 5 + ["test"] * 5  # of every class
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TOWERS: dict[str, Tree] = {
    "student": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16},
    },
    "teacher": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 48, "layers": 4, "head_width": 16},
    },
    "conv": {
        "embed_dim": 20,
        "vision_cfg": {
            "timm_model_name": "test_efficientnet",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 32,
        },
    },
}
SCALES = {"student": 40, "teacher": 50, "conv": 50}  # exp(logit_scale)
SEEDS = {"student": 0, "teacher": 5, "conv": 0}  # teachers that begin badly and can learn


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything on the CPU in float32, also where there is a GPU."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def sharpen(model: Any, kind: str) -> None:
    """Make a random CLIP tell images and words apart: as it is born, they all look alike to it."""
    towers = [model.transformer, *([] if kind == "conv" else [model.visual.transformer])]
    model.logit_scale.data.fill_(math.log(SCALES[kind]))
    model.token_embedding.weight.data.mul_(30)
    for tower in towers:
        for parameter in tower.parameters():
            if parameter.dim() == 2:
                parameter.data.mul_(2)


@pytest.fixture(scope="session")
def save_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """save_clip("student" | "teacher" | "conv", seed=0, folder=None) -> folder of a random CLIP."""

    def save(kind: str, seed: int = 0, folder: Path | None = None) -> Path:
        import open_clip
        import torch
        from safetensors.torch import save_file

        folder = folder or tmp_path_factory.mktemp(kind)
        config = TOWERS[kind] | {"text_cfg": TEXT}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = open_clip.CLIP(**config)
            sharpen(model, kind)
        preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.12, 0.1, 0.08]}
        written = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
        (folder / "open_clip_config.json").write_text(written)
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        return folder

    return save


@pytest.fixture(scope="session")
def clip_folders(save_clip: Callable[..., Path]) -> dict[str, Path]:
    """One folder for each kind of tiny CLIP."""
    return {kind: save_clip(kind, SEEDS[kind]) for kind in TOWERS}


@pytest.fixture(scope="session")
def tiny_clip(clip_folders: dict[str, Path]) -> Callable[[str], Clip]:
    """tiny_clip("student" | "teacher" | "conv") -> that model, loaded on the CPU."""
    import torch

    from comkd_ray.config import Tower
    from comkd_ray.models import load_clip

    loaded: dict[str, Clip] = {}

    def load(kind: str) -> Clip:
        if kind not in loaded:
            tower = Tower(model=f"local-dir:{clip_folders[kind]}")
            loaded[kind] = load_clip(tower, torch.device("cpu"))
        return loaded[kind]

    return load


def photograph(label: int, index: int) -> Image.Image:
    """One colour a class, with noise and a brightness of its own."""
    rng = np.random.default_rng([label, index])
    colour = np.array(list(COLOURS.values())[label]) * rng.uniform(0.7, 1.1)
    noise = rng.normal(0, 40, (36, 40, 3))
    return Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """root/{train,val,test}/<class>/*.png of 4 classes, of which coal and grass are base."""
    root = tmp_path_factory.mktemp("photographs")
    for label, name in enumerate(COLOURS):
        for index, part in enumerate(PARTS):
            path = root / part / name / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            photograph(label, index).save(path)
    return root


@pytest.fixture(scope="session")
def make_study(clip_folders: dict[str, Path], image_folder: Path) -> Callable[..., Study]:
    """make_study({"train.lr": 0.1}) -> the tiny study with that value in place."""
    from comkd_ray import study_file

    def make(overrides: dict[str, Any] | None = None) -> Study:
        tree: Tree = {
            "study": "tiny",
            "data": {"root": str(image_folder), "side": 40, "shots": 4, "views": 2},
            "teacher": {
                "model": f"local-dir:{clip_folders['teacher']}",
                "prompt_length": 2,
                "prompt_depth": 3,
                "text_prompt_depth": 2,
                "epochs": 4,
                "lr": 0.02,
                "keep": "best",  # tests change the epochs, and an average must lie inside them
            },
            "student": {
                "model": f"local-dir:{clip_folders['student']}",
                "prompt_length": 2,
                "prompt_depth": 2,
            },
            "train": {"epochs": 2, "batch_size": 12, "lr": 0.05, "warmup_lr": 0.01},
            "search": {"arms": 1, "space": {"loss.temperature": {"float": [0.5, 4.0]}}},
        }
        for key, value in (overrides or {}).items():
            node = tree
            *parents, last = key.split(".")
            for name in parents:
                node = node.setdefault(name, {})
            node[last] = value
        return study_file.build(tree, "test")

    return make


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests of a session share, as studies do."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def prepared(cache: Path) -> Iterator[Callable[[Study], tuple[Card, Material]]]:
    """prepared(study) -> its card and its material, made once in the shared cache, on the CPU."""
    import torch

    from comkd_ray.material import open_material
    from comkd_ray.prepare import prepare

    made: dict[str, tuple[Card, Material]] = {}

    def make(study: Study) -> tuple[Card, Material]:
        key = study.model_dump_json(exclude={"study", "note", "search", "compute", "loss", "train"})
        if key not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.cuda, "is_available", lambda: False)
                card = prepare(study, cache, lambda *_: None)
                made[key] = card, open_material(study, card, cache)
        return made[key]

    yield make
    made.clear()
