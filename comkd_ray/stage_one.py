"""Stage I of a study: which images its teacher learns from, the learning, and the teacher's card.

The protocol decides: base classes where there are halves, else all classes; of the source where the
study names one, else of its own data. Test images are looked at when everything is chosen, for the
card alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comkd_ray.bank import CENTER, Bank, build_bank, pixels_of
from comkd_ray.config import Data, Study
from comkd_ray.data.datasets import TEST, VAL
from comkd_ray.data.pixels import Progress
from comkd_ray.errors import UserError
from comkd_ray.losses import normalize
from comkd_ray.material import METHOD, TunedTeacher
from comkd_ray.metrics import accuracies, predict, test_scores
from comkd_ray.models import Clip, default_device, load_clip
from comkd_ray.photographs import Photographs, open_source, shots, teacher_views
from comkd_ray.prompts import check_class_names, check_teacher_depths
from comkd_ray.protocols import protocol_of
from comkd_ray.study_file import digest
from comkd_ray.teacher import (
    Encoder,
    FewShots,
    build_teacher,
    class_features,
    encode_prompted,
    fit_teacher,
)

Images = NDArray[np.int64]


def tune_teacher(study: Study, cache: Path, progress: Progress) -> TunedTeacher:
    """Build the study's teacher and what it needs, and nothing of stage II."""
    photographs = open_source(study, cache, progress)
    return open_stage_one(study, photographs, cache, progress, default_device()).tune()


def open_stage_one(
    study: Study, photographs: Photographs, cache: Path, progress: Progress, device: torch.device
) -> StageOne:
    """Load the teacher and refuse what cannot work. photographs: what it learns from."""
    stage = StageOne(study, photographs, cache, progress, load_clip(study.teacher, device))
    config = study.teacher
    check_teacher_depths(stage.clip, config)
    if config.epochs > 0:
        classes = photographs.table.classes
        check_class_names(stage.clip, classes, config.context, config.text_prompt_length)
    if len(stage.few_shots().val_images) == 0 and config.keep == "best" and config.epochs > 0:
        raise UserError(
            f"teacher.keep: best needs validation images, {stage.data.root} has none of the classes that the"
            " teacher learns; set teacher.keep: average"
        )
    return stage


def bank_images(
    clip: Clip,
    visual: Tensor | None,
    identity: str,
    photographs: Photographs,
    images: Images,
    views: list[int],
    cache: Path,
    progress: Progress,
) -> Bank:
    """Features of a tower under visual prompts `[1, depth, L, W]`, or none, on some images and views."""
    store = photographs.store

    @torch.no_grad()
    def encode(batch: Images, view: int) -> Tensor:
        return encode_prompted(clip, pixels_of(store, batch, view, clip.image_size, clip.device), visual)

    parts = identity, clip.image_size, store.digest
    of = {"model": clip.name, "prompted": visual is not None, "root": str(photographs.table.root)}
    return build_bank(parts, encode, images, views, cache, progress, of, store.expect)


def spoken_by(clip: Clip, tuned: TunedTeacher) -> tuple[Tensor | None, str]:
    """Visual prompts `[1, depth, L, W]` of a teacher, and the identity of what its image tower says.

    Without them its image features are those of the model as it is.
    """
    if tuned.visual is None:
        return None, clip.digest
    return tuned.visual[None], digest(clip.digest, tuned.digest)


def bank_scores(study: Study, photographs: Photographs, bank: Bank, text: Tensor) -> dict[str, float]:
    """Test accuracies in percent, `test_...` as the protocol names them.

    bank: holds the test images, centre view. text `[C, D]`: unit features of all classes.
    """
    images, groups = photographs.part(TEST), photographs.groups
    labels = torch.from_numpy(photographs.labels[images])
    logits = normalize(bank.take(0, images, text.device)) @ text.T
    shares = accuracies(predict(logits[None].cpu(), labels, groups), labels, labels, groups)[0]
    return test_scores(study, shares)


