"""Stage I: prompts tuned on a few labelled base images, stored once for good."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.testing import assert_close

import comkd_ray.teacher
from comkd_ray.bank import pixels_of
from comkd_ray.config import Study
from comkd_ray.data.datasets import TRAIN, VAL
from comkd_ray.errors import UserError
from comkd_ray.losses import normalize
from comkd_ray.material import Card, Material, Photographs, TunedTeacher, read_teacher
from comkd_ray.models import Clip
from comkd_ray.prompts import encode_text_prompted, text_prompt, visual_tokens
from comkd_ray.teacher import FewShots, build_teacher, encode_prompted, fit_teacher

pytestmark = pytest.mark.usefixtures("cpu")

CPU = torch.device("cpu")
BASE = 2
TEMPLATES = ("a photo of a {}.", "a drawing of a {}.")
TinyClip = Callable[[str], Clip]
Prepared = Callable[[Study], tuple[Card, Material]]


def quiet(stage: str, done: int, total: int) -> None:
    """A progress that nobody watches."""


@pytest.fixture
def photographs(prepared: Prepared, make_study: Callable[..., Study]) -> Photographs:
    return prepared(make_study())[1].photographs


@pytest.fixture
def shots(photographs: Photographs) -> FewShots:
    labels, train, val = photographs.labels, photographs.part(TRAIN), photographs.part(VAL)
    train, val = train[labels[train] < BASE], val[labels[val] < BASE]
    classes = photographs.table.classes
    return FewShots(train, labels[train], val, labels[val], classes, BASE, views=2)


@pytest.fixture
def tune(photographs: Photographs, shots: FewShots, make_study: Callable[..., Study]) -> Callable[..., Any]:
    """tune(clip, {"teacher.lr": 0.1}) -> the tuned teacher, on pixels."""

    def run(clip: Clip, overrides: dict[str, Any] | None = None) -> TunedTeacher:
        config = make_study({"teacher.epochs": 6, **(overrides or {})}).teacher
        encode = encoder(clip, photographs)
        return fit_teacher("key", config, clip, shots, TEMPLATES, encode, quiet)

    return run


def encoder(clip: Clip, photographs: Photographs) -> Callable[..., Tensor]:
    def encode(images: NDArray[np.int64], view: int, visual: Tensor | None) -> Tensor:
        pixels = pixels_of(photographs.store, images, view, clip.image_size, CPU)
        return encode_prompted(clip, pixels, visual)

    return encode


@torch.no_grad()
def cross_entropy(clip: Clip, photographs: Photographs, shots: FewShots, tuned: TunedTeacher) -> float:
    """Of the labelled images among the base classes, in the central view."""
    visual = None if tuned.visual is None else tuned.visual[None]
    image = normalize(encoder(clip, photographs)(shots.images, 0, visual))
    logits = clip.logit_scale * image @ tuned.text_features[:BASE].T
    return float(F.cross_entropy(logits, torch.from_numpy(shots.labels)))


# What is learned --------------------------------------------------------------------------------


def test_a_vit_learns_words_and_images(tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]) -> None:
    tuned, start = tune(tiny_clip("teacher")), tune(tiny_clip("teacher"), {"teacher.epochs": 1})
    assert tuned.visual is not None
    assert start.visual is not None
    assert tuned.visual.shape == (3, 2, 48)
    assert (tuned.visual - start.visual).abs().amax((1, 2)).min() > 1e-4  # in every layer
    assert (tuned.text_features - start.text_features).abs().max() > 1e-3
    assert_close(tuned.text_features.norm(dim=1), torch.ones(4))


def test_a_convolutional_tower_learns_words_only(
    tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]
) -> None:
    tuned, start = tune(tiny_clip("conv")), tune(tiny_clip("conv"), {"teacher.epochs": 1})
    assert tuned.visual is None
    assert (tuned.text_features - start.text_features).abs().max() > 1e-3


def test_a_vit_may_be_told_to_learn_words_only(
    tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]
) -> None:
    assert tune(tiny_clip("teacher"), {"teacher.prompt_length": 0}).visual is None


@pytest.mark.parametrize("kind", ["teacher", "conv"])
def test_tuning_lowers_the_loss(
    kind: str,
    tiny_clip: TinyClip,
    tune: Callable[..., TunedTeacher],
    photographs: Photographs,
    shots: FewShots,
) -> None:
    """The first epoch, at its tiny rate, stands for the start."""
    free = {"teacher.text_l1_weight": 0.0, "teacher.image_l1_weight": 0.0, "teacher.logit_kl_weight": 0.0}
    clip = tiny_clip(kind)
    before, after = (tune(clip, free | {"teacher.epochs": epochs}) for epochs in (1, 6))
    losses = [cross_entropy(clip, photographs, shots, each) for each in (before, after)]
    assert losses[1] < 0.7 * losses[0]


def test_regularisers_hold_the_teacher_near_its_start(
    tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]
) -> None:
    clip = tiny_clip("conv")
    frozen = clip.encode_classes(("coal", "grass", "lemon", "sea"), TEMPLATES)
    gaps = [
        (tune(clip, {"teacher.text_l1_weight": weight}).text_features[:BASE] - frozen[:BASE]).abs().mean()
        for weight in (0.0, 500.0)
    ]
    assert gaps[1] < gaps[0]


def test_the_seed_decides_everything(tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]) -> None:
    clip = tiny_clip("teacher")
    one, same, other = (tune(clip, {"teacher.seed": seed}) for seed in (1, 1, 2))
    assert one.visual is not None
    assert same.visual is not None
    assert_close(same.visual, one.visual, rtol=0, atol=0)
    assert_close(same.text_features, one.text_features, rtol=0, atol=0)
    assert (other.text_features - one.text_features).abs().max() > 1e-4  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["conv", "teacher"])
def test_a_step_is_plain_sgd_on_promptsrc(
    kind: str,
    tiny_clip: TinyClip,
    photographs: Photographs,
    shots: FewShots,
    tune: Callable[..., TunedTeacher],
) -> None:
    """One epoch of one batch: every term of PAPER 2.9 with its weight, one step at the first rate."""
    clip, encode = tiny_clip(kind), encoder(tiny_clip(kind), photographs)
    prompt = text_prompt(clip, shots.classes, "a photo of a", 4, 2, 1)
    context = prompt.initial.clone().requires_grad_()
    tokens = visual_tokens(clip, 2, 3, 1).requires_grad_() if clip.is_vit else None
    frozen_image = normalize(encode(shots.images, 1, None))
    image = frozen_image if tokens is None else normalize(encode(shots.images, 1, tokens[None]))
    text = normalize(encode_text_prompted(clip, prompt.tokens[:BASE], context))
    frozen = clip.encode_classes(shots.classes, TEMPLATES)[:BASE]
    logits, target = clip.logit_scale * image @ text.T, clip.logit_scale * frozen_image @ frozen.T
    kl = F.kl_div(logits.log_softmax(1), target.log_softmax(1), log_target=True, reduction="sum")
    loss = (
        F.cross_entropy(logits, torch.from_numpy(shots.labels))
        + 3 * F.l1_loss(text, frozen)
        + 5 * F.l1_loss(image, frozen_image)
        + 7 * kl / logits.numel()
    )
    learned = [context] if tokens is None else [context, tokens]
    start = [tensor.detach().clone() for tensor in learned]
    sgd = torch.optim.SGD(learned, lr=1e-5, momentum=0.9, weight_decay=0.5)
    loss.backward()
    sgd.step()
    weights = {"text_l1": 3.0, "image_l1": 5.0, "logit_kl": 7.0}
    tuned = tune(
        clip,
        {f"teacher.{name}_weight": weight for name, weight in weights.items()}
        | {"teacher.epochs": 1, "teacher.batch_size": len(shots.images), "teacher.weight_decay": 0.5},
    )
    with torch.no_grad():
        expected = normalize(encode_text_prompted(clip, prompt.tokens, context))
    assert_close(tuned.text_features, expected, rtol=1e-5, atol=1e-6)
    if tokens is not None:
        assert tuned.visual is not None
        assert_close(tuned.visual - start[1], tokens - start[1], rtol=0.01, atol=1e-8)


def test_views_take_turns_and_validation_is_central(
    tiny_clip: TinyClip, photographs: Photographs, shots: FewShots, make_study: Callable[..., Study]
) -> None:
    clip = tiny_clip("conv")
    encode, asked = encoder(clip, photographs), []

    def listen(images: NDArray[np.int64], view: int, visual: Tensor | None) -> Tensor:
        asked.append(("val" if set(images) <= set(shots.val_images) else "train", view, len(images)))
        return encode(images, view, visual)

    config = make_study({"teacher.epochs": 3, "teacher.batch_size": 10}).teacher
    fit_teacher("key", config, clip, shots, TEMPLATES, listen, quiet)
    epoch = [("train", 0, 10), ("val", 0, 10)]  # 16 images: the other 6 are dropped (PAPER 5.18)
    expected = [(part, view if part == "train" else 0, n) for view in (1, 2, 1) for part, _, n in epoch]
    assert asked == expected


# Which epoch ------------------------------------------------------------------------------------


def test_the_first_best_epoch_on_base_validation_is_kept(
    tiny_clip: TinyClip, tune: Callable[..., TunedTeacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is replaced here: the accuracies and prompts of each epoch are written down as they come."""
    seen: list[tuple[float, Tensor]] = []
    measure = comkd_ray.teacher._val_accuracy

    def overheard(clip: Clip, shots: FewShots, parameters: dict[str, Tensor], *rest: Any) -> float:
        accuracy = measure(clip, shots, parameters, *rest)
        seen.append((accuracy, parameters["visual"].detach()[0].clone()))
        return accuracy

    monkeypatch.setattr(comkd_ray.teacher, "_val_accuracy", overheard)
    kept: set[int] = set()
    for seed in (1, 2, 3):
        seen.clear()
        tuned = tune(tiny_clip("teacher"), {"teacher.seed": seed, "teacher.lr": 0.2})
        accuracies = [accuracy for accuracy, _ in seen]
        assert len(accuracies) == 6
        assert tuned.card["val_base_accuracy"] == max(accuracies)
        assert tuned.card["epoch"] == 1 + accuracies.index(max(accuracies))
        assert tuned.visual is not None
        assert_close(tuned.visual, seen[tuned.card["epoch"] - 1][1], rtol=0, atol=0)
        kept.add(tuned.card["epoch"])
    assert kept != {6}, "the last epoch was always best: this test shows nothing"


