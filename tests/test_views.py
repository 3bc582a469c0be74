"""Views: seeded boxes that follow torchvision's distribution, rendered as PIL would."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tv

from comkd_ray.data.views import center_boxes, image_keys, render, view_boxes

ROUNDING = 2.5 / 255  # PIL rounds and clips to 0..255 after the rows, and again after the columns
FULL = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


def keys(count: int) -> NDArray[np.uint64]:
    return image_keys([f"class/{i}.jpg" for i in range(count)])


def sizes(count: int, height: int, width: int) -> NDArray[np.int32]:
    return np.tile(np.array([height, width], dtype=np.int32), (count, 1))


def photograph(side: int = 64, seed: int = 0) -> Tensor:
    """uint8 [1, 3, side, side]: coarse noise enlarged, as smooth as a photograph, edges and all."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def box(*edges: float) -> Tensor:
    return torch.tensor([edges], dtype=torch.float64)


# Boxes ------------------------------------------------------------------------------------------


def test_a_key_is_the_hash_of_the_path_alone() -> None:
    assert image_keys(["a.jpg", "b.jpg"])[1] == image_keys(["b.jpg"])[0]
    assert len(set(keys(10_000).tolist())) == 10_000
    assert image_keys(["cat/1.jpg"]).tolist() == [15132351748868210994]


def test_views_are_the_same_on_every_machine() -> None:
    """Frozen: whoever changes a view invalidates every teacher bank."""
    boxes, flips = view_boxes(image_keys(["cat/1.jpg"] * 2), sizes(2, 300, 200), np.array([0, 2]))
    pixels = boxes * [300, 200, 300, 200]
    assert pixels.round(9).tolist() == [[52, 2, 203, 200], [16, 55, 132, 148]]
    assert flips.tolist() == [True, False]


def test_two_processes_draw_the_same_views() -> None:
    code = (
        "import numpy as np; from comkd_ray.data.views import *;"
        "keys = image_keys([f'{i}.jpg' for i in range(500)]);"
        "boxes, flips = view_boxes(keys, np.full((500, 2), [333, 217], dtype=np.int32), 5);"
        "print(boxes.tobytes().hex(), flips.tolist())"
    )
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    one, two = (process.communicate()[0] for process in processes)
    assert one == two
    assert len(one) > 500 * 64


def test_a_view_does_not_hang_on_the_batch_it_is_drawn_in() -> None:
    everything = view_boxes(keys(100), sizes(100, 300, 200), 3)
    some = view_boxes(keys(100)[[70, 5]], sizes(2, 300, 200), np.array([3, 3]))
    assert np.array_equal(everything[0][[70, 5]], some[0])
    assert np.array_equal(everything[1][[70, 5]], some[1])


def test_views_and_images_are_drawn_independently() -> None:
    count = 4000
    tops = [view_boxes(keys(count), sizes(count, 300, 300), view)[0][:, 0] for view in (0, 1)]
    assert abs(np.corrcoef(tops[0], tops[1])[0, 1]) < 0.05  # 3 standard deviations
    assert abs(np.corrcoef(tops[0][1:], tops[0][:-1])[0, 1]) < 0.05


@pytest.mark.parametrize(("height", "width"), [(300, 200), (64, 64), (1, 1), (3, 500), (4000, 7)])
def test_boxes_lie_inside_the_image_and_are_never_empty(height: int, width: int) -> None:
    boxes, _ = view_boxes(keys(2000), sizes(2000, height, width), 1)
    top, left, bottom, right = boxes.T
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert ((bottom - top) * height > 0.999).all()
    assert ((right - left) * width > 0.999).all()


def test_areas_and_ratios_stay_in_their_ranges() -> None:
    boxes, _ = view_boxes(keys(5000), sizes(5000, 600, 600), 2)
    height, width = (boxes[:, 2] - boxes[:, 0]) * 600, (boxes[:, 3] - boxes[:, 1]) * 600
    area, ratio = height * width / 600**2, width / height
    assert 0.079 < area.min() < 0.1
    assert 0.9 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < 1.35


@pytest.mark.parametrize(("height", "width"), [(300, 200), (224, 224), (150, 600)])
def test_boxes_have_the_distribution_of_torchvision(height: int, width: int) -> None:
    count = 3000
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    )
    boxes, _ = view_boxes(keys(count), sizes(count, height, width), 0)
    top, left, bottom, right = (boxes * [height, width, height, width]).T
    ours = np.stack([top, left, bottom - top, right - left], axis=1)
    for name, a, b in zip(["top", "left", "height", "width"], ours.T, theirs.T, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3, name
    assert stats.ks_2samp(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 1000, (10, 13)), (1000, 10, (13, 10))],
)
def test_an_image_that_no_try_fits_gives_its_central_part(
    height: int, width: int, expected: tuple[int, int]
) -> None:
    boxes, _ = view_boxes(keys(50), sizes(50, height, width), 0)
    central = boxes[np.isclose((boxes[:, 2] - boxes[:, 0]) * height, expected[0])]
    tall, wide = (central[:, 2] - central[:, 0]) * height, (central[:, 3] - central[:, 1]) * width
    assert len(central) > 40
    assert np.allclose(tall, expected[0])
    assert np.allclose(wide, expected[1])
    assert np.allclose(central[:, :2] + central[:, 2:], 1, atol=1 / 500)


def test_half_of_the_views_are_flipped() -> None:
    _, flips = view_boxes(keys(10_000), sizes(10_000, 300, 200), 0)
    assert abs(flips.mean() - 0.5) < 0.02  # 4 standard deviations


