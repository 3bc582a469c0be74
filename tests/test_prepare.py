"""Everything that is done once a study: done once, from base training images only, with no label leaking."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import comkd_ray.stage_one
from comkd_ray import bank_store
from comkd_ray.bank import read_bank
from comkd_ray.cohort import Arm
from comkd_ray.config import Study
from comkd_ray.data.datasets import TEST, TRAIN, open_dataset
from comkd_ray.errors import UserError
from comkd_ray.material import (
    Card,
    Material,
    is_ready,
    open_material,
    read_card,
    read_teacher,
    read_text,
    write_card,
)
from comkd_ray.models import Clip
from comkd_ray.photographs import open_photographs
from comkd_ray.prepare import check, most_shards, prepare, view_count
from comkd_ray.progress import Screen
from comkd_ray.study_run import _Run
from comkd_ray.teacher import imagenet_templates
from comkd_ray.train import EpochReport, fit
from comkd_ray.tune import UNLIMITED

pytestmark = pytest.mark.usefixtures("cpu")

MakeStudy = Callable[..., Study]
Prepared = Callable[[Study], tuple[Card, Material]]
Row = dict[str, Any]
QUICK = {"teacher.epochs": 2, "data.views": 1}


def quiet(stage: str, done: int, total: int) -> None:
    """A progress that nobody watches."""


def lasting(card: Card) -> dict[str, Any]:
    """All of a card but the time that it took."""
    return {key: value for key, value in vars(card).items() if key != "stages"}


# Done once --------------------------------------------------------------------------------------


def test_the_same_study_gives_the_same_card_on_another_machine(
    make_study: MakeStudy, prepared: Prepared, tmp_path: Path
) -> None:
    study = make_study(QUICK)
    assert lasting(prepare(study, tmp_path, quiet)) == lasting(prepared(study)[0])


def test_a_second_study_of_the_same_pair_builds_nothing(
    make_study: MakeStudy, cache: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arms of other knobs, searched otherwise: the towers see a sample of each bank, nothing is tuned."""
    card, _ = prepared(make_study())
    work, seen = comkd_ray.stage_one.encode_prompted, 0

    def again(*_: object) -> None:
        raise AssertionError("built again")

    def count(clip: Clip, pixels: torch.Tensor, visual: torch.Tensor | None) -> torch.Tensor:
        nonlocal seen
        seen += len(pixels)
        return work(clip, pixels, visual)

    monkeypatch.setattr(comkd_ray.stage_one, "encode_prompted", count)
    monkeypatch.setattr(comkd_ray.stage_one, "fit_teacher", again)
    other = make_study({"study": "other", "loss.temperature": 3.0, "train.lr": 0.5, "search.arms": 9})
    assert lasting(prepare(other, cache, quiet)) == lasting(card)
    assert seen == 4 + 4 + 8 + 4  # images of four banks, the training images under two views


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"teacher.lr": 0.03}, {"identity", "teacher", "train_bank", "val_bank"}),
        ({"data.shots": 5}, {"identity", "teacher", "train_bank", "val_bank"}),
        ({"data.views": 3}, {"identity", "teacher", "train_bank", "val_bank"}),
        ({"teacher.epochs": 0}, {"identity", "teacher", "train_bank", "val_bank"}),
        ({"data.side": 36}, {"identity", "data", "teacher", "train_bank", "val_bank"}),
        ({"student.prompt_length": 0}, {"student_banks"}),
    ],
)
def test_what_a_change_makes_anew(
    change: dict[str, Any], parts: set[str], make_study: MakeStudy, prepared: Prepared
) -> None:
    before, after = (prepared(make_study(overrides))[0] for overrides in ({}, change))
    named = ("identity", "data", "teacher", "train_bank", "val_bank", "student_banks")
    assert {name for name in named if getattr(before, name) != getattr(after, name)} == parts


