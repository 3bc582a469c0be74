"""Pre-train the mini student: a 64 px ViT and a tiny text tower in one joint space.

What: an ``open_clip`` CLIP with open_clip's own ``VisionTransformer`` (patch 16, width 192,
6 layers, CLS token) and a two-layer text transformer of width 64, embedding into 256 numbers.

Why: the quickstart needs a student on which visual prompts act (a ViT) and whose embedding width
differs from the teacher's 512, small enough for a two-core computer.  No contrastively trained
CLIP of that size exists, so these are demo weights.

How: the joint space is a fixed linear projection (principal axes of the teacher's text features)
of the teacher's.  The text tower learns to reproduce the projected teacher text features.  The
image tower learns from Tiny-ImageNet photographs by four losses, averaged over random crops:

1. cross-entropy of the labels, the classes being the projected text features of their names;
2. KL divergence to the teacher's 1,000 ImageNet class probabilities, classes likewise;
3. one minus the cosine to the projected teacher image embedding;
4. one minus the cosine between a linear map of the embedding and the teacher's pooled features
   (the map is thrown away afterwards).

Where the data comes from: Tiny-ImageNet training images as parquet files with the columns label,
name, jpeg (64 px).  The last ten images of each class in each file are held out.  Class names come
from open_clip (ImageNet-1k) and timm (WordNet names of ImageNet-22k); Caltech101 gives nothing but
its class names.  Its photographs are used by ``--evaluate`` alone.

Commands (the first trained the shipped weights, the second prints their numbers)::

    python tools/pretrain_student.py --data tiny-imagenet-a.parquet tiny-imagenet-b.parquet \
        --image-teacher EFFICIENTNET_LITE0 --images 43520 --minutes 38
    python tools/pretrain_student.py --data tiny-imagenet-a.parquet tiny-imagenet-b.parquet \
        --evaluate

The image teacher was an EfficientNet-Lite0 in the mini teacher's joint space; by default the mini
teacher itself teaches.  Those 38 minutes held 2,270 steps of 128 images, a short run, for
demonstration.  More minutes give a better student.
With ``--steps`` in place of ``--minutes`` the schedule does not depend on the machine's speed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from safetensors.torch import save_file
from student_measures import (
    MEAN,
    PROMPT,
    STD,
    Photographs,
    cached,
    class_names,
    encode_prompts,
    load_clip,
    load_names,
    load_photographs,
    normalise,
    report,
    spell,
)
from torch import Tensor, nn

EMBED_DIM = 256
IMAGE_SIZE = 64
TEMPLATES = (
    PROMPT, "{}", "a {}", "a photo of the {}.", "a photo of many {}.", "a blurry photo of a {}.",
    "a close-up photo of a {}.", "a picture of a {}.", "an image of a {}.", "a painting of a {}.",
    "a sketch of a {}.", "a cartoon of a {}.",
)  # fmt: skip
MODEL_CONFIG = {
    "model_cfg": {
        "embed_dim": EMBED_DIM,
        "vision_cfg": {
            "image_size": IMAGE_SIZE, "patch_size": 16, "width": 192, "layers": 6,
            "head_width": 64, "mlp_ratio": 4.0,
        },
        "text_cfg": {
            "context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2,
        },
    },
    "preprocess_cfg": {
        "size": IMAGE_SIZE, "mode": "RGB", "mean": [MEAN] * 3, "std": [STD] * 3,
        "interpolation": "bicubic", "resize_mode": "shortest",
    },
}  # fmt: skip


@dataclass
class Targets:
    """What the teacher says of every photograph, and the class-name anchors of the losses."""

    pooled: Tensor
    logits: Tensor
    embedding: Tensor
    label_anchors: Tensor
    imagenet_anchors: Tensor


# ------------------------------------------------------------------------------ the teacher


@torch.inference_mode()
def teach_images(teacher: nn.Module, images: Tensor, size: int) -> dict[str, Tensor]:
    """Return the teacher's pooled features, class logits and embeddings of all images."""
    visual = teacher.visual.to(memory_format=torch.channels_last)
    found: dict[str, list[Tensor]] = {"pooled": [], "logits": [], "embedding": []}
    for batch in images.split(64):
        larger = F.interpolate(batch.float(), size=size, mode="bicubic", antialias=True)
        pixels = normalise(larger.clamp(0, 255)).contiguous(memory_format=torch.channels_last)
        pooled = visual.trunk(pixels)
        found["pooled"].append(pooled.half())
        found["logits"].append(visual.head.mlp.fc1(pooled)[:, :1000].half())
        found["embedding"].append(visual.head(pooled).half())
    return {name: torch.cat(parts) for name, parts in found.items()}


