"""Published results as data, in percent: one value for each method, data set and score (PAPER 4A-4D).

In the tables a value may carry a letter: `n` NOTE (read in a second-hand note only), `c` COMPUTED,
`i` INFERRED; `?` is UNKNOWN, and without a letter a value is VERIFIED in the published text. `!` marks
a harmonic mean that does not follow from its own base and novel (4.14).

PromptKD chose its epoch on the test set (5.12, 5.13), and for domain generalisation it was trained on
the very test images (5.14). ComKD-CLIP is taken to have done the same, which is INFERRED.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Status = Literal["VERIFIED", "NOTE", "COMPUTED", "INFERRED", "UNKNOWN"]
_LETTERS: dict[str, Status] = {"n": "NOTE", "c": "COMPUTED", "i": "INFERRED"}

TEACHER = "PromptSRC, the teacher"
AVERAGE = "average"
"""Stands for the data set where a value is the mean over all of its table."""

METHODS: dict[str, tuple[str | None, str | None]] = {
    "CLIP": (None, "ViT-B-16"),
    "CoOp": (None, "ViT-B-16"),
    "CoCoOp": (None, "ViT-B-16"),
    "MaPLe": (None, "ViT-B-16"),
    "PromptSRC": (None, "ViT-B-16"),
    "TPT": (None, "ViT-B-16"),
    "CoOp + TPT": (None, "ViT-B-16"),
    "CoCoOp + TPT": (None, "ViT-B-16"),
    "PromptAlign": (None, "ViT-B-16"),
    TEACHER: ("ViT-L-14", None),
    "PromptKD": ("ViT-L-14", "ViT-B-16"),
    "ComKD-CLIP": ("ViT-L-14", "ViT-B-16"),
}
"""Teacher and student of each method (2.1; that of ComKD-CLIP is INFERRED), all with OpenAI's weights."""

TEST_IMAGES = {
    "imagenet": 50_000, "caltech101": 2_465, "oxford_pets": 3_669, "stanford_cars": 8_041,
    "oxford_flowers": 2_463, "food101": 30_300, "fgvc_aircraft": 3_333, "sun397": 19_850, "dtd": 1_692,
    "eurosat": 8_100, "ucf101": 3_783, "imagenet_v2": 10_000, "imagenet_sketch": 50_889,
    "imagenet_a": 7_500, "imagenet_r": 30_000,
}  # fmt: skip
"""Images that each published test score is a share of (6.1-6.15)."""

# Base / novel / harmonic mean on each data set.
_BASE_TO_NOVEL_METHODS = ("CLIP", "CoOp", "CoCoOp", "MaPLe", "PromptSRC", "PromptKD", TEACHER, "ComKD-CLIP")
_BASE_TO_NOVEL = """
4.1  average        69.34/74.22/71.70 82.69/63.22/71.66 80.47/71.69/75.83 82.28/75.14/78.55 84.26/76.10/79.97 86.96/80.73/83.73 87.86c/81.45c/84.53c ?/?/?
4.2  imagenet       72.43/68.14/70.22 76.47/67.88/71.92 75.98/70.43/73.10 76.66/70.54/73.47 77.60/70.73/74.01 80.83/74.66/77.62 83.24/76.83/79.91 ?/?/?
4.3  caltech101     96.84/94.00/95.40 98.00/89.81/93.73 97.96/93.81/95.84 97.74/94.36/96.02 98.10/94.03/96.02 98.91/96.65/97.77 98.71/98.03/98.37 ?/?/?
4.4  oxford_pets    91.17/97.26/94.12 93.67/95.29/94.47 95.20/97.69/96.43 95.43/97.76/96.58 95.33/97.30/96.30 96.30/98.01/97.15 96.86/98.82/97.83 ?/?/?
4.5  stanford_cars  63.37/74.89/68.65 78.12/60.40/68.13 70.49/73.59/72.01 72.94/74.00/73.47 78.27/74.97/76.58 82.80/83.37/83.13! 84.53/84.25/84.39 ?/?/?
4.6  oxford_flowers 72.08/77.80/74.83 97.60/59.67/74.06 94.87/71.75/81.71 95.92/72.46/82.56 98.07/76.50/85.95 99.42/82.62/90.24 99.05/82.60/90.08 ?/?/?
4.7  food101        90.10/91.22/90.66 88.33/82.26/85.19 90.70/91.29/90.99 90.71/92.05/91.38 90.67/91.53/91.10 92.43/93.68/93.05 94.56/95.15/94.85 ?/?/?
4.8  fgvc_aircraft  27.19/36.29/31.09 40.44/22.30/28.75 33.41/23.71/27.74 37.44/35.61/36.50 42.73/37.87/40.15 49.12/41.81/45.17 54.44/43.07/48.09 ?/?/?
4.9  sun397         69.36/75.35/72.23 80.60/65.89/72.51 79.74/76.86/78.27 80.82/78.70/79.75 82.67/78.47/80.52 83.69/81.54/82.60 84.97/81.09/82.98 84.19n/81.71c/82.93n
4.10 dtd            53.24/59.90/56.37 79.44/41.18/54.24 77.01/56.00/64.85 80.36/59.18/68.16 83.37/62.97/71.75 85.84/71.37/77.94 85.76/70.65/77.48 ?/?/?
4.11 eurosat        56.48/64.05/60.03 92.19/54.74/68.69 87.49/60.04/71.21 94.07/73.23/82.35 92.90/73.90/82.32 97.54/82.08/89.14 94.79/83.15/88.59 ?/?/?
4.12 ucf101         70.53/77.50/73.85 84.69/56.05/67.46 82.33/73.45/77.64 83.00/78.66/80.77 87.10/78.80/82.74 89.71/82.27/86.10! 89.50/82.26/85.73 ?/?/?
"""  # noqa: E501

