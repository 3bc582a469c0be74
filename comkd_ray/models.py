"""open_clip models as the method needs them: frozen, float32, with their widths read from them.

Shapes: B images, C classes, T tokens, W width of a tower, D width of the joint space.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from comkd_ray.config import Tower
from comkd_ray.errors import UserError
from comkd_ray.study_tree import ASSETS

_LOAD_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, ImportError, AssertionError)


def asset_path(path: str) -> Path:
    """`assets:NAME` to its place inside the installed package; any other path as it is."""
    if path.startswith(ASSETS):
        return Path(str(resources.files("comkd_ray"))) / "assets" / path.removeprefix(ASSETS)
    return Path(path).expanduser()


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: str = "mixed") -> contextlib.AbstractContextManager[object]:
    """bfloat16 for matrix products on a GPU; float32 elsewhere (bf16 on most CPUs is far slower).

    precision: `train.precision`; `float16` rounds float32 by itself, so nothing is cast for it.
    """
    if device.type == "cuda" and precision == "mixed":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Clip:
    """A frozen open_clip model with what is needed to feed it."""

    name: str
    model: nn.Module
    tokenize: Callable[..., Tensor]
    """Texts to token ids `[len(texts), T]`, cut at T; `context_length` is another T."""
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def visual(self) -> nn.Module:
        """The image tower."""
        visual = self.model.visual
        assert isinstance(visual, nn.Module)
        return visual

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @cached_property
    def logit_scale(self) -> float:
        """exp of the model's own frozen logit scale, about 100 for CLIP (PAPER 5.1); asked for once."""
        scale = self.model.logit_scale
        assert isinstance(scale, Tensor)
        return float(scale.exp())

    @property
    def is_vit(self) -> bool:
        """Whether the image tower is open_clip's ViT, the kind that takes visual prompts."""
        from open_clip.transformer import VisionTransformer

        return isinstance(self.visual, VisionTransformer)

    @cached_property
    def width(self) -> int:
        """D, read from what the image tower returns. UserError where that is no vector, or fails."""
        size = self.image_size
        try:
            with torch.no_grad():
                features = self.visual(torch.zeros(1, 3, size, size, device=self.device))
        except RuntimeError as error:
            words = f"images of {size} pixels do not pass: {' '.join(str(error).split())[:200]}"
            raise UserError(f"{self.name}: image_size: {words}") from None
        if not isinstance(features, Tensor):
            raise UserError(f"{self.name}: its image tower returns more than one vector an image")
        return int(features.shape[-1])

    @property
    def image_parameters(self) -> int:
        """Parameters of the image tower."""
        return sum(parameter.numel() for parameter in self.visual.parameters())

    @cached_property
    def digest(self) -> str:
        """12 hex digits of weights, architecture, input and precision: what its features hang on."""
        heads = [part.num_heads for part in self.model.modules() if isinstance(part, nn.MultiheadAttention)]
        words = self.tokenize(["a photo of a cat."]).tolist()
        facts = (self.image_size, self.mean, self.std, repr(self.model), heads, words, self.device.type)
        sha = hashlib.sha256(repr(facts).encode())
        for key, value in sorted(self.model.state_dict().items()):
            sha.update(key.encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return sha.hexdigest()[:12]

    def prepare(self, pixels: Tensor) -> Tensor:
        """Images in 0..1 `[..., 3, S, S]` minus the model's mean, over its standard deviation."""
        mean, std = self._normalization
        return (pixels - mean) / std

    @cached_property
    def _normalization(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `[3, 1, 1]`, sent to the device once and not with every batch."""
        mean, std = torch.tensor([self.mean, self.std], device=self.device)[:, :, None, None]
        return mean, std

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Tensor:
        """Texts to unit features `[len(texts), D]`."""
        features = self.model.encode_text(self.tokenize(texts).to(self.device))  # type: ignore[operator]
        return nn.functional.normalize(features.float(), dim=-1)

    def encode_classes(self, classes: tuple[str, ...], templates: tuple[str, ...]) -> Tensor:
        """Zero-shot classifier `[C, D]`: the normalised mean over templates of unit text features."""
        rows = [self.encode_text([template.format(name) for template in templates]) for name in classes]
        return nn.functional.normalize(torch.stack([row.mean(0) for row in rows]), dim=-1)


def load_clip(tower: Tower, device: torch.device | None = None) -> Clip:
    """Load and freeze the model a study names. UserError for an unknown or unfitting one."""
    import open_clip

    name = model_name(tower.model)
    check_pretrained(tower)
    pretrained = str(asset_path(tower.pretrained)) if tower.pretrained else None
    with _clear_errors(tower):
        model = open_clip.create_model(
            name,
            pretrained=pretrained,
            precision="fp32",
            device="cpu",
            force_quick_gelu=_quick_gelu(name, tower.pretrained),
            force_image_size=forced_size(tower),
            require_pretrained=True,  # else open_clip only warns, and the weights are random
        )
    return _frozen(tower, name, model.to(device or default_device()))


@lru_cache(maxsize=8)
def blank_clip(tower: Tower) -> Clip:
    """The same without weights, on the meta device: its shapes. UserError as `load_clip`."""
    import open_clip

    name = model_name(tower.model)
    with _clear_errors(tower), _silence(), torch.device("meta"):
        model = open_clip.create_model(
            name, pretrained=None, device="meta", load_weights=False, force_image_size=forced_size(tower)
        )
    return _frozen(tower, name, model)


def _frozen(tower: Tower, name: str, model: nn.Module) -> Clip:
    """UserError where the image size does not fit."""
    import open_clip

    with _clear_errors(tower):
        tokenize = open_clip.get_tokenizer(name)
    preprocess = open_clip.get_model_preprocess_cfg(model)
    model.requires_grad_(False).eval()
    size = tower.image_size or _side(preprocess["size"])
    clip = Clip(tower.model, model, tokenize, size, preprocess["mean"], preprocess["std"])
    _check_size(tower.model, clip.is_vit, clip.image_size, _side(preprocess["size"]))
    return clip


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """open_clip warns of random weights; here there are none at all."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def model_name(model: str) -> str:
    """A study's name of a model as open_clip takes it. UserError for an unknown one."""
    import open_clip

    path = asset_path(model.removeprefix("local-dir:"))
    if model.startswith(ASSETS) or model.startswith("local-dir:"):
        if not (path / "open_clip_config.json").is_file():
            raise UserError(f"{model}: no open_clip_config.json in {path}")
        return f"local-dir:{path}"
    known = open_clip.list_models()
    if model in known or model.startswith("hf-hub:"):
        return model
    near = difflib.get_close_matches(model, known, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "see open_clip.list_models()"
    raise UserError(f"{model}: no model of open_clip has this name; {hint}")


def check_pretrained(tower: Tower) -> None:
    """A bare architecture needs weights; a folder or a hub model has its own, and would ignore others.

    UserError, also for a tag that open_clip does not know.
    """
    import open_clip

    name, pretrained = model_name(tower.model), tower.pretrained
    if name.startswith(("local-dir:", "hf-hub:")):
        if pretrained:
            raise UserError(f"{tower.model}: it carries its weights; leave out pretrained: {pretrained}")
        return
    tags = open_clip.list_pretrained_tags_by_model(name)
    known = ", ".join(tags) or "none is known"
    if not pretrained:
        raise UserError(f"{tower.model}: pretrained: which weights? A file, or a tag of open_clip: {known}")
    is_tag = bool(open_clip.get_pretrained_cfg(name, pretrained))
    if not is_tag and not asset_path(pretrained).is_file():
        raise UserError(f"{tower.model}: pretrained: {pretrained}: no such file, and no tag: {known}")


def _quick_gelu(name: str, pretrained: str | None) -> bool:
    """Whether the weights were trained with QuickGELU; open_clip only warns where the name is silent."""
    import open_clip

    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else None
    return bool(tag and tag.get("quick_gelu"))


@contextlib.contextmanager
def _clear_errors(tower: Tower) -> Iterator[None]:
    """open_clip's ways to fail, in one line: no such weights, other architecture, no network."""
    where = f"{tower.model}, pretrained: {tower.pretrained}"
    try:
        yield
    except (*_LOAD_ERRORS, SafetensorError, pickle.UnpicklingError) as error:
        if "state_dict" in str(error):
            last = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"{where}: the weights do not fit this architecture: {last}") from None
        raise UserError(f"{where}: cannot be loaded: {' '.join(str(error).split())[:300]}") from None


def _side(size: int | tuple[int, int]) -> int:
    return size if isinstance(size, int) else size[0]


def forced_size(tower: Tower) -> int | None:
    """The input size that open_clip makes positions for; a folder's are what they are."""
    return None if model_name(tower.model).startswith("local-dir:") else tower.image_size


def _check_size(model: str, is_vit: bool, size: int, native: int) -> None:
    """A ViT's positions are tied to its input size; a convolutional tower takes any size. UserError."""
    if is_vit and size != native:
        raise UserError(f"{model}: image_size: this ViT was made for {native} pixels, not {size}")