def joint_projection(features: Tensor) -> Tensor:
    """Return the orthonormal 512 -> 256 projection that keeps most of the text features."""
    _, axes = torch.linalg.eigh(features.T @ features)  # eigenvalues ascend
    return axes[:, -EMBED_DIM:].flip(1).contiguous()


# ------------------------------------------------------------------------------ the text tower


@dataclass
class PromptSet:
    """Prompts, the projected teacher features of each, and which are held out by name."""

    tokens: Tensor
    targets: Tensor
    held_out: Tensor


def other_prompts(names: list[str], seed: int) -> list[str]:
    """Return one prompt a name: the plain one for every other name, else any template."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(0, len(TEMPLATES), (len(names),), generator=generator)
    picks[::2] = 0
    return [TEMPLATES[pick].format(name) for pick, name in zip(picks, names, strict=True)]


def train_text(model: nn.Module, prompts: PromptSet, epochs: int) -> None:
    """Train the text tower to reproduce the projected teacher text features."""
    parameters = [value for name, value in model.named_parameters() if "visual" not in name]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01, fused=True)
    train = torch.nonzero(~prompts.held_out).squeeze(1)
    total = epochs * len(train) // 256
    for epoch in range(epochs):
        model.train()
        for step, rows in enumerate(train[torch.randperm(len(train))].split(256)):
            set_rate(optimizer, 2e-3, (epoch * len(train) // 256 + step) / total)
            features = F.normalize(model.encode_text(prompts.tokens[rows]), dim=-1)
            loss = 1 - (features * prompts.targets[rows]).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"text epoch {epoch + 1}: {text_cosines(model, prompts)}", flush=True)


@torch.inference_mode()
def text_cosines(model: nn.Module, prompts: PromptSet) -> str:
    """Return the mean cosine to the teacher on trained and on held-out prompts."""
    model.eval()
    parts = []
    for title, mask in (("trained", ~prompts.held_out), ("held-out names", prompts.held_out)):
        rows = torch.nonzero(mask).squeeze(1)[:4000]
        features = F.normalize(model.encode_text(prompts.tokens[rows]), dim=-1)
        cosine = (features * prompts.targets[rows]).sum(-1).mean()
        parts.append(f"{title} {cosine:.3f} (n={len(rows)})")
    return "cosine " + ", ".join(parts)


# ------------------------------------------------------------------------------ the image tower


def set_rate(optimizer: torch.optim.Optimizer, peak: float, progress: float) -> None:
    """Set the learning rate: linear warm-up over the first 3%, then a cosine to zero."""
    progress = min(progress, 1.0)
    rate = peak * min(progress / 0.03, 0.5 * (1 + math.cos(math.pi * progress)))
    for group in optimizer.param_groups:
        group["lr"] = max(rate, 1e-6)


def augment(images: Tensor) -> Tensor:
    """Cut random crops (40% to 100% of the area), flip half, vary brightness and contrast."""
    count = len(images)
    scale = torch.empty(count).uniform_(0.4, 1).sqrt()
    stretch = torch.empty(count).uniform_(-0.28, 0.28).div(2).exp()
    width, height = (scale * stretch).clamp(max=1), (scale / stretch).clamp(max=1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = width * torch.randint(0, 2, (count,)).mul(2).sub(1)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (1 - width) * torch.empty(count).uniform_(-1, 1)
    theta[:, 1, 2] = (1 - height) * torch.empty(count).uniform_(-1, 1)
    grid = F.affine_grid(theta, [count, 3, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    pixels = F.grid_sample(normalise(images), grid, padding_mode="border", align_corners=False)
    contrast = torch.empty(count, 1, 1, 1).uniform_(0.75, 1.25)
    return pixels * contrast + torch.empty(count, 1, 1, 1).uniform_(-0.2, 0.2)


class ImageLoss(nn.Module):
    """The four losses of the image tower; its parameters are thrown away afterwards."""

    def __init__(self, targets: Targets, labels: Tensor) -> None:
        """Keep the targets; start both softmax scales at 20."""
        super().__init__()
        self.targets, self.labels = targets, labels
        self.to_pooled = nn.Linear(EMBED_DIM, targets.pooled.shape[1])
        self.log_scales = nn.Parameter(torch.full((2,), math.log(20.0)))

    def forward(self, raw: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed loss of one batch and its four parts."""
        targets = self.targets
        unit = F.normalize(raw, dim=-1)
        label_scale, class_scale = self.log_scales.exp().clamp(max=100)
        label_logits = label_scale * unit @ targets.label_anchors.T
        class_logits = class_scale * unit @ targets.imagenet_anchors.T
        said = F.log_softmax(targets.logits[rows].float(), dim=-1)
        pooled = targets.pooled[rows].float()
        parts = torch.stack([
            F.cross_entropy(label_logits, self.labels[rows], label_smoothing=0.1),
            F.kl_div(F.log_softmax(class_logits, dim=-1), said, log_target=True,
                     reduction="batchmean"),
            1 - (unit * targets.embedding[rows].float()).sum(-1).mean(),
            1 - F.cosine_similarity(self.to_pooled(raw), pooled, dim=-1).mean(),
        ])  # fmt: skip
        return (parts * parts.new_tensor([1.0, 1.0, 2.0, 2.0])).sum(), parts.detach()


