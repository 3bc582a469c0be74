"""Pixels as the published code reads them: every image decoded and augmented by PIL, every time.

The crop boxes are those of `data/views.py`, so that the same image and view show the same part of the
photograph here and in the pixel store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import functional as transforms
from torchvision.transforms.functional import InterpolationMode

from comkd_ray.bank import CENTER
from comkd_ray.data.decoding import upright
from comkd_ray.data.views import view_boxes
from comkd_ray.photographs import Photographs

Item = tuple[int, int]
"""(image, view); view 0 is the centre crop of evaluation."""


class FileViews(Dataset[tuple[Tensor, ...]]):
    """Images from their files: decoded, cropped and resized by PIL at every access."""

    def __init__(self, photographs: Photographs, sizes: Sequence[int]) -> None:
        """sizes: sides that the towers want; one of them if they agree."""
        self.folder, self.paths = photographs.table.root, photographs.table.paths
        self.shapes, self.keys = photographs.store.sizes, photographs.store.keys
        self.sizes = tuple(sizes)

    def decode(self, image: int) -> Image.Image:
        """The upright photograph."""
        with Image.open(self.folder / self.paths[image]) as file:
            return upright(file)

    def __getitem__(self, item: Item) -> tuple[Tensor, ...]:
        """Pixels in 0..1 `[3, S, S]`, one tensor a size: RandomResizedCrop and flip, or centre crop."""
        image, view = item
        picture = self.decode(image)
        if view == CENTER:
            return tuple(_center(picture, size) for size in self.sizes)
        boxes, flips = view_boxes(self.keys[image : image + 1], self.shapes[image : image + 1], view)
        height, width = self.shapes[image]
        top, left, bottom, right = (boxes[0] * [height, width, height, width]).round().astype(int).tolist()
        if flips[0]:
            picture, left, right = transforms.hflip(picture), int(width) - right, int(width) - left
        box = (top, left, bottom - top, right - left)
        return tuple(_crop(picture, box, size) for size in self.sizes)


def _crop(picture: Image.Image, box: tuple[int, int, int, int], size: int) -> Tensor:
    view = transforms.resized_crop(picture, *box, [size, size], InterpolationMode.BICUBIC)
    return transforms.to_tensor(view)


def _center(picture: Image.Image, size: int) -> Tensor:
    resized = transforms.resize(picture, [size], InterpolationMode.BICUBIC)
    return transforms.to_tensor(transforms.center_crop(resized, [size, size]))


class Order(Sampler[Item]):
    """The items of the coming epoch; `items` is set before it."""

    items: list[Item]

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)
