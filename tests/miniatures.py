"""The 15 published data sets in miniature, as their downloads lie on disk: few classes, tiny images."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.io import savemat

REAL = Path(os.environ.get("COMKD_TEST_DATA", "no-real-data"))
"""Folder of real copies (`caltech-101/`, `pacs/`); tests that read them are skipped where there is none."""
PER_CLASS = 10
"""Images a class; where there is an official test part, the last 4 are in it."""
OFFICIAL = 4


class Photo(NamedTuple):
    """An image of a miniature."""

    path: str
    """As a split file writes it."""
    label: int
    name: str
    """As a prompt writes it."""


@lru_cache
def jpeg() -> bytes:
    file = BytesIO()
    Image.new("RGB", (4, 3), (200, 30, 30)).save(file, "JPEG")
    return file.getvalue()


def put(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(jpeg())


def write(file: Path, lines: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def is_official(index: int) -> bool:
    return index >= PER_CLASS - OFFICIAL


def class_folders(root: Path, images: str, names: Mapping[str, str], also: Sequence[str] = ()) -> list[Photo]:
    """`names` are folders, in the order of their labels, and what prompts call them."""
    photos = [
        Photo(f"{folder}/{folder}_{i:04}.jpg", label, name)
        for label, (folder, name) in enumerate(names.items())
        for i in range(PER_CLASS)
    ]
    put(root / images, *(photo.path for photo in photos), *(f"{folder}/1.jpg" for folder in also))
    return photos


def caltech101(root: Path) -> list[Photo]:
    names = {"Faces": "face", "Leopards": "leopard", "airplanes": "airplane", "wild_cat": "wild cat"}
    return class_folders(root, "101_ObjectCategories", names, ["BACKGROUND_Google", "Faces_easy"])


def food101(root: Path) -> list[Photo]:
    names = {"apple_pie": "apple pie", "baby_back_ribs": "baby back ribs", "waffles": "waffles"}
    return class_folders(root, "images", names)


def dtd(root: Path) -> list[Photo]:
    return class_folders(root, "images", {"banded": "banded", "cobwebbed": "cobwebbed"})


def eurosat(root: Path) -> list[Photo]:
    names = {"AnnualCrop": "Annual Crop Land", "Forest": "Forest", "SeaLake": "Sea or Lake"}
    return class_folders(root, "2750", names)


def oxford_pets(root: Path) -> list[Photo]:
    breeds = {"Abyssinian": "abyssinian", "american_pit_bull": "american pit bull", "Bengal": "bengal"}
    photos: list[Photo] = []
    lists: dict[bool, list[str]] = {False: [], True: []}
    for label, (breed, name) in enumerate(breeds.items()):
        for i in range(PER_CLASS):
            photos.append(Photo(f"{breed}_{i}.jpg", label, name))
            lists[is_official(i)].append(f"{breed}_{i} {label + 1} 1 {label + 1}")
    put(root / "images", *(photo.path for photo in photos))
    write(root / "annotations" / "trainval.txt", lists[False])
    write(root / "annotations" / "test.txt", lists[True])
    return photos


def annotations(rows: Sequence[tuple[str, int]]) -> np.ndarray:
    """Rows of (file name, class from 1) as Stanford's devkit holds them."""
    table = np.zeros((1, len(rows)), dtype=[("class", object), ("fname", object)])
    for i, (name, number) in enumerate(rows):
        table[0, i] = (number, name)
    return table


def stanford_cars(root: Path) -> list[Photo]:
    models = ["Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"]
    names = ["2012 Acura RL Sedan", "2012 Ram C/V Cargo Van Minivan"]
    photos: list[Photo] = []
    rows: dict[str, list[tuple[str, int]]] = {"cars_train": [], "cars_test": []}
    for label, name in enumerate(names):
        for i in range(PER_CLASS):
            folder = "cars_test" if is_official(i) else "cars_train"
            file = f"{len(rows[folder]) + 1:05}.jpg"
            rows[folder].append((file, label + 1))
            photos.append(Photo(f"{folder}/{file}", label, name))
    put(root, *(photo.path for photo in photos))
    (root / "devkit").mkdir()
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array([models], dtype=object)})
    savemat(root / "devkit" / "cars_train_annos.mat", {"annotations": annotations(rows["cars_train"])})
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": annotations(rows["cars_test"])})
    return photos


def oxford_flowers(root: Path) -> list[Photo]:
    names = ["pink primrose", "hard-leaved pocket orchid", "sweet pea"]
    labels = [0] * PER_CLASS + [2] * PER_CLASS + [1] * PER_CLASS  # the real labels are in no order either
    photos = [Photo(f"image_{i:05}.jpg", label, names[label]) for i, label in enumerate(labels, 1)]
    put(root / "jpg", *(photo.path for photo in photos))
    savemat(root / "imagelabels.mat", {"labels": np.array([[label + 1 for label in labels]], dtype=np.uint8)})
    (root / "cat_to_name.json").write_text(json.dumps({str(i): name for i, name in enumerate(names, 1)}))
    return photos


def sun397(root: Path) -> list[Photo]:
    classes = {"a/abbey": "abbey", "c/control_tower/outdoor": "outdoor control tower"}
    photos = [
        Photo(f"{folder}/sun_{i}.jpg", label, name)
        for label, (folder, name) in enumerate(classes.items())
        for i in range(PER_CLASS)
    ]
    put(root / "SUN397", *(photo.path for photo in photos))
    write(root / "ClassName.txt", [f"/{folder}" for folder in classes])
    for file, official in (("Training_01.txt", False), ("Testing_01.txt", True)):
        chosen = [photo for i, photo in enumerate(photos) if is_official(i % PER_CLASS) == official]
        write(root / file, [f"/{photo.path}" for photo in chosen])
    return photos


