"""A photograph from its file: upright, in RGB, squashed to a square. All that decode do it here."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

FORMAT = 1
"""Raised when decoding changes: part of every key and digest of pixels."""


class Picture(NamedTuple):
    """A decoded image."""

    square: NDArray[np.uint8]
    """[3, S, S] the whole image, squashed."""
    size: tuple[int, int]
    """Height and width of the upright original."""
    digest: bytes
    """Hash of the file."""


def decode(path: Path, side: int) -> Picture | str:
    """The image as a square, or the reason why it cannot be decoded."""
    try:
        content = path.read_bytes()
        with Image.open(BytesIO(content)) as image:
            width, height = image.size
            image.draft(None, (2 * side, 2 * side))  # a large JPEG is decoded at 1/2, 1/4 or 1/8
            drafted = image.size
            photograph = upright(image)
            if photograph.size != drafted:  # the camera was held sideways
                width, height = height, width
            square = photograph.resize((side, side), Image.Resampling.BICUBIC)
    except Exception as error:  # decoders raise whatever broken bytes lead them to
        return " ".join(str(error).split()) or type(error).__name__
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return Picture(np.asarray(square).transpose(2, 0, 1), (height, width), digest)


def upright(image: Image.Image) -> Image.Image:
    """8-bit RGB as the camera was held: 16 bits are scaled, not clipped; what is transparent gets white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.int64)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels have no known range; convert the image to 8 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
