"""Who learns from what, what chooses, and on what the result is tested: the four protocols.

One table; nothing else in the package decides by a protocol's name. A strict selection never sees a
test label; `promptkd` reproduces the published habit and says so (PAPER 5.10-5.14).

    base_to_novel          one data set, its classes in two halves, each evaluated alone
    cross_dataset          a teacher of `source`, distilled on unlabelled images of `data`, tested there
    domain_generalization  the same, where `data` shows the source's classes in another domain
    all_classes            one data set, no halves: the teacher has seen every class
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from comkd_ray.config import Study

OBJECTIVE = "objective"
"""Column of the value that epochs and arms are chosen by; `Protocol.objective` names its origin."""
SELECTIONS: tuple[str, ...] = get_args(Study.model_fields["selection"].annotation)
"""Values of `selection`."""


@dataclass(frozen=True)
class Protocol:
    """One way to train and test."""

    title: str
    teacher: str
    """What the teacher learns from, in words."""
    has_halves: bool
    """Base and novel classes are evaluated apart."""
    has_source: bool
    """The teacher learns on a data set of its own, `source`."""
    same_classes: bool
    """`data` shows classes of the source, in another domain."""
    shares_test: bool
    """Under `promptkd`, the student trains on the test images themselves, without their labels (5.14)."""
    labels: str
    """Whose validation labels a strict selection may see: "base", "all" or "none"."""

    @property
    def scores(self) -> tuple[str, ...]:
        """Test scores in percent without their `test_`; the last one is the headline."""
        return ("base_accuracy", "novel_accuracy", "harmonic_mean") if self.has_halves else ("accuracy",)

    @property
    def headline(self) -> str:
        """Column of the one test score that a report leads with."""
        return f"test_{self.scores[-1]}"

    @property
    def validation(self) -> tuple[str, ...]:
        """Columns of the validation scores; the last one is what a strict selection goes by."""
        if self.has_halves:
            return ("val_base_accuracy", "val_novel_agreement", "val_harmonic_mean")
        return ("val_accuracy",) if self.labels == "all" else ("val_agreement",)

    def objective(self, selection: str) -> str:
        """Column that epochs and arms are chosen by."""
        return self.validation[-1] if selection == "strict" else f"test_{self.scores[0]}"


PROTOCOLS: Mapping[str, Protocol] = {
    "base_to_novel": Protocol(
        title="base to novel",
        teacher="labelled images of base classes",
        has_halves=True,
        has_source=False,
        same_classes=False,
        shares_test=False,
        labels="base",
    ),
    "cross_dataset": Protocol(
        title="cross-dataset",
        teacher="labelled images of all classes of the source",
        has_halves=False,
        has_source=True,
        same_classes=False,
        shares_test=False,
        labels="none",
    ),
    "domain_generalization": Protocol(
        title="domain generalisation",
        teacher="labelled images of all classes of the source",
        has_halves=False,
        has_source=True,
        same_classes=True,
        shares_test=True,
        labels="none",
    ),
    "all_classes": Protocol(
        title="all classes",
        teacher="labelled images of all classes",
        has_halves=False,
        has_source=False,
        same_classes=False,
        shares_test=False,
        labels="all",
    ),
}

_CHOSEN_BY = {
    "val_harmonic_mean": "validation images: labels of base classes, agreement with the teacher on novel",
    "val_accuracy": "validation images and their labels",
    "val_agreement": "validation images: agreement with the teacher, no label",
    "test_base_accuracy": "TEST images of base classes and their labels, best of all epochs, as PromptKD",
    "test_accuracy": "TEST images and their labels: best of all epochs, as PromptKD does",
}


def protocol_of(study: Study) -> Protocol:
    """The protocol of a study."""
    return PROTOCOLS[study.protocol]


def objective_of(study: Study) -> str:
    """Column that this study's epochs and arms are chosen by."""
    return protocol_of(study).objective(study.selection)


def is_transductive(study: Study) -> bool:
    """Whether the student trains on the very images that it is tested on."""
    return study.selection == "promptkd" and protocol_of(study).shares_test


def explain(study: Study, counts: Mapping[str, Any] | None = None) -> list[tuple[str, str]]:
    """(what, from what) for `--dry-run` and the report: who trains, selects and is tested on which images.

    counts: images of the parts `train`, `val`, `test`, and of `teacher`, where they are known.
    """
    protocol, known = protocol_of(study), counts or {}

    def number(part: str) -> str:
        return f"{known[part]:,} " if part in known else ""

    tuned = study.teacher.epochs > 0
    where = "test images themselves" if is_transductive(study) else "training images of all classes"
    kind = "transductive" if is_transductive(study) else "inductive"
    tested = "test images, base and novel apart" if protocol.has_halves else "test images, all classes"
    return [
        ("protocol", f"{protocol.title}, selection {study.selection}, {kind}"),
        ("teacher learns from", f"{number('teacher')}{protocol.teacher}" if tuned else "nothing: zero-shot"),
        ("student trains on", f"{number('train')}{where}, without labels"),
        ("epochs and arms chosen by", f"{_CHOSEN_BY[objective_of(study)]} ({objective_of(study)})"),
        ("tested on", f"{number('test')}{tested}"),
    ]