# Accuracy on each data set; the source is ImageNet.
_CROSS_DATASETS = (
    "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397",
    "dtd", "eurosat", "ucf101", AVERAGE,
)  # fmt: skip
_CROSS_DATASET = f"""
4.17|CoOp|93.70 89.14 64.51 68.71 85.30 18.47 64.15 41.92 46.39 66.55 63.88
4.18|CoCoOp|94.43 90.14 65.32 71.88 86.06 22.94 67.36 45.73 45.37 68.21 65.74
4.19|MaPLe|93.53 90.49 65.57 72.23 86.20 24.74 67.01 46.49 48.06 68.69 66.30
4.20|PromptSRC|93.60 90.25 65.70 70.25 86.15 23.90 67.10 46.87 45.50 68.75 65.81
4.21|PromptKD|93.61 91.59 73.93 75.33 88.84 26.24 68.57 55.08 63.74 76.39 71.33
4.22|{TEACHER}|95.61 94.19 77.70 77.54 91.59 31.29 70.86 56.32 47.55 76.20 71.89
4B|ComKD-CLIP|? ? ? ? ? ? ? ? ? ? ?
"""
_DOMAINS = ("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r", AVERAGE)
_DOMAIN_GENERALIZATION = """
4.24|CLIP|60.83 46.15 47.77 73.96 57.18
4.24|CoOp|64.20 47.99 49.71 75.21 59.28
4.24|CoCoOp|64.07 48.75 50.63 76.18 59.91
4.25|MaPLe|64.07 49.15 50.90 76.98 60.27
4.25|PromptSRC|64.35 49.55 50.90 77.80 60.65
4.26|TPT|63.45 47.94 54.77 77.06 60.81
4.26|CoOp + TPT|66.83 49.29 57.95 77.27 62.83
4.26|CoCoOp + TPT|64.85 48.47 58.47 78.65 62.61
4.27|PromptAlign|65.29 50.23 59.37 79.33 63.55
4.28|PromptKD|69.77 58.72 70.36 87.01 71.47
4.29|ComKD-CLIP|? ? ? ? 72.78n
"""

