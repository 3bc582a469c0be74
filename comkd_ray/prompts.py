"""Deep prompts around open_clip's frozen towers, from outside (PAPER 2.5, 2.7).

Visual prompts follow the patch tokens; every prompted layer gets fresh learnable tokens in their
place. Text prompts stand right after the start token. Nothing inside open_clip is changed.

Shapes: A arms, B images, C classes, T tokens, L prompt tokens, W width of a tower, D joint width.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comkd_ray.config import Teacher
from comkd_ray.errors import UserError
from comkd_ray.models import Clip

PROMPT_STD = 0.02


def generator(seed: int, name: str) -> torch.Generator:
    """A stream of random numbers for one named use, so that uses do not shift each other.

    Arms of one seed therefore share initial prompts and projectors whatever else they switch on.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def check_visual_depth(clip: Clip, depth: int, section: str) -> None:
    """UserError where a study prompts more layers than the image tower has."""
    _check_depth(clip.visual, depth, f"{section}.prompt_depth: {clip.name}'s image tower")


def check_teacher_depths(clip: Clip, config: Teacher) -> None:
    """UserError where stage I prompts more layers than a tower has, or the text tower takes no prompts."""
    if config.epochs > 0:
        _pool_type(clip)
        where = f"teacher.text_prompt_depth: {clip.name}'s text tower"
        _check_depth(_text_tower(clip), config.text_prompt_depth, where)
    if clip.is_vit and config.prompt_length > 0:
        check_visual_depth(clip, config.prompt_depth, "teacher")


def _check_depth(tower: nn.Module, depth: int, where: str) -> None:
    layers = len(tower.transformer.resblocks)  # type: ignore[union-attr,arg-type]
    if depth > layers:
        raise UserError(f"{where} has {layers} layers, not {depth}")


def check_class_names(clip: Clip, classes: tuple[str, ...], context: str, length: int) -> None:
    """UserError where the prompted text tower has no room for the name of a class."""
    text_prompt(clip, classes, context, length, depth=1, seed=0)


def visual_tokens(clip: Clip, length: int, depth: int, seed: int) -> Tensor:
    """Initial visual prompts `[depth, L, W]`, normal with std 0.02 (PAPER 2.5)."""
    visual = clip.visual
    width = visual.class_embedding.shape[0]  # type: ignore[union-attr,index]
    return torch.randn(depth, length, int(width), generator=generator(seed, "visual")) * PROMPT_STD


def embed_images(clip: Clip, images: Tensor) -> Tensor:
    """Prepared images `[B, 3, S, S]` to the ViT's normalised input tokens `[B, T, W]`.

    Frozen and the same for all arms, so a cohort computes it once a batch.
    """
    with torch.no_grad():
        return clip.visual._embeds(images)  # type: ignore[no-any-return,operator]


def encode_embedded(clip: Clip, embedded: Tensor, prompts: Tensor) -> Tensor:
    """ViT features `[A, B, D]`, not normalised, of `embedded` `[A or 1, B, T, W]` under prompts.

    prompts: `[A, depth, L, W]`. Source: PAPER 2.5; ln_pre works token by token, so norming the
    prompts apart equals norming the joined sequence. They leave before the tower pools.
    """
    visual = clip.visual
    arms, depth, length, width = prompts.shape
    batch, tokens = embedded.shape[1], embedded.shape[2]
    x = embedded.expand(arms, batch, tokens, width).reshape(arms * batch, tokens, width)
    blocks = list(visual.transformer.resblocks)  # type: ignore[union-attr,arg-type]
    for layer, block in enumerate(blocks):
        if layer < depth:
            fresh = prompts[:, layer, None].expand(arms, batch, length, width)
            fresh = fresh.reshape(arms * batch, length, width)
            if layer == 0:
                fresh = visual.ln_pre(fresh)  # type: ignore[operator]
            x = torch.cat([x[:, :tokens], fresh.to(x.dtype)], dim=1)
        x = run_block(block, x, _tokens_read(visual, layer, depth, len(blocks), tokens))
    pooled, _ = visual._pool(x[:, :tokens])  # type: ignore[operator]
    features = pooled @ visual.proj if visual.proj is not None else pooled
    return features.reshape(arms, batch, -1)  # type: ignore[no-any-return]


def _tokens_read(visual: nn.Module, layer: int, depth: int, layers: int, tokens: int) -> int | None:
    """How many of a layer's outputs anything reads; None for all.

    Prompt tokens whose places the next layer gives to fresh ones are read by nobody, and from the last
    layer most towers take the class token alone.
    """
    if layer == layers - 1:
        alone = visual.attn_pool is None and visual.pool_type == "tok"
        return 1 if alone else tokens
    return tokens if layer + 1 < depth else None


def run_block(block: Any, x: Tensor, count: int | None = None) -> Tensor:
    """A block of an image tower on `[N, T, W]`, for its first `count` tokens `[N, count, W]`, or for all.

    What open_clip's own block computes, in fewer operations: one product makes query, key and value,
    nothing is transposed to be copied, and tokens that nobody reads are keys and values only. A block of
    another kind runs as it is, and its further tokens are dropped.
    """
    from open_clip.transformer import ResidualAttentionBlock

    if type(block) is not ResidualAttentionBlock:
        return block(x)[:, :count]  # type: ignore[no-any-return]
    x = x[:, :count] + block.ls_1(_attend(block.attn, block.ln_1(x), count))
    return x + block.ls_2(block.mlp(block.ln_2(x)))  # type: ignore[no-any-return]


