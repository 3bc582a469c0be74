"""Load the mini student's data and models, and measure a student.

``pretrain_student.py`` is the program; this module holds what its training and its ``--evaluate``
share: the photographs, the open_clip folders, zero-shot accuracy and linear probes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import polars as pl
import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor, nn

HELD_OUT_PER_CLASS = 10
PROMPT = "a photo of a {}."
MEAN, STD = 0.4980392156862745, 0.5019607843137255
SPLIT_FILE = "split_zhou_Caltech101.json"

Tokenizer = Callable[[list[str]], Tensor]


@dataclass
class Photographs:
    """Tiny-ImageNet in memory: 64 px images, labels, class names and the held-out marks."""

    images: Tensor
    labels: Tensor
    names: list[str]
    held_out: Tensor


def load_photographs(files: list[Path]) -> Photographs:
    """Decode the parquet files and mark the last images of each class in each file."""
    frames = [pl.read_parquet(file) for file in files]
    held_out = []
    for frame in frames:
        from_end = frame.select(pl.col("label").cum_count(reverse=True).over("label"))
        held_out.append(from_end.to_series().to_numpy() <= HELD_OUT_PER_CLASS)
    table = pl.concat(frames)
    images = [np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in table["jpeg"]]
    names = dict(zip(table["label"].to_list(), table["name"].to_list(), strict=True))
    return Photographs(
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(table["label"].to_numpy().astype(np.int64)),
        [names[label] for label in range(len(names))],
        torch.from_numpy(np.concatenate(held_out)),
    )


def normalise(images: Tensor) -> Tensor:
    """Turn 0..255 pixels into the towers' input."""
    return (images.float() / 255 - MEAN) / STD


def load_clip(folder: Path) -> tuple[nn.Module, Callable, Tokenizer]:
    """Return the model, its preprocessing and its tokenizer from an open_clip folder."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{folder}")


@torch.inference_mode()
def encode_prompts(model: nn.Module, tokenizer: Tokenizer, prompts: list[str]) -> Tensor:
    """Return the unit text features of the prompts."""
    parts = [prompts[start : start + 256] for start in range(0, len(prompts), 256)]
    features = torch.cat([model.encode_text(tokenizer(part)) for part in parts])
    return F.normalize(features, dim=-1)


def spell(name: str) -> str:
    """Write a class name as words."""
    return name.replace("_", " ")


def class_names(photographs: Photographs, caltech_names: list[str]) -> tuple[list[str], list[str]]:
    """Return the names of the data sets' classes, and the other WordNet names."""
    core = [*photographs.names, *IMAGENET_CLASSNAMES, *caltech_names]
    core = list(dict.fromkeys(spell(name) for name in core))
    lemmas = ImageNetInfo("imagenet22k").label_descriptions(detailed=False)
    others = dict.fromkeys(lemma.split(",")[0] for lemma in lemmas)
    known = {name.lower() for name in core}
    return core, [name for name in others if name.lower() not in known]


def cached(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return what ``make`` returns, from the file where a run before left it."""
    if not path.exists():
        torch.save(make(), path)
    return torch.load(path)


@torch.inference_mode()
def image_features(model: nn.Module, images: Tensor, size: int = 256) -> Tensor:
    """Return the unit image features of normalised or of 0..255 images."""
    parts = []
    for batch in images.split(size):
        pixels = normalise(batch) if batch.dtype == torch.uint8 else batch
        parts.append(F.normalize(model.encode_image(pixels), dim=-1))
    return torch.cat(parts)


def probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], decay: float) -> float:
    """Return the test accuracy of a logistic regression on frozen, standardised features."""
    mean, spread = train[0].mean(0), train[0].std(0) + 1e-6
    inputs, tests = (train[0] - mean) / spread, (test[0] - mean) / spread
    linear = nn.Linear(inputs.shape[1], int(train[1].max()) + 1)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(linear(inputs), train[1]) + decay * linear.weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return accuracy(linear(tests), test[1])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the top-1 accuracy in per cent."""
    return 100 * (logits.argmax(-1) == labels).float().mean().item()


def load_split(folder: Path, part: str, preprocess: Callable) -> tuple[Tensor, Tensor]:
    """Return the images and labels of one part of a set in CoOp's layout."""
    entries = json.loads((folder / SPLIT_FILE).read_text(encoding="utf-8"))[part]
    images = []
    for path, _, _ in entries:
        with Image.open(folder / "101_ObjectCategories" / path) as image:
            images.append(preprocess(image.convert("RGB")))
    return torch.stack(images), torch.tensor([label for _, label, _ in entries])


def load_names(folder: Path) -> list[str]:
    """Return the class names of a set in CoOp's layout, in label order."""
    entries = json.loads((folder / SPLIT_FILE).read_text(encoding="utf-8"))["test"]
    return [name for _, name in sorted({(label, name) for _, label, name in entries})]


def report(folder: Path, photographs: Photographs, caltech: Path) -> None:
    """Print the measured numbers of the student in ``folder``."""
    model, preprocess, tokenizer = load_clip(folder)
    features = image_features(model, photographs.images)
    held = photographs.held_out
    train = (features[~held], photographs.labels[~held])
    test = (features[held], photographs.labels[held])
    report_scores("Tiny-ImageNet held-out", (model, tokenizer, photographs.names), train, test)
    parts = [load_split(caltech, part, preprocess) for part in ("train", "test")]
    train, test = ((image_features(model, images), labels) for images, labels in parts)
    report_scores("caltech20 test", (model, tokenizer, load_names(caltech)), train, test)


def report_scores(
    title: str,
    text: tuple[nn.Module, Tokenizer, list[str]],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
) -> None:
    """Print zero-shot and linear-probe accuracy on one data set."""
    model, tokenizer, names = text
    prompts = [PROMPT.format(spell(name)) for name in names]
    zero_shot = accuracy(test[0] @ encode_prompts(model, tokenizer, prompts).T, test[1])
    linear = probe(train, test, 1e-4)
    size = f"n={len(test[1])}, {len(names)} classes, probe trained on {len(train[1])}"
    print(f"{title}: zero-shot {zero_shot:.1f}, linear probe {linear:.1f} ({size})", flush=True)