def test_center_boxes_are_the_central_squares() -> None:
    boxes = center_boxes(np.array([[100, 300], [200, 100], [50, 50]], dtype=np.int32))
    expected = np.array([[0, 1 / 3, 1, 2 / 3], [0.25, 0, 0.75, 1], [0, 0, 1, 1]])
    assert np.allclose(boxes, expected)


# Rendering --------------------------------------------------------------------------------------


def test_the_full_box_at_the_stored_size_is_the_image() -> None:
    image = photograph()
    assert torch.allclose(render(image, FULL, None, 64), image / 255, atol=1e-6)


@pytest.mark.parametrize("size", [16, 40, 64, 100])
@pytest.mark.parametrize(
    "edges", [(0, 0, 61, 61), (8, 16, 40, 60), (30, 0, 61, 9), (5, 5, 7, 8), (60, 60, 61, 61)]
)
def test_a_box_of_whole_pixels_is_a_crop_and_a_resize(edges: tuple[int, int, int, int], size: int) -> None:
    """Against torch on floats, exactly; against PIL and torchvision up to their rounding."""
    image = photograph(61)
    ours = render(image, box(*(edge / 61 for edge in edges)), None, size)
    top, left, bottom, right = edges
    crop = image[:, :, top:bottom, left:right]
    exact = interpolate(crop.float(), (size, size), mode="bicubic", antialias=True) / 255
    assert torch.allclose(ours, exact.clamp(0, 1), atol=2e-5)

    whole = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    pil = whole.crop((left, top, right, bottom)).resize((size, size), Image.Resampling.BICUBIC)
    assert torch.allclose(ours[0], tv.to_tensor(pil), atol=ROUNDING)
    vision = tv.resized_crop(
        image, top, left, bottom - top, right - left, [size, size], InterpolationMode.BICUBIC
    )
    assert torch.allclose(ours, vision / 255, atol=ROUNDING)


def test_a_box_between_pixels_is_the_crop_of_a_finer_image() -> None:
    """Edges at quarters of a pixel: as if the image had been enlarged four times before."""
    image = photograph()
    ours = render(image, box(8.25 / 64, 16.75 / 64, 40.5 / 64, 57 / 64), None, 24)
    fine = render(image, FULL, None, 256)[:, :, 33:162, 67:228]
    reference = interpolate(fine, (24, 24), mode="bicubic", antialias=True)
    assert (ours - reference).abs().mean() < 0.005
    assert (ours - reference).abs().max() < 0.05


def test_a_photograph_stored_as_a_square_gives_the_crop_of_the_original() -> None:
    """Squashing and un-squashing costs some sharpness and nothing else."""
    wide = Image.fromarray(photograph(300)[0].permute(1, 2, 0).numpy()).resize((300, 200))
    square = tv.pil_to_tensor(wide.resize((256, 256), Image.Resampling.BICUBIC))[None]
    ours = render(square, box(20 / 200, 60 / 300, 180 / 200, 220 / 300), None, 96)
    original = wide.crop((60, 20, 220, 180)).resize((96, 96), Image.Resampling.BICUBIC)
    assert (ours[0] - tv.to_tensor(original)).abs().max() < 3 / 255


def test_a_flip_mirrors_columns_of_the_flipped_images_only() -> None:
    images = torch.cat([photograph(seed=1), photograph(seed=2)])
    boxes = box(0.1, 0.2, 0.7, 0.9).repeat(2, 1)
    plain = render(images, boxes, None, 32)
    flipped = render(images, boxes, torch.tensor([True, False]), 32)
    assert torch.allclose(flipped[0], plain[0].flip(-1), atol=1e-6)
    assert torch.equal(flipped[1], plain[1])
    assert not torch.allclose(flipped[0], plain[0], atol=0.1)


def test_a_box_smaller_than_a_pixel_shows_that_pixel() -> None:
    image = photograph()
    ours = render(image, box(20.3 / 64, 30.4 / 64, 20.6 / 64, 30.7 / 64), None, 8)
    expected = image[0, :, 20, 30] / 255
    assert torch.allclose(ours[0], expected[:, None, None].expand(3, 8, 8), atol=1e-6)


def test_overshoot_of_the_filter_is_clamped() -> None:
    edge = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    edge[..., 4:] = 255
    ours = render(edge, FULL, None, 32)
    unclamped = interpolate(edge.float(), (32, 32), mode="bicubic", antialias=True)
    assert unclamped.min() < -5
    assert unclamped.max() > 260
    assert ours.min() == 0
    assert ours.max() == 1


def test_every_image_has_its_own_box() -> None:
    images = torch.cat([photograph(seed=1), photograph(seed=2), photograph(seed=3)])
    drawn, flips = view_boxes(keys(3), sizes(3, 64, 64), 0)
    boxes, mirrored = torch.from_numpy(drawn), torch.from_numpy(flips)
    together = render(images, boxes, mirrored, 20)
    for i in range(3):
        alone = render(images[i : i + 1], boxes[i : i + 1], mirrored[i : i + 1], 20)
        assert torch.allclose(together[i : i + 1], alone, atol=1e-6)


def test_autocast_does_not_coarsen_the_pixels() -> None:
    image = photograph()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = render(image, FULL, None, 32)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, render(image, FULL, None, 32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_renders_what_a_cpu_renders() -> None:
    image, edges = photograph(), box(0.1, 0.2, 0.7, 0.9)
    ours = render(image.cuda(), edges, torch.tensor([True]), 48).cpu()
    assert torch.allclose(ours, render(image, edges, torch.tensor([True]), 48), atol=1e-4)
