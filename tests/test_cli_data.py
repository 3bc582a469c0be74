"""`comkd-ray data`: what it lists, what it finds in a root, and how each command ends."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import miniatures
import pytest
from click.testing import CliRunner, Result
from miniatures import REAL

from comkd_ray import cli, cli_data, progress
from comkd_ray.data import datasets, inspection
from comkd_ray.data.datasets import ROWS

LAYOUTS = {
    **miniatures.DOWNLOADS,
    **miniatures.TEST_SETS,
    "fgvc_aircraft": miniatures.fgvc_aircraft,
    "imagenet": miniatures.imagenet,
}


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["data", *map(str, words)])


def checked(name: str, root: Path, *words: str) -> tuple[int, Any]:
    result = run("check", name, "--root", root, "--json", *words)
    return result.exit_code, json.loads(result.stdout)


def lay_out(name: str, root: Path) -> None:
    """A miniature with its split file."""
    photos = LAYOUTS[name](root)
    if name in miniatures.DOWNLOADS:
        assert isinstance(photos, list)
        miniatures.write_split_file(root / ROWS[name].split, photos)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish the counts of the miniatures."""
    sizes = {
        "dtd": {"classes": 2, "train": 10, "val": 4, "test": 6, "halves": (3, 3)},
        "oxford_pets": {"classes": 3, "train": 15, "val": 6, "test": 9, "halves": (6, 3)},
        "imagenet": {"classes": 5, "train": 50, "test": 10, "halves": (6, 4)},
        "imagenet_a": {"classes": 3, "test": 9},
        "fgvc_aircraft": {"classes": 4, "train": 8, "val": 8, "test": 8, "halves": (4, 4)},
    }
    rows = {name: replace(ROWS[name], **size) for name, size in sizes.items()}  # type: ignore[arg-type]
    for room in (datasets, inspection):
        monkeypatch.setattr(room, "ROWS", rows)


# ls ---------------------------------------------------------------------------------------------


def test_ls_has_a_line_for_each_data_set_with_its_counts_and_template() -> None:
    lines = run("ls").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *ROWS, "also:"]
    (pets,) = (line for line in lines if line.startswith("oxford_pets "))
    assert pets.split(maxsplit=9) == [
        "oxford_pets", "oxford_pets", "37", "19", "18", "2,944", "736", "3,669", "split_zhou_OxfordPets.json",
        "a photo of a {}, a type of pet.",
    ]  # fmt: skip


def test_ls_as_json_says_the_same_and_null_where_nothing_was_published() -> None:
    rows = {row["name"]: row for row in json.loads(run("ls", "--json").stdout)}
    assert list(rows) == list(ROWS)
    assert rows["imagenet"]["val"] is None
    assert rows["sun397"] == {
        "name": "sun397", "folder": "sun397", "classes": 397, "base": 199, "novel": 198, "train": 15880,
        "val": 3970, "test": 19850, "split": "split_zhou_SUN397.json", "template": "a photo of a {}.",
    }  # fmt: skip


# check ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dtd", "oxford_pets", "imagenet", "imagenet_a", "fgvc_aircraft"])
@pytest.mark.usefixtures("published")
def test_a_data_set_with_its_published_counts_is_right(name: str, tmp_path: Path) -> None:
    lay_out(name, tmp_path)
    code, found = checked(name, tmp_path)
    assert (code, found["faults"], found["right"], found["missing"]) == (0, [], True, 0)
    assert all(found["there"].values())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_miniature_has_no_fault_but_its_counts(name: str, tmp_path: Path) -> None:
    lay_out(name, tmp_path)
    code, found = checked(name, tmp_path)
    wrong = [key for key, count in found["published"].items() if count not in (None, found["found"][key])]
    assert code == 5
    assert [fault.partition(":")[0] for fault in found["faults"]] == wrong


