"""Deep prompts from outside: open_clip's own forward where there are none, PromptKD's where there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from comkd_ray.config import Teacher
from comkd_ray.errors import UserError
from comkd_ray.models import Clip
from comkd_ray.prompts import (
    check_teacher_depths,
    check_visual_depth,
    embed_images,
    encode_embedded,
    encode_text_prompted,
    generator,
    text_prompt,
    visual_tokens,
)

TinyClip = Callable[[str], Clip]
CLASSES = ("sea", "coal mine", "grass")
CONTEXT = "a photo of a"


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def clip(tiny_clip: TinyClip) -> Clip:
    return tiny_clip("teacher")  # width 48, 4 layers in the image tower, 2 in the text tower


# Streams of random numbers ----------------------------------------------------------------------


def test_streams_are_the_same_on_every_machine() -> None:
    drawn = torch.randint(1000, (4,), generator=generator(1, "visual"))
    assert drawn.tolist() == [471, 159, 202, 283]


def test_streams_of_other_names_and_seeds_are_others() -> None:
    streams = [(1, "visual"), (2, "visual"), (1, "text"), (1, "visual "), (12, ""), (1, "2/")]
    drawn = {tuple(torch.rand(3, generator=generator(*stream)).tolist()) for stream in streams}
    assert len(drawn) == len(streams)


def test_a_stream_leaves_the_generator_of_torch_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    torch.rand(3, generator=generator(1, "visual"))
    assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_visual_prompts_start_normal_with_std_0_02(clip: Clip) -> None:
    """PAPER 2.5."""
    tokens = visual_tokens(clip, 40, 9, 1)
    assert tokens.shape == (9, 40, 48)
    assert tokens.mean().item() == pytest.approx(0, abs=1e-3)
    assert tokens.std().item() == pytest.approx(0.02, rel=0.02)
    assert_close(visual_tokens(clip, 40, 9, 1), tokens, rtol=0, atol=0)


# Image tower ------------------------------------------------------------------------------------


def test_without_prompts_the_tower_is_that_of_open_clip(clip: Clip) -> None:
    images = draw(3, 3, 32, 32)
    embedded = embed_images(clip, images)[None]
    for prompts in (torch.zeros(1, 3, 0, 48), torch.zeros(1, 0, 2, 48)):
        assert_close(encode_embedded(clip, embedded, prompts)[0], clip.visual(images))


def prompted_tower(clip: Clip, images: Tensor, prompts: Tensor, average: bool = False) -> Tensor:
    """PAPER 2.5 for one arm: after the patches and before ln_pre, replaced at blocks 1..depth-1."""
    tower: Any = clip.visual
    batch, depth = len(images), len(prompts)
    x = tower.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([tower.class_embedding.expand(batch, 1, -1), x], dim=1) + tower.positional_embedding
    x = torch.cat([x, prompts[0].expand(batch, -1, -1)], dim=1)
    x = tower.ln_pre(x)
    length = prompts.shape[1]
    for layer, block in enumerate(tower.transformer.resblocks):
        if layer in range(1, depth):
            x = torch.cat([x[:, :-length], prompts[layer].expand(batch, -1, -1)], dim=1)
        x = block(x)
    pooled = tower.ln_post(x[:, 1:-length]).mean(1) if average else tower.ln_post(x[:, 0])
    return pooled @ tower.proj  # type: ignore[no-any-return]


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("shared", [True, False])
def test_every_arm_has_the_prompted_tower_of_the_paper(clip: Clip, depth: int, shared: bool) -> None:
    """Value and gradient; arms share their images, or each has its own."""
    arms, length = 3, 2
    images = draw(1 if shared else arms, 5, 3, 32, 32)
    prompts = draw(arms, depth, length, 48, seed=1).requires_grad_()
    pull = draw(arms, 5, 24, seed=2)
    embedded = embed_images(clip, images.flatten(0, 1)).unflatten(0, images.shape[:2])
    ours = encode_embedded(clip, embedded, prompts)
    (gradient,) = torch.autograd.grad((ours * pull).sum(), prompts)
    for arm in range(arms):
        leaf = prompts.detach()[arm].clone().requires_grad_()
        expected = prompted_tower(clip, images[0 if shared else arm], leaf)
        assert_close(ours[arm], expected, rtol=1e-4, atol=1e-4)
        (by_hand,) = torch.autograd.grad((expected * pull[arm]).sum(), leaf)
        assert_close(gradient[arm], by_hand, rtol=1e-3, atol=1e-4)
        assert by_hand.abs().amax((1, 2)).min() > 1e-3, "a layer of prompts has no effect"


def test_an_arm_hangs_on_no_other_arm(clip: Clip) -> None:
    embedded, prompts = embed_images(clip, draw(2, 3, 32, 32))[None], draw(3, 2, 2, 48)
    broken = prompts.clone()
    broken[1] = torch.nan
    sound, hurt = (encode_embedded(clip, embedded, each) for each in (prompts, broken))
    assert hurt[1].isnan().all()
    assert_close(hurt[[0, 2]], sound[[0, 2]])


def other_tower(**more: Any) -> Clip:
    """A tower of 2 layers with other settings of open_clip."""
    import open_clip

    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 10, "width": 16, "heads": 1, "layers": 1}
    model = open_clip.CLIP(24, vision | more, text).eval().requires_grad_(False)
    return Clip("other", model, list, 32, (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("more", [{"qk_norm": True}, {"ls_init_value": 0.5}], ids=["own block", "scaled"])
@pytest.mark.parametrize("depth", [1, 2])
def test_blocks_of_other_kinds_are_prompted_alike(more: dict[str, Any], depth: int) -> None:
    """A block with an attention of its own runs as it is; one with layer scales keeps them."""
    clip, images, prompts = other_tower(**more), draw(2, 3, 32, 32), draw(1, depth, 2, 48)
    ours = encode_embedded(clip, embed_images(clip, images)[None], prompts)[0]
    assert_close(ours, prompted_tower(clip, images, prompts[0]), rtol=1e-4, atol=1e-5)


def test_prompts_are_not_pooled() -> None:
    """A tower that averages its patches averages them alone."""
    clip = other_tower(pool_type="avg")
    images, prompts = draw(2, 3, 32, 32), draw(1, 2, 2, 48)
    ours = encode_embedded(clip, embed_images(clip, images)[None], prompts)[0]
    assert_close(ours, prompted_tower(clip, images, prompts[0], average=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("section", ["teacher", "student"])
def test_prompts_deeper_than_the_image_tower_are_refused(clip: Clip, section: str) -> None:
    check_visual_depth(clip, 4, section)
    with pytest.raises(UserError, match=rf"^{section}\.prompt_depth: .* has 4 layers, not 5$"):
        check_visual_depth(clip, 5, section)


# Text tower -------------------------------------------------------------------------------------


def test_the_embedded_context_as_prompt_gives_the_text_features_of_open_clip(clip: Clip) -> None:
    """PAPER 2.7: at depth 1 the initial prompt is the words that it stands for."""
    prompt = text_prompt(clip, CLASSES, CONTEXT, 4, 1, 1)
    ours = nn.functional.normalize(encode_text_prompted(clip, prompt.tokens, prompt.initial), dim=-1)
    assert_close(ours, clip.encode_text([f"a photo of a {name}." for name in CLASSES]))


def prompted_text_tower(clip: Clip, texts: list[str], prompts: Tensor) -> Tensor:
    """PAPER 2.7 and 2.8: right after the start token, replaced at the input of blocks 1..depth-1."""
    model: Any = clip.model
    tokens = clip.tokenize(texts)
    depth, length, _ = prompts.shape
    x = model.token_embedding(tokens)
    mask = torch.full((tokens.shape[1], tokens.shape[1]), -torch.inf).triu(1)  # causal
    for layer, block in enumerate(model.transformer.resblocks):
        if layer < depth:
            x = torch.cat([x[:, :1], prompts[layer].expand(len(texts), -1, -1), x[:, 1 + length :]], dim=1)
        if layer == 0:
            x = x + model.positional_embedding
        x = block(x, attn_mask=mask)
    x = model.ln_final(x)
    return x[torch.arange(len(texts)), tokens.argmax(1)] @ model.text_projection  # type: ignore[no-any-return]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("length", [1, 4, 6])
def test_text_prompts_are_replaced_layer_by_layer(clip: Clip, depth: int, length: int) -> None:
    """Value and gradient, also for contexts that are shorter or longer than the words."""
    prompt = text_prompt(clip, CLASSES, CONTEXT, length, depth, 1)
    prompts = draw(depth, length, 32, seed=3).requires_grad_()
    pull = draw(3, 24, seed=4)
    ours = encode_text_prompted(clip, prompt.tokens, prompts)
    words = " ".join(["X"] * length) if length != 4 else CONTEXT
    expected = prompted_text_tower(clip, [f"{words} {name}." for name in CLASSES], prompts)
    assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    gradient, by_hand = (torch.autograd.grad((out * pull).sum(), prompts)[0] for out in (ours, expected))
    assert_close(gradient, by_hand, rtol=1e-3, atol=1e-4)
    assert by_hand.abs().amax((1, 2)).min() > 1e-4, "a layer of prompts has no effect"


def test_the_initial_prompt_holds_the_words_of_the_context(clip: Clip) -> None:
    embedding: Any = clip.model.token_embedding
    prompt = text_prompt(clip, CLASSES, CONTEXT, 4, 2, 1)
    assert_close(prompt.initial[0], embedding(clip.tokenize([CONTEXT])[0, 1:5]))
    assert prompt.initial[1].std().item() == pytest.approx(0.02, rel=0.3)


def test_a_context_of_another_length_starts_at_random(clip: Clip) -> None:
    """As CoOp: so many placeholder words, and nothing of them in the prompt."""
    for length in (2, 6):
        prompt = text_prompt(clip, CLASSES, CONTEXT, length, 2, 1)
        assert prompt.initial.shape == (2, length, 32)
        assert prompt.initial.std().item() == pytest.approx(0.02, rel=0.3)
        expected = clip.tokenize([" ".join(["X"] * length) + f" {name}." for name in CLASSES])
        assert prompt.tokens.tolist() == expected.tolist()


def test_the_initial_text_prompt_hangs_on_its_seed(clip: Clip) -> None:
    deep = [text_prompt(clip, CLASSES, CONTEXT, 4, 2, seed).initial for seed in (1, 1, 2)]
    assert_close(deep[0], deep[1], rtol=0, atol=0)
    assert_close(deep[0][0], deep[2][0], rtol=0, atol=0)  # the words have no seed
    assert (deep[0][1] - deep[2][1]).abs().min() > 0


def test_a_text_prompt_that_leaves_no_room_for_the_class_is_refused(clip: Clip) -> None:
    with pytest.raises(UserError, match=r"class 'sea' does not fit .* 24 tokens .*text_prompt_length: 21"):
        text_prompt(clip, CLASSES, CONTEXT, 21, 1, 1)


def test_a_class_name_is_never_cut_in_silence(clip: Clip) -> None:
    """24 tokens hold start, context, 17 words of a name, full stop and end.

    The last name looks whole where it is cut: a full stop stands there.
    """
    text_prompt(clip, (*CLASSES, " ".join(["cat"] * 17)), CONTEXT, 4, 1, 1)
    for long in (" ".join(["cat"] * 18), " ".join(["cat"] * 17) + ". cat"):
        with pytest.raises(UserError, match=rf"class '{long}' does not fit into the 24 tokens"):
            text_prompt(clip, (*CLASSES, long), CONTEXT, 4, 1, 1)


def test_text_prompts_deeper_than_the_text_tower_are_refused(clip: Clip) -> None:
    taught = Teacher(model="tiny", prompt_depth=4, text_prompt_depth=2)
    check_teacher_depths(clip, taught)
    deeper = taught.model_copy(update={"text_prompt_depth": 3})
    with pytest.raises(UserError, match=r"^teacher\.text_prompt_depth: .* has 2 layers, not 3$"):
        check_teacher_depths(clip, deeper)
    check_teacher_depths(clip, deeper.model_copy(update={"epochs": 0}))
    with pytest.raises(UserError, match=r"^teacher\.prompt_depth: .* has 4 layers, not 5$"):
        check_teacher_depths(clip, taught.model_copy(update={"prompt_depth": 5}))


def test_a_text_tower_that_takes_no_prompts_is_told_with_the_way_out(clip: Clip) -> None:
    class OtherText(nn.Module):
        """A model whose text tower is no transformer of open_clip."""

        text = nn.Linear(1, 1)

    with pytest.raises(UserError, match=r"takes no prompts.*teacher\.epochs: 0"):
        check_teacher_depths(replace(clip, model=OtherText()), Teacher(model="tiny", text_prompt_depth=1))


@pytest.mark.parametrize("pooling", ["argmax", "last", "first"])
def test_a_custom_text_tower_is_prompted_like_a_built_in_one(pooling: str) -> None:
    """open_clip keeps the text tower inside the model, or as `text` of it with a pooling of its own."""
    import open_clip

    torch.manual_seed(0)
    text = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
    model = open_clip.CustomTextCLIP(8, vision, text | {"pool_type": pooling, "proj_bias": True})
    tokenize = open_clip.SimpleTokenizer(context_length=24)
    clip = Clip("custom", model.eval().requires_grad_(False), tokenize, 32, (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    prompt = text_prompt(clip, CLASSES, CONTEXT, 4, 1, 1)
    ours = encode_text_prompted(clip, prompt.tokens, prompt.initial)
    assert_close(ours, model.encode_text(tokenize([f"{CONTEXT} {name}." for name in CLASSES])))
