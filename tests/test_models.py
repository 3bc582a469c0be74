"""open_clip models: read as they are, frozen, and refused in one line where they do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from comkd_ray.config import Tower
from comkd_ray.errors import UserError
from comkd_ray.models import Clip, asset_path, blank_clip, load_clip

CPU = torch.device("cpu")
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
TinyClip = Callable[[str], Clip]


@pytest.fixture
def folder(clip_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny student, to be damaged."""
    return shutil.copytree(clip_folders["student"], tmp_path / "student")


def load(folder: Path, **values: object) -> Clip:
    return load_clip(Tower.model_validate({"model": f"local-dir:{folder}"} | values), CPU)


def refusal(**values: object) -> str:
    with pytest.raises(UserError) as error:
        load_clip(Tower.model_validate(values), CPU)
    message = str(error.value)
    assert "\n" not in message
    return message


# What is read -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "width", "is_vit", "scale"), [("student", 16, True, 40), ("conv", 20, False, 50)]
)
def test_widths_and_kind_are_read_from_the_model(
    tiny_clip: TinyClip, kind: str, width: int, is_vit: bool, scale: float
) -> None:
    clip = tiny_clip(kind)
    assert clip.width == width
    assert clip.is_vit == is_vit
    assert clip.image_size == 32
    assert clip.logit_scale == pytest.approx(scale)
    assert clip.image_parameters == sum(p.numel() for p in clip.visual.parameters()) > 10_000


def test_a_model_comes_frozen_in_float32_and_evaluating(tiny_clip: TinyClip) -> None:
    for kind in ("student", "conv"):
        model = tiny_clip(kind).model
        assert not any(p.requires_grad or p.dtype != torch.float32 for p in model.parameters())
        assert not any(module.training for module in model.modules())


def test_pixels_are_prepared_with_the_numbers_of_the_model(tiny_clip: TinyClip) -> None:
    pixels = torch.rand(2, 3, 32, 32)
    prepared = tiny_clip("student").prepare(pixels)
    for channel, (mean, std) in enumerate([(0.5, 0.12), (0.4, 0.1), (0.3, 0.08)]):
        assert_close(prepared[:, channel], (pixels[:, channel] - mean) / std)


def test_text_features_are_unit_vectors(tiny_clip: TinyClip) -> None:
    features = tiny_clip("student").encode_text(["coal", "a photo of the sea"])
    assert features.shape == (2, 16)
    assert_close(features.norm(dim=1), torch.ones(2))


def test_class_features_are_the_mean_over_templates_made_unit(tiny_clip: TinyClip) -> None:
    clip = tiny_clip("student")
    features = clip.encode_classes(("coal", "sea"), ("a {}.", "no {}.", "{}"))
    for row, name in zip(features, ("coal", "sea"), strict=True):
        texts = clip.encode_text([f"a {name}.", f"no {name}.", name])
        assert_close(row, F.normalize(texts.sum(0), dim=0))


def test_a_convolutional_tower_takes_any_size(clip_folders: dict[str, Path]) -> None:
    clip = load(clip_folders["conv"], image_size=64)
    assert clip.image_size == 64
    assert clip.width == 20


# Identity ---------------------------------------------------------------------------------------


def test_the_digest_is_the_same_wherever_the_model_lies(folder: Path, tiny_clip: TinyClip) -> None:
    assert load(folder).digest == tiny_clip("student").digest


def test_the_digest_changes_with_one_weight_the_size_or_the_colours(
    folder: Path, clip_folders: dict[str, Path]
) -> None:
    digests = {load(folder).digest}
    weights = load_file(folder / WEIGHTS)
    weights["visual.proj"][0, 0] += 1e-3
    save_file(weights, folder / WEIGHTS)
    digests.add(load(folder).digest)
    config = json.loads((folder / CONFIG).read_text())
    config["preprocess_cfg"]["mean"] = [0.5, 0.4, 0.31]
    (folder / CONFIG).write_text(json.dumps(config))
    digests.add(load(folder).digest)
    digests |= {load(clip_folders["conv"], image_size=size).digest for size in (32, 64)}
    assert len(digests) == 5


