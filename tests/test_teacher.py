"""Stage I: prompts tuned on a few labelled images, those that are kept, and what they say of any classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.testing import assert_close

from comkd_ray.bank import pixels_of
from comkd_ray.config import Study
from comkd_ray.data.datasets import TRAIN, VAL
from comkd_ray.errors import UserError
from comkd_ray.losses import normalize
from comkd_ray.material import Card, Material, TunedTeacher, read_teacher, read_text
from comkd_ray.models import Clip
from comkd_ray.photographs import Photographs
from comkd_ray.prompts import encode_text_prompted, text_prompt, visual_tokens
from comkd_ray.teacher import (
    FewShots,
    average_weights,
    build_teacher,
    build_text,
    class_features,
    encode_prompted,
    fit_teacher,
    imagenet_templates,
)

pytestmark = pytest.mark.usefixtures("cpu")

CPU = torch.device("cpu")
BASE = ("coal", "grass")
CLASSES = (*BASE, "lemon", "sea")
PLAIN = {"teacher.text_l1_weight": 0.0, "teacher.image_l1_weight": 0.0, "teacher.logit_kl_weight": 0.0}
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
    train, val = train[labels[train] < 2], val[labels[val] < 2]
    return FewShots(train, labels[train], val, labels[val], BASE, views=2)


@pytest.fixture
def tune(photographs: Photographs, shots: FewShots, make_study: Callable[..., Study]) -> Callable[..., Any]:
    """tune(clip, {"teacher.lr": 0.1}) -> the tuned teacher, on pixels."""

    def run(clip: Clip, overrides: dict[str, Any] | None = None) -> TunedTeacher:
        config = make_study({"teacher.epochs": 6, **(overrides or {})}).teacher
        return fit_teacher("key", config, clip, shots, encoder(clip, photographs), quiet)

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
    logits = clip.logit_scale * image @ class_features(clip, tuned, BASE).T
    return float(F.cross_entropy(logits, torch.from_numpy(shots.labels)))


# What is learned --------------------------------------------------------------------------------


def test_a_vit_learns_words_and_images(tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]) -> None:
    clip = tiny_clip("teacher")
    tuned, start = tune(clip), tune(clip, {"teacher.epochs": 1})
    assert tuned.visual is not None
    assert start.visual is not None
    assert tuned.visual.shape == (3, 2, 48)
    assert (tuned.visual - start.visual).abs().amax((1, 2)).min() > 1e-4  # in every layer
    assert tuned.text is not None
    assert start.text is not None
    assert tuned.text.shape == (2, 4, 32)
    assert (tuned.text - start.text).abs().amax((1, 2)).min() > 1e-4


def test_a_convolutional_tower_learns_words_only(
    tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]
) -> None:
    tuned, start = tune(tiny_clip("conv")), tune(tiny_clip("conv"), {"teacher.epochs": 1})
    assert tuned.visual is None
    assert (tuned.text - start.text).abs().max() > 1e-3  # type: ignore[operator]


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
    clip = tiny_clip(kind)
    before, after = (tune(clip, PLAIN | {"teacher.epochs": epochs}) for epochs in (1, 6))
    losses = [cross_entropy(clip, photographs, shots, each) for each in (before, after)]
    assert losses[1] < 0.7 * losses[0]


def test_regularisers_hold_the_teacher_near_its_start(
    tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]
) -> None:
    clip = tiny_clip("conv")
    frozen = clip.encode_classes(BASE, imagenet_templates())
    teachers = [tune(clip, {"teacher.text_l1_weight": weight}) for weight in (0.0, 500.0)]
    free, held = ((class_features(clip, tuned, BASE) - frozen).abs().mean() for tuned in teachers)
    assert held < free


def test_the_seed_decides_everything(tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]) -> None:
    clip = tiny_clip("teacher")
    one, same, other = (tune(clip, {"teacher.seed": seed}) for seed in (1, 1, 2))
    assert one.visual is not None
    assert same.visual is not None
    assert_close(same.visual, one.visual, rtol=0, atol=0)
    assert_close(same.text, one.text, rtol=0, atol=0)
    assert (other.text - one.text).abs().max() > 1e-4  # type: ignore[operator]


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
    prompt = text_prompt(clip, BASE, "a photo of a", 4, 2, 1)
    context = prompt.initial.clone().requires_grad_()
    tokens = visual_tokens(clip, 2, 3, 1).requires_grad_() if clip.is_vit else None
    frozen_image = normalize(encode(shots.images, 1, None))
    image = frozen_image if tokens is None else normalize(encode(shots.images, 1, tokens[None]))
    text = normalize(encode_text_prompted(clip, prompt.tokens, context))
    frozen = clip.encode_classes(BASE, imagenet_templates())
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
    assert tuned.text is not None
    assert_close(tuned.text - start[0], context - start[0], rtol=0.01, atol=1e-7)
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
    fit_teacher("key", config, clip, shots, listen, quiet)
    epoch = [("train", 0, 10), ("val", 0, 10)]  # 16 images: the other 6 are dropped (PAPER 5.18)
    expected = [(part, view if part == "train" else 0, n) for view in (1, 2, 1) for part, _, n in epoch]
    assert asked == [*expected, ("val", 0, 10)]  # at the end once more, for the card


# Which prompts ----------------------------------------------------------------------------------


def after_epochs(tune: Callable[..., TunedTeacher], clip: Clip, more: dict[str, Any]) -> list[TunedTeacher]:
    """The teacher as it stood after each of 6 epochs: an average with all weight on one."""
    spike = {"teacher.keep": "average", "teacher.average_std": 1e-9}
    return [tune(clip, more | spike | {"teacher.average_mean": epoch}) for epoch in range(1, 7)]


@pytest.mark.parametrize(
    ("epochs", "mean", "std"), [(20, 15, 1), (20, 6, 10), (50, 45, 5), (3, 1, 2), (1, 1, 1)]
)
def test_weights_are_a_gaussian_over_epochs(epochs: int, mean: float, std: float) -> None:
    """PromptSRC's settings among them (PAPER 2.9, 3.15)."""
    pdf = [
        1 / (std * math.sqrt(2 * math.pi)) * math.exp(-0.5 * ((epoch - mean) / std) ** 2)
        for epoch in range(1, epochs + 1)
    ]
    weights = average_weights(epochs, mean, std)
    assert weights == pytest.approx([value / sum(pdf) for value in pdf], rel=1e-12)
    assert sum(weights) == pytest.approx(1)


