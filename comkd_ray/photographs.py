"""The photographs of a study: what its student learns from and is tested on, what its teacher learns from.

A table lists images without decoding any; `open_photographs` and `open_source` decode those that are
used, into their pixel store or, to be streamed, to see that they are whole.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comkd_ray.config import Data, Study
from comkd_ray.data import splits
from comkd_ray.data.datasets import ROWS, TEST, TRAIN, VAL, ImageTable, open_dataset
from comkd_ray.data.pixels import Pixels, Progress, kept
from comkd_ray.data.stream import open_pixels
from comkd_ray.errors import UserError
from comkd_ray.models import asset_path
from comkd_ray.protocols import is_transductive, protocol_of
from comkd_ray.study_file import digest

TEMPLATE = "a photo of a {}."
Images = NDArray[np.int64]
"""Indices into a table or its store."""


@dataclass(frozen=True)
class Photographs:
    """The images of a study, their halves and parts."""

    table: ImageTable
    store: Pixels
    """Their pixels: stored, or decoded when they are used."""
    base: int
    """Classes that a teacher may learn: the base ones (PAPER 5.11), all of them without halves."""
    template: str
    """Prompt of the zero-shot models."""
    transductive: bool = False
    """The test images, without their labels, are the training images (PAPER 5.14)."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of every image; only `part` may say who sees it."""
        return self.table.labels

    @property
    def digest(self) -> str:
        """Identity of the images with their classes and parts: what every number hangs on."""
        table = self.table
        parts = table.classes, table.labels.tolist(), table.parts.tolist()
        return digest(self.store.digest, self.template, *parts)

    @property
    def groups(self) -> tuple[range, ...]:
        """Labels of the classes that are evaluated together: base and novel, or all at once."""
        classes = len(self.table.classes)
        return tuple(group for group in (range(self.base), range(self.base, classes)) if group)

    def part(self, part: int) -> NDArray[np.int64]:
        """Images of one part, ascending."""
        return self.table.select(TEST if self.transductive and part == TRAIN else part)

    @property
    def evaluated(self) -> NDArray[np.int64]:
        """Validation and test images, ascending."""
        return np.sort(np.concatenate([self.part(VAL), self.part(TEST)]))


def open_photographs(study: Study, cache: Path, progress: Progress) -> Photographs:
    """What the student learns from and is tested on; decodes the images if that was never done."""
    photographs = _store(study.data, target_table(study, progress), study, cache, progress)
    _check_parts(photographs, study)
    return replace(photographs, transductive=is_transductive(study))


def open_source(study: Study, cache: Path, progress: Progress) -> Photographs:
    """What the teacher learns from: the source, or the study's own data where it has none."""
    if study.source is None:
        return open_photographs(study, cache, progress)
    table = source_table(study, target_table(study, progress), progress)
    return _store(study.source, table, study, cache, progress)


def open_both(study: Study, cache: Path, progress: Progress) -> tuple[Photographs, Photographs]:
    """What the student learns from, and what the teacher learns from: opened once where it is the same."""
    photographs = open_photographs(study, cache, progress)
    return photographs, photographs if study.source is None else open_source(study, cache, progress)


def target_table(study: Study, progress: Progress) -> ImageTable:
    """The images of `data`, in the parts that the protocol uses."""
    return arranged(study, open_dataset(study.data, asset_path(study.data.root), progress))


def source_table(study: Study, target: ImageTable, progress: Progress) -> ImageTable:
    """The images that the teacher uses: few shots, validation and test; `target` if there is no source.

    ImageNet has 1.28 million training images, of which 16,000 teach: no other is ever decoded.
    """
    if study.source is None:
        return target
    table = open_dataset(study.source, asset_path(study.source.root), progress)
    if table.test_only:
        name = study.source.dataset
        raise UserError(f"source.dataset: {name}: it has test images only, nothing to learn from")
    if not study.source.skip_broken:  # else another image takes the place of a broken one
        used = np.sort(np.concatenate([shots(study, table), table.select(VAL), table.select(TEST)]))
        paths = tuple(table.paths[index] for index in used)
        table = replace(table, paths=paths, labels=table.labels[used], parts=table.parts[used])
    _check_source(study, table, target)
    return table