def test_an_epoch_that_diverged_is_never_kept(tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]) -> None:
    tuned = tune(tiny_clip("conv"), {"teacher.lr": 1e38})
    assert tuned.card["epoch"] == 1
    assert tuned.text_features.isfinite().all()


def test_a_teacher_that_diverges_at_once_is_an_error(
    tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]
) -> None:
    with pytest.raises(UserError, match=r"not finite in any epoch; lower teacher\.lr"):
        tune(tiny_clip("conv"), {"teacher.text_l1_weight": 1e300})


def test_no_epochs_is_the_zero_shot_teacher(
    tiny_clip: TinyClip, tune: Callable[..., TunedTeacher], shots: FewShots
) -> None:
    clip = tiny_clip("teacher")
    tuned = tune(clip, {"teacher.epochs": 0})
    assert tuned.visual is None
    texts = torch.stack(
        [F.normalize(clip.encode_text([t.format(n) for t in TEMPLATES]).sum(0), dim=0) for n in shots.classes]
    )
    assert_close(tuned.text_features, texts)


# Stored once ------------------------------------------------------------------------------------


def stored(visual: Tensor | None = None) -> TunedTeacher:
    features = F.normalize(torch.randn(4, 24, generator=torch.Generator().manual_seed(0)), dim=1)
    return TunedTeacher("key", visual, features, {"epoch": 3, "val_base_accuracy": 70.0})