def test_promptsrcs_average_in_numbers() -> None:
    weights = average_weights(20, 15, 1)
    assert [round(weights[epoch - 1], 4) for epoch in (11, 13, 14, 15, 16, 20)] == [
        0.0001, 0.054, 0.242, 0.3989, 0.242, 0.0
    ]  # fmt: skip


@pytest.mark.parametrize("std", [1e-3, 1e-9, 1e-300])
def test_a_std_near_0_keeps_one_epoch(std: float) -> None:
    assert average_weights(6, 4, std) == [0, 0, 0, 1, 0, 0]
    assert average_weights(6, 2.6, std) == [0, 0, 1, 0, 0, 0]
    assert average_weights(4, 2.5, std) == [0, 0.5, 0.5, 0]


@pytest.mark.parametrize("kind", ["conv", "teacher"])
def test_the_average_is_the_weighted_sum_of_the_prompts_after_each_epoch(
    kind: str, tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]
) -> None:
    clip, more = tiny_clip(kind), {"teacher.lr": 0.2}
    epochs = after_epochs(tune, clip, more)
    average = {"teacher.keep": "average", "teacher.average_mean": 4, "teacher.average_std": 1.5}
    tuned = tune(clip, more | average)
    pdf = [math.exp(-0.5 * ((epoch - 4) / 1.5) ** 2) for epoch in range(1, 7)]
    for name in ("text", "visual") if kind == "teacher" else ("text",):
        expected = torch.zeros_like(getattr(tuned, name))
        for weight, one in zip(pdf, epochs, strict=True):
            expected += weight / sum(pdf) * getattr(one, name)
        assert_close(getattr(tuned, name), expected)
        assert (expected - getattr(epochs[3], name)).abs().max() > 1e-4, "no average: one epoch"
    assert tuned.card["epoch"] is None


def test_the_last_epoch_may_be_kept(tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]) -> None:
    clip = tiny_clip("teacher")
    tuned, epochs = tune(clip, {"teacher.keep": "last"}), after_epochs(tune, clip, {})
    assert tuned.card["epoch"] == 6
    assert_close((tuned.text, tuned.visual), (epochs[5].text, epochs[5].visual), rtol=0, atol=0)