def learned_classes(study: Study, table: ImageTable) -> int:
    """Classes that the teacher learns: the base ones (PAPER 5.11), or all where there are no halves."""
    classes = len(table.classes)
    return splits.base_count(classes) if protocol_of(study).has_halves else classes


def shots(study: Study, table: ImageTable) -> Images:
    """The labelled images that the teacher learns from; `table` is that of the source, if there is one."""
    data, key = (study.data, "data.shots") if study.source is None else (study.source, "source.shots")
    train = table.select(TRAIN)
    train = train[table.labels[train] < learned_classes(study, table)]
    return splits.few_shot(table.labels, train, data.shots, data.split_seed, table.classes, key)


def teacher_views(study: Study) -> int:
    """Views that the teacher sees of each image: it sees one an epoch, and no more than there are."""
    views, epochs = (study.source or study.data).views, max(1, study.teacher.epochs)
    return min(views, epochs) if isinstance(views, int) else epochs


def _check_source(study: Study, source: ImageTable, target: ImageTable) -> None:
    """No labelled image of the source is tested on, and another domain has the same classes."""
    labelled = np.concatenate([source.select(TRAIN), source.select(VAL)])
    taught = {os.path.realpath(source.root / source.paths[index]) for index in labelled}
    tested = (os.path.realpath(target.root / target.paths[index]) for index in target.select(TEST))
    if both := sorted(taught.intersection(tested)):
        raise UserError(
            f"source: {len(both)} of its labelled images are test images of data, the first is {both[0]};"
            " use another data set, or the same split"
        )
    unknown = sorted(set(target.classes) - set(source.classes))
    if protocol_of(study).same_classes and unknown:
        raise UserError(
            f"data: class '{unknown[0]}' is none of the source's; {study.protocol} needs the same"
            " classes, cross_dataset does not"
        )


def _store(data: Data, table: ImageTable, study: Study, cache: Path, progress: Progress) -> Photographs:
    store = open_pixels(data, table, cache, progress)
    table = kept(table, store)
    row = ROWS.get(data.dataset)
    return Photographs(table, store, learned_classes(study, table), row.template if row else TEMPLATE)


def arranged(study: Study, table: ImageTable) -> ImageTable:
    """The table with the parts that the protocol uses.

    A set of test images only is cut into parts, so that no student trains on what it is tested on;
    where the published habit is asked for, it stays whole (PAPER 5.14).
    """
    if not table.test_only or is_transductive(study):
        return table
    if not protocol_of(study).has_source:
        raise UserError(
            f"data.dataset: {study.data.dataset}: it has test images only; use it as data of protocol"
            " cross_dataset or domain_generalization"
        )
    seed = study.data.split_seed
    parts = splits.parts_of_test_only(table.labels, seed, table.classes)
    cut = f"{table.split}; cut 50/20/30 into train/val/test (split_seed {seed})"
    return replace(table, parts=parts, split=cut)


def _check_parts(photographs: Photographs, study: Study) -> None:
    names = {TRAIN: "training", VAL: "validation", TEST: "test"}
    if study.selection == "promptkd" and not protocol_of(study).has_halves:
        del names[VAL]  # nothing is chosen on them
    for part, name in names.items():
        labels = photographs.labels[photographs.part(part)]
        for group in photographs.groups:
            if not ((labels >= group.start) & (labels < group.stop)).any():
                raise UserError(
                    f"{study.data.root}: no {name} images of classes {group.start} to {group.stop - 1}"
                )
    check_batch(study, len(photographs.part(TRAIN)))


def check_batch(study: Study, images: int) -> None:
    """UserError where so many training images fill no batch."""
    size = study.train.batch_size
    if images < size:
        raise UserError(f"{study.data.root}: {images} training images, fewer than train.batch_size: {size}")
