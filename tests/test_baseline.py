"""The published loop does the product's arithmetic; only the way to pixels and teacher features differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import outer
import pytest
import torch
from PIL import Image
from torch import Tensor

from comkd_ray import prepare, study_file
from comkd_ray.bank import CENTER, pixels_of
from comkd_ray.baseline import Published, items, open_arm, probe, train_arm
from comkd_ray.bench_files import FileViews
from comkd_ray.cohort import Arm, Cohort, Knobs
from comkd_ray.config import Study
from comkd_ray.data.datasets import TEST, TRAIN, VAL
from comkd_ray.material import Material, open_material, read_card, write_card
from comkd_ray.train import EpochReport, fit

Tree = dict[str, Any]
BOTH: Tree = {"student.ifalign": True, "student.edu_attention": True}
NEITHER: Tree = {"student.ifalign": False, "student.edu_attention": False}
pytestmark = pytest.mark.usefixtures("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose teacher is tuned, with its cache beside it; photographs are smooth JPEGs."""
    root = outer.world(tmp_path_factory.mktemp("baseline"))
    for path in sorted((root / "photographs").glob("*/*.png")):
        with Image.open(path) as noise:
            noise.resize((3, 3)).resize((90, 70), Image.Resampling.BICUBIC).save(
                path.with_suffix(".jpg"), quality=95
            )
        path.unlink()
    study = outer.study(root, data={"side": 64})
    run = root / "run"
    run.mkdir()
    study_file.dump(study, run / "study.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        write_card(run, prepare.prepare(study, root / "cache", lambda *_: None))
    return root


@pytest.fixture
def order(world: Path) -> Callable[..., Tree]:
    """The work order of an arm with these values."""

    def order(overrides: Tree, **more: Any) -> Tree:
        own = {"cached_text": False, "kept_memory": False, "workers": 0, "threads": 1}
        places = {"run": str(world / "run"), "cache": str(world / "cache")}
        return places | {"overrides": overrides} | own | more

    return order


@pytest.fixture
def arm(order: Callable[..., Tree]) -> Callable[..., Published]:
    return lambda overrides, **more: open_arm(order(overrides, **more))


def ours(world: Path, study: Study) -> tuple[Cohort, Material]:
    material = open_material(study, read_card(world / "run"), world / "cache")
    return Cohort([Arm("only", study)], material), material


# The same arithmetic ----------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [NEITHER, BOTH, BOTH | {"student.align_features": "raw"}])
@pytest.mark.parametrize("cached_text", [False, True])
def test_the_loss_of_the_same_pixels_is_the_products(
    arm: Callable[..., Published], world: Path, overrides: Tree, cached_text: bool
) -> None:
    one = arm(overrides, cached_text=cached_text)
    cohort, material = ours(world, one.study)
    batch = cohort.train_images[:8]
    device = torch.device("cpu")
    pixels = {size: pixels_of(material.photographs.store, batch, 1, size, device) for size in one.sizes}
    knobs, place = Knobs.of([one.study], device), torch.tensor([0])

    theirs = one.loss(pixels)
    own = cohort.losses(batch[None], 1, place, knobs)["loss"].sum()
    torch.testing.assert_close(theirs, own, rtol=2e-3, atol=2e-3)  # the bank is float16

    theirs.backward()
    own.backward()
    for name, tensor in one.student.tensors.items():
        other = cohort.student.tensors[name].grad
        assert (tensor.grad is None) == (other is None), name
        if tensor.grad is not None and other is not None:
            near = (tensor.grad - other).norm() <= 0.02 * other.norm() + 1e-5
            assert near, name


def test_the_text_tower_gives_the_cached_features(arm: Callable[..., Published]) -> None:
    one = arm(NEITHER)
    pixels = {size: torch.rand(2, 3, size, size) for size in one.sizes}
    _, text = one.teach(pixels)
    torch.testing.assert_close(text, one.text, rtol=1e-5, atol=1e-5)
    assert text is not one.text


def test_images_are_seen_in_the_products_order(arm: Callable[..., Published], world: Path) -> None:
    one = arm(NEITHER)
    seen = items(one.study, one.photographs, 3)
    assert {view for _, view in seen} == {1}  # two views, third epoch
    assert sorted(image for image, _ in seen) == one.photographs.part(TRAIN).tolist()
    assert seen != items(one.study, one.photographs, 2)


def test_scores_of_the_same_pixels_are_the_products(arm: Callable[..., Published], world: Path) -> None:
    one = arm(BOTH)
    cohort, material = ours(world, one.study)
    store, device = material.photographs.store, torch.device("cpu")

    def batches(part: int) -> list[list[Tensor]]:
        images = one.photographs.part(part)
        parts = (images[k : k + 7] for k in range(0, len(images), 7))
        return [[pixels_of(store, some, CENTER, size, device) for size in one.sizes] for some in parts]

    seen = cohort.evaluate()[0]
    assert one.evaluate(batches(VAL), VAL) == pytest.approx(seen)
    cohort.charge([{"arm": "only", "epoch": 1, "loss": 1.0, **seen}], 1.0)
    cohort.test(["only"])
    row = cohort.history["only"][0]
    tested = one.evaluate(batches(TEST), TEST)
    assert tested == pytest.approx({key: row[key] for key in tested})
    assert set(tested) == {"test_base_accuracy", "test_novel_accuracy", "test_harmonic_mean"}


def test_a_trained_arm_has_the_losses_of_the_product(arm: Callable[..., Published], world: Path) -> None:
    """Smooth photographs: what is left is the difference between PIL's and the store's resizing."""
    one = arm(BOTH)
    row = train_arm(one, workers=0)
    _, material = ours(world, one.study)
    reports: list[EpochReport] = []
    fit([Arm("only", one.study)], material, reports.append)
    ended = reports[-1].ended[0]
    loss = next(epoch for epoch in ended.epochs if epoch["epoch"] == row["best_epoch"])["loss"]
    assert row["loss"] == pytest.approx(loss, rel=0.02)
    assert row.keys() - {"loss", "teacher_images"} <= ended.arm.keys()


# What it costs ----------------------------------------------------------------------------------


def test_every_image_of_every_step_and_evaluation_goes_through_the_teacher(
    arm: Callable[..., Published],
) -> None:
    one = arm(NEITHER, cached_text=True)
    seen: list[int] = []
    one.teacher.visual.conv1.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))  # type: ignore[union-attr]
    row = train_arm(one, workers=0)
    train, val, test = (len(one.photographs.part(part)) for part in (TRAIN, VAL, TEST))
    full = train - train % one.study.train.batch_size
    assert row["teacher_images"] == sum(seen) == one.study.train.epochs * (full + val) + test