def batches(count: int, size: int) -> Iterator[Tensor]:
    """Yield shuffled batches of row numbers for ever."""
    while True:
        yield from torch.randperm(count).split(size)


def train_image(model: nn.Module, images: Tensor, loss: ImageLoss, options: argparse.Namespace) -> int:
    """Train the image tower for ``--steps`` steps or ``--minutes`` minutes; return the steps."""
    parameters = [*model.visual.parameters(), *loss.parameters()]
    decayed = [value for value in parameters if value.ndim > 1]
    others = [value for value in parameters if value.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    model.train()
    start, mean = time.monotonic(), torch.zeros(4)
    for step, rows in enumerate(batches(len(images), options.batch_size)):
        passed = (time.monotonic() - start) / 60
        progress = step / options.steps if options.steps else passed / options.minutes
        if progress >= 1:
            return step
        set_rate(optimizer, options.rate, progress)
        total, parts = loss(model.visual(augment(images[rows])), rows)
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        mean.lerp_(parts, 0.01 if step else 1.0)
        if step % 200 == 0:
            losses = " ".join(f"{part:.3f}" for part in mean.tolist())
            print(f"step {step}, {passed:.1f} min, losses {losses}", flush=True)
        if step % 1000 == 999:
            torch.save(model.visual.state_dict(), options.work / "visual.pt")
    raise AssertionError("the batches never end")


# ------------------------------------------------------------------------------ the recipe


def write_student(model: nn.Module, folder: Path) -> None:
    """Write the config and the weights in half precision."""
    model.logit_scale.data.fill_(math.log(100.0))
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "open_clip_model.safetensors"
    save_file(state, weights)
    weights.chmod(0o644)  # safetensors leaves it readable by the owner alone
    text = json.dumps(MODEL_CONFIG, indent=1) + "\n"
    (folder / "open_clip_config.json").write_text(text, encoding="utf-8")


def run_text(
    model: nn.Module, prompts: list[str], features: Tensor, others: list[str],
    projection: Tensor, options: argparse.Namespace,
) -> None:  # fmt: skip
    """Add the other names' prompts, of which every 20th never trains, and train the text tower."""
    teacher, _, tokenizer = load_clip(options.teacher)
    more = other_prompts(others, options.seed)
    found = cached(options.work / "others.pt", lambda: {"text": encode_prompts(teacher, tokenizer, more)})[
        "text"
    ]
    every = [*prompts, *more]
    tokens = torch.cat([tokenizer(every[row : row + 999]) for row in range(0, len(every), 999)])
    projected = F.normalize(torch.cat([features, found]) @ projection, dim=-1)
    held_out = torch.arange(len(every)) - len(prompts)
    held_out = (held_out >= 0) & (held_out % 20 == 0)
    train_text(model, PromptSet(tokens, projected, held_out), options.text_epochs)
    torch.save(model.state_dict(), options.work / "text.pt")


def run_image(
    model: nn.Module, photographs: Photographs, anchors: dict[str, Tensor], projection: Tensor,
    options: argparse.Namespace,
) -> None:  # fmt: skip
    """Let the teacher see every photograph and train the image tower."""
    shuffle = torch.Generator().manual_seed(options.seed)
    rows = torch.nonzero(~photographs.held_out).squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=shuffle)][: options.images]
    images, labels = photographs.images[rows], photographs.labels[rows]
    teacher, _, _ = load_clip(options.image_teacher)
    found = cached(options.work / "images.pt", lambda: teach_images(teacher, images, options.teacher_size))
    embedding = F.normalize(found["embedding"].float() @ projection, dim=-1).half()
    pooled = found["pooled"] - found["pooled"].float().mean(0).half()
    loss = ImageLoss(Targets(pooled, found["logits"], embedding, **anchors), labels)
    steps = train_image(model, images, loss, options)
    torch.save(model.visual.state_dict(), options.work / "visual.pt")
    print(f"image tower: {steps} steps of {options.batch_size} images")


