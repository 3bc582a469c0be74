"""A study beside what is published: the gap where the two are comparable, else what differs.

Comparable means the same protocol, data set, source, teacher and student. The selection is named but
does not forbid the gap: a strict study is then read against numbers whose epoch the test set chose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from comkd_ray.config import Study, Tower
from comkd_ray.published import PUBLISHED, SOURCES, TEACHER, TEST_IMAGES, Published, published_for
from comkd_ray.reference_rows import ReferenceRow
from comkd_ray.stats import Estimate

OURS = {
    "CLIP": "student zero-shot",
    TEACHER: "tuned teacher",
    "PromptKD": "PromptKD",
    "ComKD-CLIP": "ComKD-CLIP",
}
"""Published method to the reference row that repeats it."""
OWN_SPLIT = "a split of our own"
"""How the recorded `split` of `data/raw.py` begins."""
BACKBONES = {"teacher": "ViT-L-14", "student": "ViT-B-16"}


class Gap(NamedTuple):
    """A published method, the row of ours that repeats it, and ours minus published in the headline."""

    published: Published
    ours: ReferenceRow | None
    gap: Estimate | None
    """Mean and t-interval over our seeds, in points; the published number counts as exact."""


class Comparison(NamedTuple):
    """All that a report says about published numbers."""

    gaps: list[Gap]
    """Empty where the study is not comparable."""
    words: list[str]
    """What differs, or what to keep in mind, a line each."""


def comparison(study: Study | None, data: Mapping[str, Any], rows: list[ReferenceRow]) -> Comparison:
    """The published numbers beside reference rows.

    data: what the run recorded of its data; `split` says where the parts come from, `test` how many
    images the test part has.
    """
    if study is None:
        return Comparison([], ["Without study.yaml nothing can be compared with published numbers."])
    other = differences(study, data)
    selection = _selection(study)
    if other:
        phrases = [*other, *([f"selection {study.selection} (published: promptkd)"] if selection else [])]
        return Comparison([], [f"No gap to published numbers is shown. What differs: {'; '.join(phrases)}."])
    words = [
        "Gap: ours minus published. PromptKD's are means over three seeds, published without a spread, so "
        "the interval is that of our seeds alone. A star marks a harmonic mean that does not follow from its "
        "own base and novel. Compared are protocol, data and towers; epochs, batch size and loss weights may "
        "differ, see study.yaml.",
        "Status: VERIFIED was read in the published text, NOTE only in a second-hand note; UNKNOWN was "
        "looked for and not found. PAPER numbers are rows of docs/method.md.",
        selection,
    ]
    if study.teacher.epochs == 0:  # a zero-shot teacher is not the published one
        rows = [row for row in rows if row.name != OURS[TEACHER]]
    return Comparison(gaps(study.protocol, study.data.dataset, rows), [line for line in words if line])


def gaps(protocol: str, dataset: str, rows: list[ReferenceRow]) -> list[Gap]:
    """Every published method of a protocol and data set, with our row where there is one."""
    ours = {row.name: row for row in rows}
    found = []
    for published in published_for(protocol, dataset):
        row = ours.get(OURS.get(published.method, ""))
        found.append(Gap(published, row, _gap(row, published)))
    return found


def _gap(row: ReferenceRow | None, published: Published) -> Estimate | None:
    theirs = published.values[-1].number
    if row is None or row.headline is None or theirs is None:
        return None
    n, mean, sd, low, high = row.headline
    ends = (None if end is None else end - theirs for end in (low, high))
    return Estimate(n, mean - theirs, sd, *ends)


def differences(study: Study, data: Mapping[str, Any]) -> list[str]:
    """Why a study cannot be read against the published tables, a phrase each; [] where it can."""
    return [
        phrase
        for phrase in (
            _other_data(study, data),
            _other_source(study),
            _other_tower("teacher", study.teacher),
            _other_tower("student", study.student),
        )
        if phrase
    ]


def _other_data(study: Study, data: Mapping[str, Any]) -> str:
    """`data.make_split` alone says little: where the published split file is there, it is used."""
    dataset, split, test_images = study.data.dataset, str(data.get("split") or ""), data.get("test")
    protocols = sorted({row.protocol for row in PUBLISHED if row.dataset == dataset})
    if not protocols:
        return f"data.dataset {dataset}: nothing is published on it"
    if study.protocol not in protocols:
        return f"protocol {study.protocol} (published on {dataset}: {', '.join(protocols)})"
    if OWN_SPLIT in split:
        return f"data.make_split: {OWN_SPLIT}"
    if study.data.make_split and not split:
        return f"data.make_split: perhaps {OWN_SPLIT}, which split was used is not recorded"
    if isinstance(test_images, int) and test_images != TEST_IMAGES[dataset]:
        return f"{dataset} with {test_images:,} test images (published: {TEST_IMAGES[dataset]:,})"
    return ""


def _other_source(study: Study) -> str:
    expected = SOURCES.get(study.protocol)
    if study.source is None or study.source.dataset == expected:
        return ""
    return f"source.dataset {study.source.dataset} (published: {expected})"


def _other_tower(name: str, tower: Tower) -> str:
    expected = BACKBONES[name]
    if tower.model.removesuffix("-quickgelu") == expected and tower.pretrained == "openai":
        return ""
    weights = f" with {tower.pretrained}" if tower.pretrained else ""
    return f"{name} {tower.model}{weights} (published: {expected} with openai)"


def _selection(study: Study) -> str:
    """What another way to choose the epoch does to the comparison; empty for the published way."""
    if study.selection == "promptkd":
        return ""
    trained = " and trained on the test images" if study.protocol == "domain_generalization" else ""
    return (
        f"Selection {study.selection}: no test label was seen here. The published PromptKD (and ComKD-CLIP, "
        f"as far as is known) chose their epoch on the test set{trained}, which favours them."
    )