def test_the_first_best_epoch_on_validation_may_be_kept(
    tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]
) -> None:
    clip, kept = tiny_clip("teacher"), set()
    for seed in (1, 2, 3):
        more = {"teacher.seed": seed, "teacher.lr": 0.2}
        tuned, epochs = tune(clip, more | {"teacher.keep": "best"}), after_epochs(tune, clip, more)
        accuracies = [one.card["val_accuracy"] for one in epochs]
        assert tuned.card["val_accuracy"] == max(accuracies)
        assert tuned.card["epoch"] == 1 + accuracies.index(max(accuracies))
        best = epochs[tuned.card["epoch"] - 1]
        assert_close((tuned.text, tuned.visual), (best.text, best.visual), rtol=0, atol=0)
        kept.add(tuned.card["epoch"])
    assert kept != {6}, "the last epoch was always best: this test shows nothing"


@pytest.mark.parametrize("keep", ["average", "best", "last"])
def test_the_card_has_the_accuracy_of_what_is_kept(
    keep: str,
    tiny_clip: TinyClip,
    tune: Callable[..., TunedTeacher],
    photographs: Photographs,
    shots: FewShots,
) -> None:
    clip = tiny_clip("teacher")
    tuned = tune(clip, {"teacher.keep": keep, "teacher.average_mean": 5})
    assert tuned.visual is not None
    with torch.no_grad():
        image = encoder(clip, photographs)(shots.val_images, 0, tuned.visual[None])
    named = (image @ class_features(clip, tuned, BASE).T).argmax(1).numpy()
    assert tuned.card["val_accuracy"] == pytest.approx(100 * (named == shots.val_labels).mean())


def test_without_validation_images_the_average_needs_none(
    tiny_clip: TinyClip, photographs: Photographs, shots: FewShots, make_study: Callable[..., Study]
) -> None:
    """ImageNet has no validation part (PAPER 6.20)."""
    clip, none = tiny_clip("conv"), np.empty(0, dtype=np.int64)
    config = make_study({"teacher.keep": "average", "teacher.average_mean": 3}).teacher
    shots = FewShots(shots.images, shots.labels, none, none, BASE, views=2)
    tuned = fit_teacher("key", config, clip, shots, encoder(clip, photographs), quiet)
    assert tuned.card["val_accuracy"] is None


def test_an_epoch_that_diverged_is_never_best(tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]) -> None:
    tuned = tune(tiny_clip("conv"), {"teacher.lr": 1e38})
    assert tuned.card["epoch"] == 1
    assert tuned.text is not None
    assert tuned.text.isfinite().all()


@pytest.mark.parametrize("keep", ["average", "best", "last"])
def test_a_teacher_that_diverges_is_an_error(
    keep: str, tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]
) -> None:
    hot = {"teacher.text_l1_weight": 1e300, "teacher.keep": keep, "teacher.average_mean": 5}
    with pytest.raises(UserError, match=r"not finite; lower teacher\.lr"):
        tune(tiny_clip("conv"), hot)


def test_progress_counts_steps(
    tiny_clip: TinyClip, photographs: Photographs, shots: FewShots, make_study: Callable[..., Study]
) -> None:
    clip, told = tiny_clip("conv"), []
    config = make_study({"teacher.epochs": 2, "teacher.batch_size": 5}).teacher
    fit_teacher("key", config, clip, shots, encoder(clip, photographs), lambda *one: told.append(one))
    assert told == [("text", 1, 2), ("text", 2, 2), *(("teacher", step, 6) for step in range(1, 7))]


def test_plain_cross_entropy_never_asks_for_features_without_prompts(
    tiny_clip: TinyClip, photographs: Photographs, shots: FewShots, make_study: Callable[..., Study]
) -> None:
    clip = tiny_clip("teacher")
    encode, bare = encoder(clip, photographs), []

    def listen(images: NDArray[np.int64], view: int, visual: Tensor | None) -> Tensor:
        bare.append(visual is None)
        return encode(images, view, visual)

    for overrides in (PLAIN, {}):
        bare.clear()
        fit_teacher("key", make_study(overrides).teacher, clip, shots, listen, quiet)
        assert any(bare) == (overrides == {})


# Any classes ------------------------------------------------------------------------------------


@torch.no_grad()
def words_by_hand(clip: Clip, context: Tensor, name: str) -> Tensor:
    """One class through the text tower, block by block, with the learned context after the start token."""
    model: Any = clip.model
    tokens = clip.tokenize([f"a photo of a {name}."])[0]
    end, length = int(tokens.argmax()), context.shape[1]
    x = model.token_embedding.weight[tokens].clone()
    for layer, block in enumerate(model.transformer.resblocks):
        if layer < len(context):
            x[1 : 1 + length] = context[layer]
        if layer == 0:
            x = x + model.positional_embedding[: len(x)]
        x = block(x[None], attn_mask=model.attn_mask[: len(x), : len(x)])[0]
    feature = model.ln_final(x)[end] @ model.text_projection
    return feature / feature.norm()