def never() -> TunedTeacher:
    raise AssertionError("the teacher was tuned again")


@pytest.mark.parametrize("visual", [None, torch.full((3, 2, 48), math.pi)])
def test_a_teacher_is_tuned_once_and_then_read(tmp_path: Path, visual: Tensor | None) -> None:
    made = build_teacher("key", lambda: stored(visual), tmp_path, CPU)
    again, opened = build_teacher("key", never, tmp_path, CPU), read_teacher(tmp_path, "key", CPU)
    for teacher in (made, again, opened):
        assert teacher.card == {"epoch": 3, "val_base_accuracy": 70.0}
        assert_close(teacher.text_features, stored().text_features, rtol=0, atol=0)
        assert (teacher.visual is None) == (visual is None)
        if visual is not None:
            assert_close(teacher.visual, visual, rtol=0, atol=0)


def test_another_key_is_another_teacher(tmp_path: Path) -> None:
    build_teacher("key", stored, tmp_path, CPU)
    with pytest.raises(AssertionError, match="tuned again"):
        build_teacher("other", never, tmp_path, CPU)


def test_tuning_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="tuned again"):
        build_teacher("key", never, tmp_path, CPU)
    with pytest.raises(UserError, match="missing or damaged; the same command makes it again"):
        read_teacher(tmp_path, "key", CPU)
    build_teacher("key", stored, tmp_path, CPU)


@pytest.mark.parametrize("file", ["teacher.safetensors", "card.json"])
@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:20])])
def test_a_damaged_teacher_is_tuned_again(tmp_path: Path, file: str, damage: Callable[[Path], Any]) -> None:
    build_teacher("key", stored, tmp_path, CPU)
    damage(tmp_path / "teachers" / "key" / file)
    with pytest.raises(UserError, match="missing or damaged; the same command makes it again"):
        read_teacher(tmp_path, "key", CPU)
    mended = build_teacher("key", stored, tmp_path, CPU)
    assert_close(mended.text_features, stored().text_features, rtol=0, atol=0)
