"""Whether a data set on disk is the published one: what is there, what is missing, whether counts agree."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from comkd_ray.config import Data
from comkd_ray.data import datasets, splits
from comkd_ray.data.datasets import PARTS, ROWS, TEST, TRAIN, VAL, Row
from comkd_ray.data.folders import Progress
from comkd_ray.data.layouts import Listing
from comkd_ray.errors import UserError

SHOWN = 5
"""Missing images that are named."""

Counts = dict[str, int | None]


@dataclass
class Inspection:
    """What was found in a root; `faults` is empty where all is right."""

    dataset: str
    root: str
    there: dict[str, bool]
    """Files and folders that CoOp's layout asks for."""
    split: str = ""
    """Where the parts come from, as a report would say it."""
    images: int = 0
    """Listed images."""
    missing: int = 0
    first_missing: list[str] = field(default_factory=list)
    found: Counts = field(default_factory=dict)
    """classes, train, val, test, test_base, test_novel, and `all` for a split of our own; empty where
    nothing could be read."""
    published: Counts = field(default_factory=dict)
    """The same by PAPER section 6; None where nothing was published, or a split of our own cannot agree."""
    faults: list[str] = field(default_factory=list)
    """One line each."""

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self) | {"right": not self.faults}


def inspect(data: Data, root: Path, progress: Progress) -> Inspection:
    """Look at one of the 15 data sets of `ROWS`, as far as its files can be read."""
    row = ROWS[data.dataset]
    found = Inspection(data.dataset, str(root), {name: (root / name).exists() for name in _asked(row)})
    try:
        listing = datasets.list_images(data, root, progress)
        absent = datasets.missing_images(data, root, listing, progress)
    except UserError as error:
        found.faults.append(str(error))
        return found
    found.split, found.images = listing.split, len(listing.paths)
    own = row.layout == "split file" and not (root / row.split).is_file()
    found.missing, found.first_missing = len(absent), absent[:SHOWN]
    if absent:
        found.faults.append(
            f"{len(absent):,} of {found.images:,} listed images are missing, the first is {absent[0]}"
        )
    try:
        datasets.check_classes(listing)
    except UserError as error:
        found.faults.append(str(error))
    found.found, found.published = _count(listing, row), _published(row)
    if own:  # it can agree in classes and in the sum of all images, not in parts
        total = sum(found.published[part] or 0 for part in PARTS)
        found.published = dict.fromkeys(found.published) | {"classes": row.classes, "all": total}
        found.found["all"] = len(listing.paths)
    for name, published in found.published.items():
        if published is not None and published != found.found[name]:
            found.faults.append(f"{name}: {found.found[name]:,} found, {published:,} published")
    return found


def _asked(row: Row) -> list[str]:
    """Files and folders of a layout, relative to the root."""
    lists = [row.split]
    if row.layout == "aircraft":
        lists = ["variants.txt", *(f"images_variant_{part}.txt" for part in PARTS)]
    return [*lists, *row.images]


def _count(listing: Listing, row: Row) -> Counts:
    """Images a part and, in the test part, a half; training images held out for validation count as such."""
    train, val, test = np.bincount(listing.parts, minlength=len(PARTS)).tolist()
    if row.layout == "imagenet":
        train, val = train + val, None
    base = splits.base_count(len(listing.classes))
    in_base = int((listing.labels[listing.parts == TEST] < base).sum())
    return {
        "classes": len(listing.classes),
        PARTS[TRAIN]: train,
        PARTS[VAL]: val,
        PARTS[TEST]: test,
        "test_base": in_base,
        "test_novel": test - in_base,
    }


def _published(row: Row) -> Counts:
    base, novel = row.halves or (None, None)
    parts = {PARTS[TRAIN]: row.train, PARTS[VAL]: row.val, PARTS[TEST]: row.test}
    return {"classes": row.classes, **parts, "test_base": base, "test_novel": novel}
