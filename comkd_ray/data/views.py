"""Seeded views: (image, view) gives the same crop and flip in every process, on every machine.

The draws are a counter-based hash of the image's key, the view and a counter: no generator, no
state, no order. Pixels are stored squashed to a square, so a box is given in fractions 0..1 of the
image and cropping, resizing and flipping become two matrix products.

Letters: B images, S side of the stored square, O side of the output.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comkd_ray.data.splits import mix64

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10
FLIP = 0.5

Floats = NDArray[np.float64]


def image_keys(paths: Sequence[str]) -> NDArray[np.uint64]:
    """[N] stable 64-bit hash of each relative path."""
    digests = (hashlib.blake2b(os.fsencode(path), digest_size=8).digest() for path in paths)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def view_boxes(
    keys: NDArray[np.uint64], sizes: NDArray[np.int32], view: int | NDArray[np.int64]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Boxes [B, 4] (top, left, bottom, right) and flips [B] of one view of each image.

    torchvision's RandomResizedCrop and a horizontal flip (PAPER 3.9): a box covers 0.08-1 of the
    area with a log-uniform ratio in 3/4..4/3; the first of 10 tries that fits the image is taken,
    else the central box. `sizes` [B, 2] are height and width of the original image, in whose whole
    pixels the box is drawn, so the ratio is that of the photograph.
    """
    draws = _uniform(keys, view, 2 * TRIES + 3)
    image = sizes.astype(np.float64)
    tries = _tries(draws[:, :TRIES], draws[:, TRIES : 2 * TRIES], image)
    fits = np.all((tries > 0) & (tries <= image[:, None]), axis=2)
    first = tries[np.arange(len(keys)), fits.argmax(axis=1)]
    found = np.any(fits, axis=1, keepdims=True)
    box = np.where(found, first, _central(image))
    slack = image - box
    drawn = np.floor(draws[:, 2 * TRIES : 2 * TRIES + 2] * (slack + 1))
    start = np.where(found, drawn, np.floor(slack / 2))
    boxes = np.concatenate([start / image, (start + box) / image], axis=1)
    return boxes, draws[:, -1] < FLIP


def _uniform(keys: NDArray[np.uint64], view: int | NDArray[np.int64], count: int) -> Floats:
    """[B, count] numbers in [0, 1): the upper 53 bits of a hash of key, view and counter."""
    views = np.broadcast_to(np.asarray(view, dtype=np.uint64), keys.shape)
    state = mix64(keys ^ mix64(views))
    bits = mix64(state[:, None] ^ mix64(np.arange(count)))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _tries(area: Floats, ratio: Floats, image: Floats) -> Floats:
    """[B, TRIES, 2] height and width of the tries.

    Rounded to pixels, so that the last bit of `exp`, which differs between processors, is lost.
    """
    pixels = image.prod(axis=1)[:, None] * (AREA[0] + (AREA[1] - AREA[0]) * area)
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    shape = np.exp(low + (high - low) * ratio)
    sides: Floats = np.stack([np.sqrt(pixels / shape), np.sqrt(pixels * shape)], axis=2)
    return np.rint(sides)


def _central(image: Floats) -> Floats:
    """[B, 2] the largest height and width whose ratio is in 3/4..4/3."""
    height, width = image.T
    tallest, widest = np.rint(width / RATIO[0]), np.rint(height * RATIO[1])
    return np.stack([np.minimum(height, tallest), np.minimum(width, widest)], axis=1)


def center_boxes(sizes: NDArray[np.int32]) -> Floats:
    """[B, 4] the central square: resize the shorter side, then centre crop (PAPER 3.10)."""
    image = sizes.astype(np.float64)
    side = image.min(axis=1, keepdims=True)
    start = (image - side) / 2
    return np.concatenate([start / image, (start + side) / image], axis=1)


def render(pixels: Tensor, boxes: Tensor, flips: Tensor | None, size: int) -> Tensor:
    """Views float32 [B, 3, O, O] in 0..1 of stored images uint8 [B, 3, S, S].

    Crop to the box, then resize with PIL's antialiased bicubic filter, which is separable: rows and
    columns are each one product with a weight matrix [O, S] of every image.
    """
    images, _, side, _ = pixels.shape
    edges = boxes.to(device=pixels.device, dtype=torch.float32, non_blocking=True) * side
    rows = _resampling(edges[:, 0], edges[:, 2], side, size)
    columns = _resampling(edges[:, 1], edges[:, 3], side, size)
    if flips is not None:
        columns = torch.where(
            flips.to(pixels.device, non_blocking=True)[:, None, None], columns.flip(1), columns
        )
    with torch.autocast(pixels.device.type, enabled=False):  # 8 bits of bfloat16 are too few
        wide = pixels.to(torch.float32).reshape(images, 3 * side, side) @ columns.transpose(1, 2)
        tall = rows[:, None] @ wide.reshape(images, 3, side, size)
    return tall.div_(255).clamp_(0, 1)


def _resampling(start: Tensor, end: Tensor, side: int, size: int) -> Tensor:
    """[B, O, S] weights that resample the pixels from start to end (in pixels) to `size` pixels.

    As after a crop, only pixels inside the box count; each row sums to 1. The filter reaches K of
    the S pixels: [B, O, K] values are computed, then scattered to their places.
    """
    reach = min(side, int(4 * max(side / size, 1)) + 2)  # K, enough for the largest box
    outputs = torch.arange(size, device=start.device) + 0.5
    scale = ((end - start) / size)[:, None]
    center = start[:, None] + outputs * scale
    stretch = scale.clamp(min=1)  # shrinking widens the filter: that is the antialiasing
    first = (center - 2 * stretch).floor().clamp(0, side - reach)
    at = first[:, :, None] + torch.arange(reach, device=start.device)
    weights = _bicubic((at + 0.5 - center[:, :, None]) / stretch[:, :, None])
    whole = 1e-3  # a box that ends on a whole pixel must not reach the next one by rounding
    low, high = (start + whole).floor(), (end - whole).ceil()
    weights = weights * ((at >= low[:, None, None]) & (at < high[:, None, None]))
    weights = weights / weights.sum(dim=2, keepdim=True)
    return weights.new_zeros(len(start), size, side).scatter_(2, at.long(), weights)


def _bicubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5, as in PIL."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