def ucf101(root: Path) -> list[Photo]:
    actions = {"ApplyEyeMakeup": "Apply Eye Makeup", "HandstandPushups": "Handstand Pushups", "YoYo": "Yo Yo"}
    photos: list[Photo] = []
    lists: dict[bool, list[str]] = {False: [], True: []}
    for label, (action, name) in enumerate(actions.items()):
        for i in range(PER_CLASS):
            video = f"v_{action.replace('stand', 'Stand')}_g01_c{i:02}"  # as the real lists spell it
            photos.append(Photo(f"{name.replace(' ', '_')}/{video}.jpg", label, name))
            tail = "" if is_official(i) else f" {label + 1}"
            lists[is_official(i)].append(f"{action}/{video}.avi{tail}")
    put(root / "UCF-101-midframes", *(photo.path for photo in photos))
    write(
        root / "ucfTrainTestlist" / "classInd.txt", [f"{i} {action}" for i, action in enumerate(actions, 1)]
    )
    write(root / "ucfTrainTestlist" / "trainlist01.txt", lists[False])
    write(root / "ucfTrainTestlist" / "testlist01.txt", lists[True])
    return photos


DOWNLOADS: dict[str, Callable[[Path], list[Photo]]] = {
    each.__name__: each
    for each in (
        caltech101,
        oxford_pets,
        stanford_cars,
        oxford_flowers,
        food101,
        sun397,
        dtd,
        eurosat,
        ucf101,
    )
}
"""The data sets whose parts CoOp's split files tell: each lays out a download, without that file."""


def write_split_file(file: Path, photos: Sequence[Photo]) -> dict[str, list[Photo]]:
    """CoOp's JSON: of every ten images, five train, two are validation, three test."""
    parts: dict[str, list[Photo]] = {"train": [], "val": [], "test": []}
    for i, photo in enumerate(photos):
        parts["train" if i % 10 < 5 else "val" if i % 10 < 7 else "test"].append(photo)
    rows = {
        part: [[p.path, p.label, p.name.replace(" ", "_")] for p in chosen] for part, chosen in parts.items()
    }
    file.write_text(json.dumps(rows))
    return parts


def fgvc_aircraft(root: Path) -> dict[str, list[Photo]]:
    variants = ["707-320", "A340-200", "DC-9-30", "MD-11 F"]
    parts: dict[str, list[Photo]] = {"train": [], "val": [], "test": []}
    for n in range(24):
        label, part = n % 4, ("train", "val", "test")[n // 4 % 3]
        parts[part].append(Photo(f"{1000000 + n}.jpg", label, variants[label]))
    for part, photos in parts.items():
        put(root / "images", *(photo.path for photo in photos))
        write(
            root / f"images_variant_{part}.txt", [f"{p.path.removesuffix('.jpg')} {p.name}" for p in photos]
        )
    write(root / "variants.txt", variants)
    return parts


WNIDS = {
    "n02134084": "polar bear",
    "n01440764": "tench",
    "n04355933": "sunglasses",
    "n01443537": "goldfish",
    "n04356056": "sunglasses",
}
"""In no order, and with a name that ImageNet's published names hold twice."""


def class_names(root: Path) -> None:
    write(root / "classnames.txt", [f"{wnid} {name}" for wnid, name in WNIDS.items()])


def imagenet(root: Path) -> dict[str, list[Photo]]:
    """10 training images a class and 2 of the folder that ImageNet calls val."""
    class_names(root)
    parts: dict[str, list[Photo]] = {"train": [], "val": []}
    for part, count in (("train", 10), ("val", 2)):
        for label, wnid in enumerate(sorted(WNIDS)):
            paths = [f"images/{part}/{wnid}/{part}_{i}.JPEG" for i in range(count)]
            parts[part] += [Photo(path, label, WNIDS[wnid]) for path in paths]
    put(root, *(photo.path for photos in parts.values() for photo in photos))
    return parts


def wnid_folders(root: Path, images: str, wnids: Sequence[str]) -> list[Photo]:
    class_names(root)
    photos = [
        Photo(f"{wnid}/{i}.jpg", label, WNIDS[wnid])
        for label, wnid in enumerate(sorted(wnids))
        for i in range(3)
    ]
    put(root / images, *(photo.path for photo in photos))
    (root / images / "README.txt").write_text("as in the download")
    return photos


def imagenet_v2(root: Path) -> list[Photo]:
    class_names(root)
    photos = [
        Photo(f"{label}/{i}.jpeg", label, WNIDS[wnid])
        for label, wnid in enumerate(sorted(WNIDS))
        for i in range(3)
    ]
    put(root / "imagenetv2-matched-frequency-format-val", *(photo.path for photo in photos))
    return photos


TEST_SETS: dict[str, Callable[[Path], list[Photo]]] = {
    "imagenet_v2": imagenet_v2,
    "imagenet_sketch": lambda root: wnid_folders(root, "images", list(WNIDS)),
    "imagenet_a": lambda root: wnid_folders(root, "imagenet-a", ["n04355933", "n01443537", "n02134084"]),
    "imagenet_r": lambda root: wnid_folders(root, "imagenet-r", ["n04356056", "n01440764"]),
}
"""ImageNet's variants: test images only."""