@pytest.mark.usefixtures("published")
def test_a_right_data_set_is_told_part_by_part(tmp_path: Path) -> None:
    lay_out("imagenet", tmp_path)
    result = run("check", "imagenet", "--root", tmp_path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[1:] == [
        "  there    classnames.txt",
        "  there    images/train",
        "  there    images/val",
        "  parts: folder val is the test part; val is a seeded 50 images a class of folder train, at most a"
        " fifth (split_seed 1)",
        "  60 images listed, 0 missing",
        "              found  published",
        "  classes         5          5",
        "  train          50         50",  # with those that are held out for validation
        "  val             -          -",
        "  test           10         10",
        "  test_base       6          6",
        "  test_novel      4          4",
        "all is right",
    ]


@pytest.mark.usefixtures("published")
def test_missing_images_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    lay_out("dtd", tmp_path)
    gone = sorted((tmp_path / "images" / "banded").iterdir())[:6]
    for image in gone:
        image.unlink()
    result = run("check", "dtd", "--root", tmp_path)
    assert result.exit_code == 5
    assert "20 images listed, 6 missing" in result.stdout
    assert [line.strip() for line in result.stdout.splitlines() if line.startswith("    banded/")] == [
        f"banded/{image.name}" for image in gone[:5]
    ]
    assert result.stdout.splitlines()[-1] == "1 fault"
    assert checked("dtd", tmp_path)[1]["first_missing"] == [f"banded/{image.name}" for image in gone[:5]]


@pytest.mark.usefixtures("published")
def test_a_count_that_differs_is_a_fault(tmp_path: Path) -> None:
    lay_out("imagenet_a", tmp_path)
    (tmp_path / "imagenet-a" / "n02134084" / "0.jpg").unlink()
    code, found = checked("imagenet_a", tmp_path)
    assert (code, found["faults"]) == (5, ["test: 8 found, 9 published"])


@pytest.mark.usefixtures("published")
def test_what_is_not_there_is_said_even_if_nothing_can_be_read(tmp_path: Path) -> None:
    lay_out("fgvc_aircraft", tmp_path)
    (tmp_path / "variants.txt").unlink()
    shutil.rmtree(tmp_path / "images")
    code, found = checked("fgvc_aircraft", tmp_path)
    absent = [name for name, there in found["there"].items() if not there]
    assert (code, absent, found["found"]) == (5, ["variants.txt", "images"], {})
    assert len(found["faults"]) == 1


@pytest.mark.usefixtures("published")
def test_a_link_out_of_the_image_folder_is_a_fault(tmp_path: Path) -> None:
    lay_out("dtd", tmp_path / "dtd")
    image = tmp_path / "dtd" / "images" / "banded" / "banded_0000.jpg"
    image.rename(tmp_path / "outside.jpg")
    image.symlink_to(tmp_path / "outside.jpg")
    code, found = checked("dtd", tmp_path / "dtd")
    assert code == 5
    assert "banded_0000.jpg is a link out of" in found["faults"][0]


@pytest.mark.usefixtures("published")
def test_a_class_without_images_in_a_part_is_a_fault(tmp_path: Path) -> None:
    photos = miniatures.dtd(tmp_path)
    miniatures.write_split_file(tmp_path / ROWS["dtd"].split, photos[:5] + photos[10:])
    faults = checked("dtd", tmp_path)[1]["faults"]
    assert "class 'banded' has no val image" in faults[0]
    assert faults[1:] == [
        "val: 2 found, 4 published",
        "test: 3 found, 6 published",
        "test_base: 0 found, 3 published",
    ]


@pytest.mark.usefixtures("published")
def test_a_split_of_our_own_agrees_in_classes_and_in_the_number_of_all_images(tmp_path: Path) -> None:
    miniatures.dtd(tmp_path)
    code, found = checked("dtd", tmp_path)
    assert (code, found["there"][ROWS["dtd"].split]) == (5, False)
    assert "data check`: --make-split" in found["faults"][0]
    code, found = checked("dtd", tmp_path, "--make-split")
    assert (code, found["faults"]) == (0, [])
    assert found["split"].startswith("a split of our own")
    compared = {name: count for name, count in found["published"].items() if count is not None}
    assert compared == {"classes": 2, "all": 20}
    (tmp_path / "images" / "banded" / "banded_0003.jpg").unlink()
    code, found = checked("dtd", tmp_path, "--make-split")
    assert (code, found["faults"]) == (5, ["all: 19 found, 20 published"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["check", "oxfordpets", "--root", "."],
            "data set 'oxfordpets' is unknown; did you mean oxford_pets?",
        ),
        (["check", "zzz", "--root", "."], "data set 'zzz' is unknown; known are imagenet, caltech101, "),
        (["check", "dtd"], "Missing option '--root'"),
        (["check", "dtd", "--root", "absent"], "Directory 'absent' does not exist"),
        (["chek"], "No such command 'chek'"),
    ],
)
def test_bad_usage_ends_with_2(words: list[str], message: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["ls", "check"])
def test_every_option_says_what_it_does(command: str) -> None:
    options = [each for each in cli_data.data.commands[command].params if each.param_type_name == "option"]
    assert options
    assert [each.name for each in options if not getattr(each, "help", None)] == []


def test_progress_is_shown_to_a_person_who_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out("imagenet", tmp_path)
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    assert run("check", "imagenet", "--root", tmp_path).stderr == ""
    monkeypatch.setattr(cli_data, "PATIENCE", -1.0)
    lines = run("check", "imagenet", "--root", tmp_path).stderr.splitlines()
    assert lines[0] == "list images: 0 %  0/10 folders"
    assert lines[-1].startswith("list images: 100 %  10/10 folders")


@pytest.mark.skipif(not (REAL / "caltech-101").is_dir(), reason="no copy of Caltech101 here")
def test_the_real_caltech101_is_right() -> None:
    code, found = checked("caltech101", REAL / "caltech-101")
    assert (code, found["faults"], found["images"]) == (0, [], 8242)