@pytest.mark.parametrize("kind", ["conv", "teacher"])
def test_a_teacher_names_classes_that_it_never_saw(
    kind: str, tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]
) -> None:
    clip = tiny_clip(kind)
    tuned, classes = tune(clip), ("coal", "fire engine", "sea", "old oak")
    assert tuned.text is not None
    expected = torch.stack([words_by_hand(clip, tuned.text, name) for name in classes])
    assert_close(class_features(clip, tuned, classes), expected)


def test_many_classes_are_encoded_in_parts(tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]) -> None:
    clip, classes = tiny_clip("conv"), tuple(f"thing {number}" for number in range(150))
    tuned = tune(clip, {"teacher.epochs": 1})
    told: list[tuple[str, int, int]] = []
    features = class_features(clip, tuned, classes, lambda *one: told.append(one))
    assert features.shape == (150, 20)
    assert told == [("text", done, 150) for done in (64, 128, 150)]
    assert_close(features[[0, 64, 149]], class_features(clip, tuned, ("thing 0", "thing 64", "thing 149")))


def test_no_epochs_is_the_zero_shot_teacher(tiny_clip: TinyClip, tune: Callable[..., TunedTeacher]) -> None:
    clip = tiny_clip("teacher")
    tuned = tune(clip, {"teacher.epochs": 0})
    assert (tuned.visual, tuned.text, tuned.card["epoch"]) == (None, None, 0)
    templates = imagenet_templates()
    texts = [F.normalize(clip.encode_text([t.format(n) for t in templates]).sum(0), dim=0) for n in CLASSES]
    assert_close(class_features(clip, tuned, CLASSES), torch.stack(texts))


def test_text_features_are_encoded_once_for_each_list_of_classes(
    tiny_clip: TinyClip, tune: Callable[..., TunedTeacher], tmp_path: Path
) -> None:
    clip = tiny_clip("conv")
    tuned = build_teacher("key", lambda: tune(clip), tmp_path, CPU)
    names = [build_text(clip, tuned, classes, tmp_path)[0] for classes in (CLASSES, BASE)]
    for name, classes in zip(names, (CLASSES, BASE), strict=True):
        stored = read_text(tmp_path, "key", name, CPU).clone()  # not the map of a file that gets damaged
        assert_close(stored, class_features(clip, tuned, classes))
        path = tmp_path / "teachers" / "key" / f"text-{name}.safetensors"
        before = path.stat().st_mtime_ns
        again = build_text(clip, tuned, classes, tmp_path)
        assert again[0] == name
        assert_close(again[1], stored, rtol=0, atol=0)
        assert path.stat().st_mtime_ns == before
        path.write_bytes(path.read_bytes()[:20])
        with pytest.raises(UserError, match="missing or damaged; the same command makes it again"):
            read_text(tmp_path, "key", name, CPU)
        assert_close(build_text(clip, tuned, classes, tmp_path)[1], stored)
        assert_close(read_text(tmp_path, "key", name, CPU), stored)


# Stored once ------------------------------------------------------------------------------------


def stored(visual: Tensor | None = None) -> TunedTeacher:
    text = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    return TunedTeacher("key", visual, text, {"epoch": 3, "val_accuracy": 70.0})


def test_the_digest_of_a_teacher_hangs_on_its_tensors() -> None:
    """The same recipe, and so the same key, may give others on another machine."""
    visual = torch.full((3, 2, 48), math.pi)
    one = stored(visual)
    assert one.digest == stored(visual.clone()).digest
    assert one.text is not None
    others = [stored(visual + 1e-6), stored(), replace(one, text=one.text + 1e-6), replace(one, key="other")]
    assert len({teacher.digest for teacher in (one, *others)}) == 5


def never() -> TunedTeacher:
    raise AssertionError("the teacher was tuned again")


@pytest.mark.parametrize("visual", [None, torch.full((3, 2, 48), math.pi)])
def test_a_teacher_is_tuned_once_and_then_read(tmp_path: Path, visual: Tensor | None) -> None:
    made = build_teacher("key", lambda: stored(visual), tmp_path, CPU)
    again, opened = build_teacher("key", never, tmp_path, CPU), read_teacher(tmp_path, "key", CPU)
    for teacher in (made, again, opened):
        assert teacher.card == {"epoch": 3, "val_accuracy": 70.0}
        assert_close(teacher.text, stored().text, rtol=0, atol=0)
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
    assert_close(mended.text, stored().text, rtol=0, atol=0)
