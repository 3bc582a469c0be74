"""Data sets as one table of rows: every image with its label and its part.

`open_dataset(data, root)` reads one of the 15 data sets of `ROWS` in CoOp's layout (PAPER section 6), a
folder of class folders, or any folder with a split file in CoOp's form. Whatever is wrong with the files is
said here, once, before anything is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from comkd_ray.config import Data
from comkd_ray.data import folders, layouts, raw, splits
from comkd_ray.data.folders import Progress
from comkd_ray.data.layouts import Listing
from comkd_ray.errors import UserError

PARTS = splits.PARTS
TRAIN, VAL, TEST = splits.TRAIN, splits.VAL, splits.TEST


@dataclass(frozen=True, slots=True)
class ImageTable:
    """Every image of a data set; rows of `paths`, `labels` and `parts` belong together."""

    root: Path
    """Folder that the paths are relative to."""
    paths: tuple[str, ...]
    """Relative, with `/`, each only once."""
    labels: NDArray[np.int64]
    """[N]"""
    parts: NDArray[np.int8]
    """[N] TRAIN, VAL or TEST"""
    classes: tuple[str, ...]
    """Names as prompts use them, by label."""
    split: str
    """One line for the report: where the parts come from."""

    def select(self, part: int) -> NDArray[np.int64]:
        """Indices of the images of a part, ascending."""
        return np.flatnonzero(self.parts == part)

    @property
    def test_only(self) -> bool:
        """Whether there is nothing to train on: the data set was published for testing (PAPER 6.12-6.15)."""
        return bool((self.parts == TEST).all())


@dataclass(frozen=True, slots=True)
class Row:
    """A published data set: where it lies, how many images it has, and how a prompt names its classes."""

    folder: str
    """Name that CoOp gives to the folder of the data set."""
    images: tuple[str, ...]
    """Image folders inside it."""
    split: str
    """File inside it that tells classes or parts."""
    classes: int
    train: int | None
    """Images; None where the part was not published."""
    val: int | None
    test: int
    halves: tuple[int, int] | None
    """Test images of base and of novel classes, where published."""
    template: str
    """Prompt of zero-shot classification."""
    layout: Literal["split file", "aircraft", "imagenet", "wnid folders", "index folders"] = "split file"
    raw: raw.Reader | None = None
    """Reads the download, where a split of our own may be drawn (6.17)."""

    @property
    def home(self) -> str:
        """Folder inside the root that listed paths are relative to (6.16)."""
        return self.images[0] if len(self.images) == 1 else ""


CALTECH = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
EUROSAT = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}
_PHOTO = "a photo of a {}."

ROWS: Mapping[str, Row] = {  # PAPER 6.1-6.15, in that order
    # folder, image folders, split file | classes, train, val, test, halves of test | template
    "imagenet": Row(
        "imagenet", ("images/train", "images/val"), layouts.CLASS_NAMES,
        1000, 1_281_167, None, 50_000, (25_000, 25_000), _PHOTO, "imagenet"),
    "caltech101": Row(
        "caltech-101", ("101_ObjectCategories",), "split_zhou_Caltech101.json",
        100, 4_128, 1_649, 2_465, (1_549, 916), _PHOTO,
        raw=raw.class_folders("101_ObjectCategories", ("BACKGROUND_Google", "Faces_easy"), CALTECH)),
    "oxford_pets": Row(
        "oxford_pets", ("images",), "split_zhou_OxfordPets.json",
        37, 2_944, 736, 3_669, (1_881, 1_788), "a photo of a {}, a type of pet.", raw=raw.pets),
    "stanford_cars": Row(
        "stanford_cars", ("cars_train", "cars_test"), "split_zhou_StanfordCars.json",
        196, 6_509, 1_635, 8_041, (4_002, 4_039), _PHOTO, raw=raw.cars),
    "oxford_flowers": Row(
        "oxford_flowers", ("jpg",), "split_zhou_OxfordFlowers.json",
        102, 4_093, 1_633, 2_463, (1_053, 1_410), "a photo of a {}, a type of flower.", raw=raw.flowers),
    "food101": Row(
        "food-101", ("images",), "split_zhou_Food101.json",
        101, 50_500, 20_200, 30_300, (15_300, 15_000), "a photo of {}, a type of food.",
        raw=raw.class_folders("images")),
    "fgvc_aircraft": Row(
        "fgvc_aircraft", ("images",), "images_variant_{train,val,test}.txt",
        100, 3_334, 3_333, 3_333, (1_666, 1_667), "a photo of a {}, a type of aircraft.", "aircraft"),
    "sun397": Row(
        "sun397", ("SUN397",), "split_zhou_SUN397.json",
        397, 15_880, 3_970, 19_850, (9_950, 9_900), _PHOTO, raw=raw.sun397),
    "dtd": Row(
        "dtd", ("images",), "split_zhou_DescribableTextures.json",
        47, 2_820, 1_128, 1_692, (864, 828), "{} texture.", raw=raw.class_folders("images")),
    "eurosat": Row(
        "eurosat", ("2750",), "split_zhou_EuroSAT.json",
        10, 13_500, 5_400, 8_100, (4_200, 3_900), "a centered satellite photo of {}.",
        raw=raw.class_folders("2750", renamed=EUROSAT)),
    "ucf101": Row(
        "ucf101", ("UCF-101-midframes",), "split_zhou_UCF101.json",
        101, 7_639, 1_898, 3_783, (1_934, 1_849), "a photo of a person doing {}.", raw=raw.ucf101),
    "imagenet_v2": Row(
        "imagenetv2", ("imagenetv2-matched-frequency-format-val",), layouts.CLASS_NAMES,
        1000, None, None, 10_000, None, _PHOTO, "index folders"),
    "imagenet_sketch": Row(
        "imagenet-sketch", ("images",), layouts.CLASS_NAMES,
        1000, None, None, 50_889, None, _PHOTO, "wnid folders"),
    "imagenet_a": Row(
        "imagenet-adversarial", ("imagenet-a",), layouts.CLASS_NAMES,
        200, None, None, 7_500, None, _PHOTO, "wnid folders"),
    "imagenet_r": Row(
        "imagenet-rendition", ("imagenet-r",), layouts.CLASS_NAMES,
        200, None, None, 30_000, None, _PHOTO, "wnid folders"),
}  # fmt: skip


def open_dataset(data: Data, root: Path, progress: Progress = folders.silent) -> ImageTable:
    """The checked table of a data set.

    `root` is `data.root` as a path; `data.split_seed` matters only where no parts are given.
    """
    listing = list_images(data, root, progress)
    if absent := missing_images(data, root, listing, progress):
        raise UserError(
            f"{listing.listed_by}: {len(absent)} of {len(listing.paths)} listed images are missing, "
            f"the first is {listing.root / absent[0]}; the download may be incomplete"
        )
    check_classes(listing)
    return table_of(listing)


def table_of(listing: Listing) -> ImageTable:
    """The table of a listing that is known to be right."""
    one = listing
    return ImageTable(one.root, one.paths, one.labels, one.parts, one.classes, one.split)


def list_images(data: Data, root: Path, progress: Progress) -> Listing:
    """What the files of a data set say; listed images may still be missing."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; root must be the folder of the data set")
    row = ROWS.get(data.dataset)
    if data.make_split and (row is None or row.raw is None):
        raise UserError(f"data.make_split: {data.dataset} takes none; its parts are given. Remove the key")
    if row is None:
        if data.split is None:
            return layouts.class_folders(root, data.split_seed, progress)
        return layouts.split_file(root, "", data.split)
    _check_place(data, root, row)
    match row.layout:
        case "split file" if row.raw is not None and not (root / row.split).is_file():
            return raw.own_split(root, row.home, row.raw, data.split_seed)
        case "split file":
            return layouts.split_file(root, row.home, row.split)
        case "aircraft":
            return layouts.aircraft(root, row.home)
        case "imagenet":
            return layouts.imagenet(root, data.split_seed, progress)
        case "wnid folders":
            return layouts.wnid_folders(root, row.home, progress)
        case "index folders":
            return layouts.index_folders(root, row.home, progress)