def test_protocol_and_selection_belong_to_the_identity_and_to_nothing_in_the_cache(
    make_study: MakeStudy, prepared: Prepared, image_folder: Path
) -> None:
    """Three studies of one teacher and one set of banks share none of their arms."""
    source = {"root": str(image_folder), "side": 32, "shots": 3, "views": 1}
    kinds = [("cross_dataset", "strict"), ("cross_dataset", "promptkd"), ("domain_generalization", "strict")]
    strict, *others = (
        prepared(make_study({**QUICK, "protocol": protocol, "selection": selection, "source": source}))[0]
        for protocol, selection in kinds
    )
    for card in others:
        assert lasting(replace(card, identity=strict.identity)) == lasting(strict)
    assert len({card.identity for card in (strict, *others)}) == 3


def test_views_that_the_teacher_never_sees_do_not_tune_it_again(
    make_study: MakeStudy, prepared: Prepared
) -> None:
    """Its 4 epochs see 4 views; a longer study has more, and the same teacher."""
    teachers = {views: prepared(make_study({"data.views": views}))[0].teacher for views in (3, 4, 6)}
    assert teachers[4] == teachers[6]
    assert teachers[3] != teachers[4]


def test_other_students_share_the_teacher_and_its_banks(
    make_study: MakeStudy, prepared: Prepared, clip_folders: dict[str, Path]
) -> None:
    vit, _ = prepared(make_study())
    conv, _ = prepared(make_study({"student.model": f"local-dir:{clip_folders['conv']}"}))
    assert (conv.teacher, conv.train_bank, conv.val_bank) == (vit.teacher, vit.train_bank, vit.val_bank)
    assert conv.identity != vit.identity
    assert vit.student_banks is None
    assert conv.student_banks is not None


def test_a_study_that_searches_the_prompt_length_banks_the_bare_tower(
    make_study: MakeStudy, cache: Path
) -> None:
    def banks(*lengths: int) -> object:
        space = {"student.prompt_length": {"choice": lengths}}
        return prepare(make_study({"search.space": space}), cache, quiet).student_banks

    assert banks(0, 2) is not None
    assert banks(1, 2) is None