def _attend(attention: nn.MultiheadAttention, x: Tensor, count: int | None) -> Tensor:
    """Self-attention of `[N, T, W]` for the first `count` tokens, or for all: `[N, count, W]`."""
    width, heads = attention.embed_dim, attention.num_heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if count is None:
        query, key, value = F.linear(x, weight, bias).unflatten(-1, (3, heads, -1)).unbind(2)
    else:
        query = F.linear(x[:, :count], weight[:width], bias[:width]).unflatten(-1, (heads, -1))
        key, value = F.linear(x, weight[width:], bias[width:]).unflatten(-1, (2, heads, -1)).unbind(2)
    query, key, value = (one.transpose(1, 2) for one in (query, key, value))  # [N, heads, T, W / heads]
    mixed = F.scaled_dot_product_attention(query, key, value)
    return F.linear(mixed.transpose(1, 2).flatten(2), attention.out_proj.weight, attention.out_proj.bias)


@dataclass(frozen=True)
class TextPrompt:
    """What the prompted text tower starts from: class prompts as tokens, and initial learnables."""

    tokens: Tensor
    """`[C, T]` token ids of "<context> <class>."; the context's places are the learnable ones."""
    initial: Tensor
    """`[depth, L, W]`; layer 0 holds the embedded context words where their number is L."""


def text_prompt(
    clip: Clip, classes: tuple[str, ...], context: str, length: int, depth: int, seed: int
) -> TextPrompt:
    """Tokenise the class prompts and make the initial context (PAPER 2.7)."""
    tower = _text_tower(clip)
    embedding = tower.token_embedding.weight  # type: ignore[union-attr]
    assert isinstance(embedding, Tensor)
    initial = torch.randn(depth, length, embedding.shape[1], generator=generator(seed, "text")) * PROMPT_STD
    words = clip.tokenize([context])[0]
    end = int(words.argmax())
    if end - 1 == length:
        initial[0] = embedding[words[1:end].to(embedding.device)].cpu()
    else:  # as CoOp: other lengths start from random vectors in the place of placeholder words
        context = " ".join(["X"] * length)
    return TextPrompt(_whole(clip, classes, context, length).to(clip.device), initial.to(clip.device))


def _whole(clip: Clip, classes: tuple[str, ...], context: str, length: int) -> Tensor:
    """Tokens `[C, T]` of every class prompt. UserError where the tokeniser, which is silent, cuts one."""
    texts = [f"{context} {name}." for name in classes]
    tokens = clip.tokenize(texts)
    room = tokens.shape[1]
    longer = clip.tokenize(texts, context_length=room + 1)[:, :room]  # here a cut prompt has no end yet
    if cut := (longer != tokens).any(1).nonzero().flatten().tolist():
        raise UserError(
            f"{clip.name}: class '{classes[cut[0]]}' does not fit into the {room} tokens of its text tower"
            f" behind teacher.text_prompt_length: {length}; shorten the prompt or the name"
        )
    return tokens


def encode_text_prompted(clip: Clip, tokens: Tensor, prompts: Tensor) -> Tensor:
    """Class features `[C, D]`, not normalised, of tokens `[C, T]` under prompts `[depth, L, W]`.

    Layer 0 replaces the embedded context before positions are added; layers 1..depth-1 replace the
    context's outputs of the layer before (PAPER 2.7, 2.8).
    """
    from open_clip.transformer import text_global_pool

    tower = _text_tower(clip)
    depth, length, _ = prompts.shape
    count, places = tokens.shape[0], slice(1, 1 + length)
    x = tower.token_embedding(tokens)  # type: ignore[operator]
    x = _replace(x, prompts[0].expand(count, -1, -1), places) + tower.positional_embedding[: x.shape[1]]  # type: ignore[index]
    mask = tower.attn_mask[: x.shape[1], : x.shape[1]]  # type: ignore[index]
    for layer, block in enumerate(tower.transformer.resblocks):  # type: ignore[union-attr,arg-type]
        if 0 < layer < depth:
            x = _replace(x, prompts[layer].expand(count, -1, -1), places)
        x = block(x, attn_mask=mask)
    x = text_global_pool(tower.ln_final(x), tokens, _pool_type(clip))  # type: ignore[operator]
    projection = tower.text_projection
    return projection(x) if isinstance(projection, nn.Module) else x @ projection


def _replace(x: Tensor, fresh: Tensor, places: slice) -> Tensor:
    return torch.cat([x[:, : places.start], fresh.to(x.dtype), x[:, places.stop :]], dim=1)


def _text_tower(clip: Clip) -> nn.Module:
    """The part that holds the text tower: the model itself, or its `text` for custom towers."""
    tower = getattr(clip.model, "text", clip.model)
    if (
        not hasattr(tower, "token_embedding")
        or getattr(tower, "cls_emb", None) is not None
        or tower.attn_mask is None
    ):
        raise UserError(
            f"{clip.name}: its text tower takes no prompts (it is not open_clip's causal one);"
            " set teacher.epochs: 0 to use it zero-shot"
        )
    assert isinstance(tower, nn.Module)
    return tower


def _pool_type(clip: Clip) -> str:
    tower = _text_tower(clip)
    kind = getattr(tower, "pool_type", None) or getattr(clip.model, "text_pool_type", "argmax")
    if kind not in ("argmax", "last", "first"):
        raise UserError(f"{clip.name}: text pooling '{kind}' takes no prompts; set teacher.epochs: 0")
    return str(kind)
