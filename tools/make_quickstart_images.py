"""Make the quickstart's photographs: a small, deterministic subset of Caltech101.

What: 20 classes of Caltech101 in CoOp's layout (``101_ObjectCategories/<class>/*.jpg`` beside
``split_zhou_Caltech101.json``), at most 40 / 10 / 20 images a class for train / val / test.  Every
image keeps the membership that it has in the published split, every class its published name; the
labels become 0..19 in the published order, so that the first ten classes are the base classes and
the last ten the novel ones.

Why: the quickstart must run out of the box, offline and in minutes, on real photographs.  The
classes hold look-alikes (leopard and cougar face, crab and crayfish, cup and ewer, ketch and
schooner, flamingo and ibis, lotus and sunflower; chair is a base class and Windsor chair a novel
one), so that a classifier has something to get wrong.

Where the data comes from: Caltech 101 (Li, Andreetto, Ranzato, Perona; CaltechDATA D1.20086,
CC BY 4.0) and CoOp's ``split_zhou_Caltech101.json`` (MIT), both in one folder.

Command::

    python tools/make_quickstart_images.py --source DATA/caltech-101 \
        --output comkd_ray/assets/caltech20
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from PIL import Image

SPLIT_FILE = "split_zhou_Caltech101.json"
IMAGE_FOLDER = "101_ObjectCategories"
CLASSES = (
    "leopard", "butterfly", "chair", "cougar_face", "crab",
    "crayfish", "cup", "dragonfly", "elephant", "ewer",
    "flamingo", "ibis", "kangaroo", "ketch", "llama",
    "lotus", "schooner", "scorpion", "sunflower", "windsor_chair",
)  # fmt: skip
IMAGES_PER_CLASS = {"train": 40, "val": 10, "test": 20}
SHORT_SIDE = 96
JPEG_QUALITY = 84

Entry = tuple[str, int, str]


def spread(items: list[str], count: int) -> list[str]:
    """Return at most ``count`` items, evenly spread over the list (neighbours look alike)."""
    if len(items) <= count:
        return items
    return [items[index * len(items) // count] for index in range(count)]


def select(split: dict[str, list[Entry]]) -> dict[str, list[Entry]]:
    """Pick the subset's entries and renumber their labels 0..19 in the published order."""
    labels = {name: label for entries in split.values() for _, label, name in entries}
    ordered = sorted(CLASSES, key=labels.__getitem__)
    subset: dict[str, list[Entry]] = {}
    for part, count in IMAGES_PER_CLASS.items():
        subset[part] = []
        for new_label, name in enumerate(ordered):
            paths = sorted(path for path, _, other in split[part] if other == name)
            subset[part] += [(path, new_label, name) for path in spread(paths, count)]
    return subset


def shrink(source: Path, target: Path) -> None:
    """Write ``source`` to ``target`` with its short side at most SHORT_SIDE pixels."""
    with Image.open(source) as opened:
        image = opened.convert("RGB")
    scale = SHORT_SIDE / min(image.size)
    if scale < 1:
        width, height = (max(SHORT_SIDE, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target, "JPEG", quality=JPEG_QUALITY, optimize=True)


def make_subset(source: Path, output: Path) -> dict[str, list[Entry]]:
    """Write the whole subset under ``output``, replacing what was there."""
    split = json.loads((source / SPLIT_FILE).read_text(encoding="utf-8"))
    subset = select(split)
    shutil.rmtree(output / IMAGE_FOLDER, ignore_errors=True)
    for entries in subset.values():
        for path, _, _ in entries:
            shrink(source / IMAGE_FOLDER / path, output / IMAGE_FOLDER / path)
    text = json.dumps(subset, separators=(",", ":")).replace("],[", "],\n[")
    (output / SPLIT_FILE).write_text(text + "\n", encoding="utf-8")
    return subset


def main() -> None:
    """Parse the command line, make the subset and print its size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="Caltech101 in CoOp's layout")
    parser.add_argument("--output", type=Path, default=Path("comkd_ray/assets/caltech20"))
    arguments = parser.parse_args()
    subset = make_subset(arguments.source, arguments.output)
    size = sum(path.stat().st_size for path in arguments.output.rglob("*.jpg"))
    counts = ", ".join(f"{part} {len(entries)}" for part, entries in subset.items())
    print(f"{arguments.output}: {counts}; {size / 1e6:.1f} MB of JPEG")


if __name__ == "__main__":
    main()