# Base / novel / harmonic mean of PromptKD on ImageNet, 64 images a class; then of ComKD-CLIP on SUN397.
_ABLATIONS = """
4.30|teacher of the student|ViT-B-32, the teacher|?/?/69.36
4.30|teacher of the student|ViT-B-32, its student|?/?/71.87
4.30|teacher of the student|ViT-B-16, the teacher|?/?/74.01
4.30|teacher of the student|ViT-B-16, its student|?/?/74.09
4.30|teacher of the student|ViT-L-14, the teacher|?/?/79.91
4.30|teacher of the student|ViT-L-14, its student|?/?/76.22
4.31|how the teacher was trained|CLIP, the teacher|79.18/74.03/76.52
4.31|how the teacher was trained|CLIP, its student|76.53/72.58/74.50
4.31|how the teacher was trained|MaPLe, the teacher|82.79/76.88/79.73
4.31|how the teacher was trained|MaPLe, its student|78.43/73.61/75.95
4.31|how the teacher was trained|PromptSRC, the teacher|83.24/76.83/79.91
4.31|how the teacher was trained|PromptSRC, its student|79.27/73.39/76.22
4.32|student, all images|ViT-B-32, CLIP|67.52/64.04/65.73
4.32|student, all images|ViT-B-32, PromptKD|74.29/69.29/71.70
4.32|student, all images|ViT-B-16, CLIP|72.43/68.14/70.22
4.32|student, all images|ViT-B-16, PromptKD|80.83/74.66/77.62
4.33|what is distilled|features, L1|73.09/65.98/69.35
4.33|what is distilled|features, MSE|71.89/66.17/68.91
4.33|what is distilled|logits, KL|79.27/73.39/76.22
4.34|what is trained|projector only|78.48/72.79/75.53
4.34|what is trained|all of the student|75.90/70.95/73.34
4.34|what is trained|without shared text features|78.79/73.37/75.98
4.34|what is trained|PromptKD|79.27/73.39/76.22
4.35|images a class|16|77.63/70.96/74.15
4.35|images a class|32|78.47/72.46/75.35
4.35|images a class|64|79.27/73.39/76.22
4.35|images a class|128|80.01/73.78/76.77
4.35|images a class|256|80.47/74.41/77.32
4.35|images a class|all|80.83/74.66/77.62
4.36|projector_layers|1|78.97/72.90/75.81
4.36|projector_layers|2|79.27/73.39/76.22
4.36|projector_layers|3|79.10/72.72/75.78
4.37|temperature|0.1|78.5/72.62/75.45
4.37|temperature|0.5|79.32/73.33/76.21
4.37|temperature|1|79.27/73.39/76.22
4.37|temperature|2|79.08/72.73/75.77
4.37|temperature|4|77.32/69.91/71.57!
4.38|epochs|20|79.27/73.39/76.22
4.38|epochs|40|79.75/73.65/76.58
4.38|epochs|60|79.89/73.68/76.66
4.41|modules, on SUN397|neither|83.69i/81.54i/82.60i
4.41|modules, on SUN397|IFAlign only|?/?/?
4.41|modules, on SUN397|EduAttention only|?/?/?
4.41|modules, on SUN397|both|84.19n/81.71c/82.93n
"""


class Value(NamedTuple):
    """One published number, in percent; None where it is UNKNOWN."""

    number: float | None
    status: Status
    follows: bool = True
    """False for a harmonic mean that does not follow from its own base and novel (4.14)."""


class Published(NamedTuple):
    """What one method reached on one data set; its values in the order of `Protocol.scores`."""

    source: str
    """Row of the fact sheet: PAPER 4.9."""
    protocol: str
    dataset: str
    method: str
    values: tuple[Value, ...]


class Ablation(NamedTuple):
    """A row of a published ablation: base, novel, harmonic mean."""

    source: str
    item: str
    setting: str
    values: tuple[Value, ...]


def _value(text: str) -> Value:
    if text == "?":
        return Value(None, "UNKNOWN")
    digits = text.rstrip("!nci")
    letters = text[len(digits) :]
    return Value(float(digits), _LETTERS.get(letters.removesuffix("!"), "VERIFIED"), "!" not in letters)


def _values(text: str) -> tuple[Value, ...]:
    return tuple(_value(part) for part in text.split("/"))


def _lines(block: str) -> list[list[str]]:
    return [line.split("|") for line in block.strip().splitlines()]


def _published() -> list[Published]:
    found = []
    for line in _BASE_TO_NOVEL.strip().splitlines():
        source, dataset, *triples = line.split()
        for method, cell in zip(_BASE_TO_NOVEL_METHODS, triples, strict=True):
            found.append(Published(source, "base_to_novel", dataset, method, _values(cell)))
    for protocol, datasets, block in (
        ("cross_dataset", _CROSS_DATASETS, _CROSS_DATASET),
        ("domain_generalization", _DOMAINS, _DOMAIN_GENERALIZATION),
    ):
        for source, method, cells in _lines(block):
            for dataset, cell in zip(datasets, cells.split(), strict=True):
                found.append(Published(source, protocol, dataset, method, _values(cell)))
    return found


PUBLISHED = _published()
ABLATIONS = [Ablation(row, item, setting, _values(cell)) for row, item, setting, cell in _lines(_ABLATIONS)]
SOURCES = {"cross_dataset": "imagenet", "domain_generalization": "imagenet"}
"""Data set that the teacher learned on, where that is another one."""


def published_for(protocol: str, dataset: str) -> list[Published]:
    """Everything published under a protocol on a data set, in the order of METHODS."""
    found = [row for row in PUBLISHED if (row.protocol, row.dataset) == (protocol, dataset)]
    return sorted(found, key=lambda row: list(METHODS).index(row.method))