def test_the_probe_tries_loaders_and_puts_the_fastest_first(
    arm: Callable[..., Published], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    threads = torch.get_num_threads()
    try:
        found = probe(arm(NEITHER))
    finally:
        torch.set_num_threads(threads)
    assert {one["workers"] for one in found["tried"]} == {0, 1, 2}
    assert found["seconds_per_step"] == min(one["seconds_per_step"] for one in found["tried"])


# Pixels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", [CENTER, 1, 2])
def test_files_show_what_the_store_shows(world: Path, arm: Callable[..., Published], view: int) -> None:
    photographs = arm(NEITHER).photographs
    images = photographs.part(TRAIN)
    stored = pixels_of(photographs.store, images, view, 32, torch.device("cpu"))
    files = FileViews(photographs, (32,))
    decoded = torch.stack([files[int(image), view][0] for image in images])
    assert decoded.shape == stored.shape
    assert distance(decoded, stored) < 0.02
    assert distance(decoded, stored.flip(0)) > 0.1  # of other images


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().mean())


def test_one_item_serves_towers_of_two_sizes(world: Path, arm: Callable[..., Published]) -> None:
    photographs = arm(NEITHER).photographs
    small, large = FileViews(photographs, (16, 48))[0, 1]
    assert (small.shape, large.shape) == ((3, 16, 16), (3, 48, 48))
    shrunk = torch.nn.functional.interpolate(large[None], (16, 16), mode="area")[0]
    assert np.abs((shrunk - small).numpy()).mean() < 0.03