def pretrain(options: argparse.Namespace) -> None:
    """Run the stages asked for; each leaves its result in the work folder."""
    torch.manual_seed(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    photographs = load_photographs(options.data)
    names = class_names(photographs, load_names(options.caltech))
    teacher, _, tokenizer = load_clip(options.teacher)
    prompts = [template.format(name) for name in names[0] for template in TEMPLATES]
    core = cached(options.work / "core.pt", lambda: {"text": encode_prompts(teacher, tokenizer, prompts)})[
        "text"
    ]
    projection = joint_projection(core)
    kept = (core @ projection).square().sum(1).mean()
    print(f"joint space: {len(core)} prompts, kept energy {kept:.4f}", flush=True)
    mean = F.normalize((core @ projection).view(len(names[0]), len(TEMPLATES), -1).mean(1), dim=-1)
    place = {name: row for row, name in enumerate(names[0])}
    anchors = {
        "label_anchors": mean[[place[spell(name)] for name in photographs.names]],
        "imagenet_anchors": mean[[place[spell(name)] for name in IMAGENET_CLASSNAMES]],
    }
    model = open_clip.CLIP(**MODEL_CONFIG["model_cfg"])
    if "text" in options.stages:
        run_text(model, prompts, core, names[1], projection, options)
    if "image" in options.stages:
        run_image(model, photographs, anchors, projection, options)
    if "write" in options.stages:
        model.load_state_dict(torch.load(options.work / "text.pt"))
        model.visual.load_state_dict(torch.load(options.work / "visual.pt"))
        write_student(model, options.output)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    assets = Path(__file__).resolve().parent.parent / "comkd_ray" / "assets"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="parquet files")
    parser.add_argument("--teacher", type=Path, default=assets / "mini_teacher")
    parser.add_argument("--image-teacher", type=Path, default=assets / "mini_teacher")
    parser.add_argument("--caltech", type=Path, default=assets / "caltech20")
    parser.add_argument("--output", type=Path, default=assets / "mini_student")
    parser.add_argument("--work", type=Path, default=Path("work"), help="cache and checkpoints")
    stages = ["text", "image", "write"]
    parser.add_argument("--stages", nargs="+", choices=stages, default=stages)
    parser.add_argument("--teacher-size", type=int, default=96, help="the teacher's input side")
    parser.add_argument("--images", type=int, default=None, help="use this many (default: all)")
    parser.add_argument("--minutes", type=float, default=45.0, help="image training, wall clock")
    parser.add_argument("--steps", type=int, default=0, help="image training, overrides --minutes")
    parser.add_argument("--text-epochs", type=int, default=18)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3, help="the image tower's peak rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--evaluate", action="store_true", help="only measure the student")
    return parser.parse_args()


def main() -> None:
    """Pre-train the student, or measure it."""
    options = parse()
    torch.set_num_threads(options.threads)
    if options.evaluate:
        report(options.output, load_photographs(options.data), options.caltech)
    else:
        pretrain(options)


if __name__ == "__main__":
    main()