def _check_place(data: Data, root: Path, row: Row) -> None:
    """The split file and the image folders are there; a root one folder too high is the common mistake."""
    absent = [images for images in row.images if not (root / images).is_dir()]
    if absent and (root / row.folder / absent[0]).is_dir():
        raise UserError(f"{root}: holds the data set; data.root is its folder: {root / row.folder}")
    if row.layout == "split file" and not data.make_split and not (root / row.split).is_file():
        raise UserError(
            f"{root / row.split}: no such split file; CoOp's docs link to it: {splits.SOURCES}. "
            "--set data.make_split=true (`data check`: --make-split) draws a split of our own, "
            "which no published number compares with"
        )
    if absent:
        raise UserError(f"{root / absent[0]}: no such folder; put the images of the data set there")


def missing_images(data: Data, root: Path, listing: Listing, progress: Progress) -> list[str]:
    """Listed images that are not there, relative to `listing.root`."""
    if listing.listed_by is None:
        return []
    row = ROWS.get(data.dataset)
    home = root / row.home if row else root
    homes = [str((root / images).relative_to(home)) for images in row.images] if row else [""]
    return folders.missing(listing.root, homes, listing.paths, listing.listed_by, progress)


def check_classes(listing: Listing) -> None:
    """Every class is in every part: else its accuracy, or its training, would be of nothing."""
    root, classes, labels, parts = listing.root, listing.classes, listing.labels, listing.parts
    if len(classes) < 2:
        raise UserError(f"{root}: only one class; a classifier needs at least two")
    seen: dict[str, int] = {}
    for label, name in enumerate(classes):
        if seen.setdefault(name, label) != label and not listing.has_wnids:
            raise UserError(f"{root}: two classes are called '{name}'; rename one of them")
    needed = PARTS[TEST:] if (parts == TEST).all() else PARTS
    for part in needed:
        counts = np.bincount(labels[parts == PARTS.index(part)], minlength=len(classes))
        if not counts.all():
            name = classes[int(np.argmin(counts))]
            raise UserError(
                f"{root}: class '{name}' has no {part} image; every class needs images in {', '.join(needed)}"
            )