@dataclass(frozen=True)
class StageOne:
    """A teacher, and what it may learn from."""

    study: Study
    photographs: Photographs
    cache: Path
    progress: Progress
    clip: Clip

    @property
    def data(self) -> Data:
        """The section of the study file that the photographs come from."""
        return self.study.source or self.study.data

    def few_shots(self) -> FewShots:
        """Labelled images, and validation images, of the classes that the teacher learns."""
        photographs = self.photographs
        labels, learned = photographs.labels, photographs.base
        val = photographs.part(VAL)
        val = val[labels[val] < learned]
        images = shots(self.study, photographs.table)
        classes = photographs.table.classes[:learned]
        return FewShots(images, labels[images], val, labels[val], classes, teacher_views(self.study))

    def tune(self) -> TunedTeacher:
        """The teacher of this study, from the cache if it was tuned before."""
        config, few = self.study.teacher, self.few_shots()
        unused = {"model", "pretrained"}
        if config.keep != "average":
            unused |= {"average_mean", "average_std"}
        seen = config.model_dump(exclude=unused), few.images.tolist(), few.views
        key = digest(METHOD, self.clip.digest, self.photographs.digest, *seen)

        def fit() -> TunedTeacher:
            encode, store = self.encoder(few), self.photographs.store
            expect = store.expect if self.sees_pixels else lambda batches: None
            tuned = fit_teacher(key, config, self.clip, few, encode, self.progress, expect)
            return replace(tuned, card=self.card(tuned, few))

        return build_teacher(key, fit, self.cache, self.clip.device)

    @property
    def sees_pixels(self) -> bool:
        """Whether its image tower learns, so that no bank can stand in for it."""
        config = self.study.teacher
        return config.epochs > 0 and config.prompt_length > 0 and self.clip.is_vit

    def encoder(self, few: FewShots) -> Encoder:
        """Image features for learning; from banks where they never change."""
        clip, config, store = self.clip, self.study.teacher, self.photographs.store
        if self.sees_pixels:
            return lambda images, view, visual: encode_prompted(
                clip, pixels_of(store, images, view, clip.image_size, clip.device), visual
            )
        center = self.bank(None, clip.digest, self.photographs.evaluated, [CENTER])
        if config.epochs == 0:
            return lambda images, view, visual: center.take(0, images, clip.device)
        seen = self.bank(None, clip.digest, few.images, list(range(1, few.views + 1)))
        return lambda images, view, visual: (
            center.take(0, images, clip.device)
            if view == CENTER
            else seen.take(view - 1, images, clip.device)
        )

    def bank(self, visual: Tensor | None, identity: str, images: Images, views: list[int]) -> Bank:
        """The teacher's features of some of its photographs."""
        return bank_images(
            self.clip, visual, identity, self.photographs, images, views, self.cache, self.progress
        )

    def card(self, tuned: TunedTeacher, few: FewShots) -> dict[str, Any]:
        """What `comkd-ray teacher show` tells; accuracies in percent, on its own data set."""
        halves = protocol_of(self.study).has_halves
        bank = self.bank(*spoken_by(self.clip, tuned), self.photographs.evaluated, [CENTER])
        text = class_features(self.clip, tuned, self.photographs.table.classes, self.progress)
        tested = bank_scores(self.study, self.photographs, bank, text)
        own = "val_base_accuracy" if halves else "val_accuracy"
        config = tuned.card["config"]
        return {
            "key": tuned.key,
            "digest": tuned.digest,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": config["model"],
            "pretrained": config["pretrained"],
            "dataset": self.data.dataset,
            "root": self.data.root,
            "data": self.photographs.digest,
            "learns": "base" if halves else "all",
            "classes": len(few.classes),
            "shots": self.data.shots,
            "images": len(few.images),
            "seed": config["seed"],
            "keep": config["keep"],
            "epoch": tuned.card["epoch"],
            own: tuned.card["val_accuracy"],
            **tested,
            "config": config,
        }