@pytest.mark.parametrize("call", [2, 5, 9], ids=["first banks", "tuning", "last banks"])
def test_a_preparation_that_was_interrupted_goes_on(
    make_study: MakeStudy,
    prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
) -> None:
    study, work = make_study(QUICK), comkd_ray.stage_one.encode_prompted
    asked = 0

    def stop_midway(*arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == call:
            raise KeyboardInterrupt
        return work(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(comkd_ray.stage_one, "encode_prompted", stop_midway)
        with pytest.raises(KeyboardInterrupt):
            prepare(study, tmp_path, quiet)
    assert lasting(prepare(study, tmp_path, quiet)) == lasting(prepared(study)[0])


def prepare_into(study: Study, cache: Path, card: Path) -> None:
    """What one worker of several does, in a process that knows nothing of this one."""
    bank_store.SHARD = 1
    torch.cuda.is_available = lambda: False
    write_card(card, prepare(study, cache, quiet))


def test_workers_that_prepare_side_by_side_end_with_the_same_card(
    make_study: MakeStudy, prepared: Prepared, tmp_path: Path
) -> None:
    """One tunes the teacher, the shards are shared; each has what a worker alone has."""
    study = make_study(QUICK)
    runs = [tmp_path / "one", tmp_path / "two"]
    fresh = get_context("spawn")
    workers = [fresh.Process(target=prepare_into, args=(study, tmp_path / "cache", run)) for run in runs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert lasting(read_card(runs[0])) == lasting(read_card(runs[1])) == lasting(prepared(study)[0])
    assert len(list((tmp_path / "cache" / "teachers").glob("*/card.json"))) == 1


def test_no_more_workers_prepare_than_the_largest_bank_has_shards(
    make_study: MakeStudy, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study({"data.views": 3})
    assert most_shards(study, cache) == 1
    monkeypatch.setattr(bank_store, "SHARD", 1)
    monkeypatch.setattr(bank_store, "BATCH", 8)
    assert most_shards(study, cache) == 4  # 32 training images


@pytest.mark.parametrize(
    ("compute", "slots", "workers"),
    [
        ({}, 1, 1),
        ({}, 3, 3),
        ({}, 9, 4),  # one for each shard
        ({"compute.workers": 2}, 1, 2),
        ({"compute.gpus": 1.0}, 3, 3),
        ({"compute.gpus": 0.5}, 3, 1),  # two teachers may not fit on one GPU
    ],
)
def test_workers_that_prepare_are_those_that_fit_and_have_something_to_do(
    make_study: MakeStudy,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    compute: dict[str, Any],
    slots: int,
    workers: int,
) -> None:
    monkeypatch.setattr(bank_store, "SHARD", 1)
    monkeypatch.setattr(bank_store, "BATCH", 8)
    study = make_study({"data.views": 3} | compute)
    run = _Run(study, cache, cache, Screen("quiet"), False, 0.0, UNLIMITED, None)
    assert run.preparers(slots) == workers


def test_a_card_is_left_in_the_run_and_read_back(
    make_study: MakeStudy, prepared: Prepared, tmp_path: Path
) -> None:
    for overrides in ({}, {"student.prompt_length": 0}):
        card, _ = prepared(make_study(overrides))
        write_card(tmp_path, card)
        assert read_card(tmp_path) == card


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"student_banks": null, "more": 1}'])
def test_a_card_that_is_missing_or_damaged_is_told(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "material.json").write_text(content)
    with pytest.raises(UserError, match="missing or damaged; the same command makes it again"):
        read_card(tmp_path)


# What the teacher may see -----------------------------------------------------------------------


def test_few_shots_are_base_images_of_the_training_part(
    make_study: MakeStudy, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reaches the teacher's tuning: 4 images each of coal and grass, and base validation."""
    given: list[Any] = []
    tune = comkd_ray.stage_one.fit_teacher

    def overheard(key: str, config: Any, clip: Clip, shots: Any, *rest: Any) -> Any:
        given.append(shots)
        return tune(key, config, clip, shots, *rest)

    monkeypatch.setattr(comkd_ray.stage_one, "fit_teacher", overheard)
    study = make_study({"teacher.seed": 77, "teacher.epochs": 1})
    prepare(study, cache, quiet)
    (shots,) = given
    table = open_dataset(study.data, Path(study.data.root))
    paths = [table.paths[image] for image in shots.images]
    assert [path.rpartition("/")[0] for path in paths] == ["train/coal"] * 4 + ["train/grass"] * 4
    assert shots.labels.tolist() == [0] * 4 + [1] * 4
    val = [table.paths[image].rpartition("/")[0] for image in shots.val_images]
    assert val == ["val/coal"] * 5 + ["val/grass"] * 5
    assert shots.classes == ("coal", "grass")


def test_the_teacher_is_measured_with_its_prompts(
    make_study: MakeStudy, prepared: Prepared, cache: Path, tiny_clip: Callable[[str], Clip]
) -> None:
    """References by hand: test images, each half on its own, three models."""
    card, material = prepared(make_study())
    photographs, text = material.photographs, material.text
    tests = photographs.part(TEST)
    labels = torch.from_numpy(photographs.labels[tests])
    teacher, student = tiny_clip("teacher"), tiny_clip("student")
    raw = torch.from_numpy(np.array(photographs.store.pixels[tests]))
    from comkd_ray.data.views import center_boxes, render

    boxes = torch.from_numpy(center_boxes(photographs.store.sizes[tests]))
    images = render(raw, boxes, None, 32)
    tuned = material.val_bank.take(0, tests, torch.device("cpu"))
    rows = {"teacher": (tuned, text)}
    for name, clip in (("teacher_zero_shot", teacher), ("zero_shot", student)):
        words = clip.encode_text([f"a photo of a {name}." for name in photographs.table.classes])
        with torch.no_grad():
            rows[name] = clip.visual(clip.prepare(images)), words
    for name, (features, words) in rows.items():
        logits = features @ words.T
        base = (logits[labels < 2, :2].argmax(1) == labels[labels < 2]).double().mean().item() * 100
        novel = (logits[labels > 1, 2:].argmax(1) + 2 == labels[labels > 1]).double().mean().item() * 100
        assert card.references[f"{name}_test_base_accuracy"] == pytest.approx(base)
        assert card.references[f"{name}_test_novel_accuracy"] == pytest.approx(novel)
    assert len(card.references) == 9
    assert all(math.isfinite(value) for value in card.references.values())
    assert (tuned - rows["teacher_zero_shot"][0]).abs().max() > 0.01, "the prompts had no effect"


def test_the_cards_numbers_are_those_of_the_teacher(
    make_study: MakeStudy, prepared: Prepared, tiny_clip: Callable[[str], Clip]
) -> None:
    card, _ = prepared(make_study())
    assert card.teacher_scale == pytest.approx(50)
    assert card.teacher_parameters == tiny_clip("teacher").image_parameters


def test_a_teacher_that_learns_no_images_learns_from_its_bank(
    make_study: MakeStudy, prepared: Prepared, clip_folders: dict[str, Path], cache: Path
) -> None:
    """A convolutional teacher: other words, the same images; one bank serves before and after."""
    conv = {"teacher.model": f"local-dir:{clip_folders['conv']}"}
    (tuned, _), (zero_shot, _) = (
        prepared(make_study(conv | {"teacher.epochs": epochs})) for epochs in (4, 0)
    )
    assert (tuned.train_bank, tuned.val_bank) == (zero_shot.train_bank, zero_shot.val_bank)
    cpu = torch.device("cpu")
    assert read_teacher(cache, tuned.teacher, cpu).visual is None
    texts = [read_text(cache, card.teacher, card.text, cpu) for card in (tuned, zero_shot)]
    assert (texts[0] - texts[1]).abs().max() > 1e-3


def test_a_zero_shot_teacher_is_the_model_as_it_is(
    make_study: MakeStudy, prepared: Prepared, tiny_clip: Callable[[str], Clip]
) -> None:
    _, material = prepared(make_study({"teacher.epochs": 0}))
    words = tiny_clip("teacher").encode_classes(material.photographs.table.classes, imagenet_templates())
    assert_close(material.text, words)
    assert len(imagenet_templates()) == 80


def test_banks_hold_what_training_asks_for(make_study: MakeStudy, prepared: Prepared, cache: Path) -> None:
    card, material = prepared(make_study({"student.prompt_length": 0}))
    photographs = material.photographs
    assert card.student_banks is not None
    for key, views, width, images in (
        (card.train_bank, 2, 24, photographs.part(TRAIN)),
        (card.val_bank, 1, 24, photographs.evaluated),
        (card.student_banks[0], 2, 16, photographs.part(TRAIN)),
        (card.student_banks[1], 1, 16, photographs.evaluated),
    ):
        bank = read_bank(cache, key)
        assert (bank.views, bank.width) == (views, width)
        assert bank.rows.tolist() == images.tolist()


# No label leaks ---------------------------------------------------------------------------------


def swap(root: Path, copy: Path, part: str, pairs: list[tuple[str, str]]) -> Path:
    """A copy of the photographs where, in one part, two classes have each other's images."""
    shutil.copytree(root, copy)
    for one, other in pairs:
        shutil.rmtree(copy / part / one)
        shutil.rmtree(copy / part / other)
        shutil.copytree(root / part / one, copy / part / other)
        shutil.copytree(root / part / other, copy / part / one)
    return copy


def whole_study(study: Study, cache: Path) -> tuple[Card, list[Row]]:
    """Rows of `epochs` of two arms on material made for them, and the card."""
    card = prepare(study, cache, quiet)
    reports: list[EpochReport] = []
    off = study.student.model_copy(update={"ifalign": False, "edu_attention": False})
    arms = [Arm("on", study), Arm("off", study.model_copy(update={"student": off}))]
    fit(arms, open_material(study, card, cache), reports.append)
    return card, [row for report in reports for row in report.rows]


def hidden(rows: list[Row], *prefixes: str) -> list[Row]:
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", *prefixes))} for row in rows]


def test_novel_labels_of_validation_influence_nothing(
    make_study: MakeStudy, cache: Path, image_folder: Path, tmp_path: Path
) -> None:
    """From the files on: novel validation images in each other's folders, nothing else differs."""
    swapped = swap(image_folder, tmp_path / "swapped", "val", [("lemon", "sea")])
    card, rows = whole_study(make_study(), cache)
    other_card, other_rows = whole_study(make_study({"data.root": str(swapped)}), cache)
    assert other_card.data != card.data
    assert other_card.references == card.references
    for row, other in zip(hidden(rows), hidden(other_rows), strict=True):
        assert same(row, other)


def same(row: Row, other: Row) -> bool:
    numbers = [key for key, value in row.items() if isinstance(value, float)]
    rest = {key: value for key, value in row.items() if key not in numbers}
    assert {key: other[key] for key in rest} == rest
    assert [other[key] for key in numbers] == pytest.approx([row[key] for key in numbers], rel=1e-6)
    return set(row) == set(other)


def test_test_labels_influence_only_test_scores(
    make_study: MakeStudy, cache: Path, image_folder: Path, tmp_path: Path
) -> None:
    """Test images in the folders of other classes, also across the halves."""
    swapped = swap(image_folder, tmp_path / "swapped", "test", [("coal", "sea"), ("grass", "lemon")])
    card, rows = whole_study(make_study(), cache)
    other_card, other_rows = whole_study(make_study({"data.root": str(swapped)}), cache)
    for row, other in zip(hidden(rows, "test_"), hidden(other_rows, "test_"), strict=True):
        assert same(row, other)
    assert other_card.references != card.references
    assert hidden(other_rows) != hidden(rows)


# What is refused --------------------------------------------------------------------------------


def test_photographs_that_changed_since_are_refused(
    make_study: MakeStudy, cache: Path, image_folder: Path, tmp_path: Path
) -> None:
    """Also where every image is the same and only its class or part is another."""
    root = shutil.copytree(image_folder, tmp_path / "copy")
    study = make_study({"data.root": str(root), "teacher.epochs": 0})
    card = prepare(study, cache, quiet)
    open_material(study, card, cache)
    (root / "test" / "coal" / "15.png").rename(root / "test" / "sea" / "99.png")
    with pytest.raises(UserError, match="changed since this study began"):
        open_material(study, card, cache)


def test_labels_and_parts_belong_to_the_identity(make_study: MakeStudy, cache: Path) -> None:
    """The same files under another split are other data: else old results would be taken for new."""
    photographs = open_photographs(make_study(), cache, quiet)
    table = photographs.table
    labels, parts = table.labels.copy(), table.parts.copy()
    labels[0], parts[0] = 1, TEST
    others = [
        replace(table, labels=labels),
        replace(table, parts=parts),
        replace(table, classes=("coal", "grass", "lime", "sea")),
    ]
    digests = {replace(photographs, table=other).digest for other in others}
    assert len(digests | {photographs.digest}) == 4


def test_an_edited_split_file_is_another_study(
    make_study: MakeStudy, cache: Path, image_folder: Path, tmp_path: Path
) -> None:
    """No image changes, only the labels of two test images: the pixels are shared, the results are not."""
    shutil.copytree(image_folder, tmp_path / "101_ObjectCategories")
    classes = sorted(path.name for path in (image_folder / "train").iterdir())
    split = {
        part: [
            [f"{part}/{name}/{path.name}", label, name]
            for label, name in enumerate(classes)
            for path in sorted((image_folder / part / name).iterdir())
        ]
        for part in ("train", "val", "test")
    }
    study = make_study({"data.root": str(tmp_path), "data.dataset": "caltech101", "teacher.epochs": 0})
    cards = []
    for first, second in (("coal", "grass"), ("grass", "coal")):
        split["test"][0][1:] = [classes.index(first), first]
        split["test"][5][1:] = [classes.index(second), second]
        (tmp_path / "split_zhou_Caltech101.json").write_text(json.dumps(split))
        cards.append(prepare(study, cache, quiet))
    assert cards[0].train_bank == cards[1].train_bank
    assert cards[0].identity != cards[1].identity
    with pytest.raises(UserError, match="changed since this study began"):
        open_material(study, cards[0], cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher.prompt_depth": 5}, r"teacher\.prompt_depth: .* has 4 layers, not 5"),
        ({"student.prompt_depth": 4}, r"student\.prompt_depth: .* has 3 layers, not 4"),
        ({"teacher.text_prompt_depth": 3}, r"teacher\.text_prompt_depth: .* has 2 layers, not 3"),
        ({"data.shots": 9}, r"class 'coal' has 8 training images, data\.shots asks for 9"),
        ({"train.batch_size": 33}, r"32 training images, fewer than train\.batch_size: 33"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    change: dict[str, Any], message: str, make_study: MakeStudy, cache: Path
) -> None:
    told: list[str] = []
    with pytest.raises(UserError, match=message):
        check(make_study(change), cache, lambda stage, *_: told.append(stage))
    assert set(told) <= {"list images", "pixels"}


def test_prompts_that_a_tower_cannot_take_are_remarked(
    make_study: MakeStudy, cache: Path, clip_folders: dict[str, Path]
) -> None:
    conv = {"student.model": f"local-dir:{clip_folders['conv']}", "student.prompt_depth": 9}
    assert check(make_study(), cache, quiet) == []
    (remark,) = check(make_study(conv), cache, quiet)
    assert "takes no visual prompts; its features are banked" in remark
    assert check(make_study(conv | {"student.prompt_length": 0}), cache, quiet) == []


def test_streaming_that_nobody_asked_for_is_remarked(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100_000, 99_000, 1_000))
    for _ in range(2):  # and it goes on so
        (remark,) = check(make_study(), tmp_path / "cache", quiet)
        assert remark.startswith("data: images are decoded from files at every use")
    assert check(make_study({"data.pixels": "stream"}), tmp_path / "cache", quiet) == []


# Views ------------------------------------------------------------------------------------------


def test_every_epoch_has_its_own_view_unless_the_study_says_how_many(make_study: MakeStudy) -> None:
    assert view_count(make_study({"data.views": 3})) == 3
    epochs = {"data.views": "epochs", "train.epochs": 5}
    assert view_count(make_study(epochs)) == 5
    searched = {"train.epochs": {"int": [2, 9]}}
    assert view_count(make_study(epochs | {"search.space": searched})) == 9
    chosen = {"train.epochs": {"choice": [2, 7, 3]}}
    assert view_count(make_study(epochs | {"search.space": chosen})) == 7


def test_banks_of_another_teacher_are_not_ready(
    make_study: MakeStudy, prepared: Prepared, cache: Path
) -> None:
    """The same recipe tuned again elsewhere may give other tensors under the same key."""
    card, _ = prepared(make_study())
    assert is_ready(card, cache)
    assert not is_ready(replace(card, teacher_digest="other"), cache)


def test_a_text_prompt_without_room_is_refused_before_anything_is_written(
    make_study: MakeStudy, cache: Path
) -> None:
    with pytest.raises(UserError, match="text_prompt_length: 200"):
        check(make_study({"teacher.text_prompt_length": 200}), cache, quiet)