# What is refused --------------------------------------------------------------------------------


def test_an_unknown_name_comes_with_the_nearest_ones() -> None:
    assert "no model of open_clip has this name; did you mean ViT-B-16" in refusal(model="ViT-B-61")


def test_a_name_like_no_other_comes_with_the_list() -> None:
    assert "open_clip.list_models()" in refusal(model="qqqq")


def test_an_architecture_without_weights_is_refused() -> None:
    """open_clip would only warn, and the teacher would be random numbers."""
    assert "pretrained: which weights?" in (message := refusal(model="ViT-B-16"))
    assert "openai" in message


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert "cannot be loaded" in refusal(model=f"local-dir:{folder}")


def test_weights_beside_a_model_that_has_its_own_are_refused(folder: Path) -> None:
    """open_clip would ignore them."""
    assert "carries its weights" in refusal(model=f"local-dir:{folder}", pretrained="openai")


def test_an_unknown_tag_is_refused() -> None:
    words = "ViT-B-16: pretrained: openay: no such file, and no tag: openai, laion"
    assert words in refusal(model="ViT-B-16", pretrained="openay")


def test_a_folder_is_no_file_of_weights(folder: Path) -> None:
    assert "no such file, and no tag" in refusal(model="ViT-B-16", pretrained=str(folder))


@pytest.mark.parametrize(("tower", "words"), [
    (Tower(model="coca_ViT-B-32", pretrained="laion2b_s13b_b90k"), "returns more than one vector an image"),
    (Tower(model="RN50", pretrained="openai", image_size=16), "image_size: images of 16 pixels do not pass"),
])  # fmt: skip
def test_a_tower_without_a_width_is_told_in_one_line(tower: Tower, words: str) -> None:
    with pytest.raises(UserError, match=words):
        _ = blank_clip(tower).width


def test_weights_of_another_architecture_are_told_in_one_line(
    folder: Path, clip_folders: dict[str, Path]
) -> None:
    shutil.copy(clip_folders["teacher"] / WEIGHTS, folder / WEIGHTS)
    message = refusal(model=f"local-dir:{folder}")
    assert "the weights do not fit this architecture: size mismatch for" in message


def test_missing_weights_are_not_left_random(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["visual.proj"]
    save_file(weights, folder / WEIGHTS)
    message = refusal(model=f"local-dir:{folder}")
    assert 'the weights do not fit this architecture: Missing key(s) in state_dict: "visual.proj"' in message


def test_a_file_that_is_cut_off_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    assert "cannot be loaded" in refusal(model=f"local-dir:{folder}")


@pytest.mark.parametrize("config", ["{", '{"model_cfg": {"embed_dim": 3, "vision_cfg": {"nonsense": 1}}}'])
def test_a_damaged_configuration_is_refused(folder: Path, config: str) -> None:
    (folder / CONFIG).write_text(config)
    assert "cannot be loaded" in refusal(model=f"local-dir:{folder}")


@pytest.mark.parametrize("model", ["local-dir:/nowhere", "assets:nowhere"])
def test_a_folder_that_is_no_model_is_refused(model: str) -> None:
    assert "no open_clip_config.json" in refusal(model=model)


def test_a_vit_of_another_size_is_refused(folder: Path) -> None:
    message = refusal(model=f"local-dir:{folder}", image_size=64)
    assert "image_size: this ViT was made for 32 pixels, not 64" in message


def test_assets_lie_in_the_package() -> None:
    import comkd_ray

    assert asset_path("assets:one/two") == Path(comkd_ray.__file__).parent / "assets" / "one" / "two"
    assert asset_path("~/weights.pt") == Path.home() / "weights.pt"
