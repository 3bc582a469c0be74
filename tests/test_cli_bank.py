"""`comkd-ray bank`: what is in the cache, whether it is whole, and what may go."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from test_bank import flip, quiet, say, shard_of

from comkd_ray import bank_store, cli
from comkd_ray.bank import Bank, build_bank, read_bank
from comkd_ray.bank_store import CARD, building
from comkd_ray.material import open_material

pytestmark = pytest.mark.usefixtures("cpu", "alone")

DAY = 24 * 3600


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bank_store, "SHARD", 1)
    return tmp_path / "cache"


@pytest.fixture
def make(cache: Path) -> Callable[..., Bank]:
    """make("one") -> a bank of three shards; with days, opened so long ago."""

    def make(name: str, days: float = 0) -> Bank:
        bank = build_bank((name,), say, np.arange(130), (1, 2), cache, quiet, {"model": name})
        then = time.time() - days * DAY
        os.utime(bank.folder / CARD, (then, then))
        return bank

    return make


def bank(*words: str) -> Result:
    return CliRunner().invoke(cli.main, ["bank", *words])


def answer(*words: str, code: int = 0) -> Any:
    result = bank(*words, "--json")
    assert result.exit_code == code, (result.output, result.exception)
    return json.loads(result.stdout)


def interrupted(cache: Path, name: str = "cut") -> Path:
    """A bank whose build stopped after its first shard."""

    def stop(images: Any, view: int) -> Any:
        if images[0] >= 64:
            raise KeyboardInterrupt
        return say(images, view)

    before = set((cache / "banks").glob("*"))
    with pytest.raises(KeyboardInterrupt):
        build_bank((name,), stop, np.arange(130), (1, 2), cache, quiet)
    (folder,) = (path for path in set((cache / "banks").glob("*")) - before if path.is_dir())
    return folder


# ls ---------------------------------------------------------------------------------------------


def test_an_empty_cache_says_how_banks_are_made(cache: Path) -> None:
    result = bank("ls")
    assert result.exit_code == 0
    assert result.output == f"no banks in {cache}; comkd-ray bank build STUDY.yaml makes some\n"
    assert answer("ls") == []


def test_banks_are_listed_with_what_they_are_of(cache: Path, make: Callable[..., Bank]) -> None:
    old, new = make("old", days=3), make("new")
    first, second = answer("ls")
    assert (first["key"], second["key"]) == (new.key, old.key)
    assert first["of"] == {"model": "new"}
    facts = {"state": "whole", "images": 130, "views": 2, "width": 6, "shards": 3}
    assert {name: first[name] for name in facts} == facts
    assert first["bytes"] == sum(path.stat().st_size for path in new.folder.iterdir())
    assert second["used"] == pytest.approx(time.time() - 3 * DAY, abs=60)
    assert second["created"] == pytest.approx(time.time(), abs=60)
    header, *rows = bank("ls").output.splitlines()
    assert header.split()[:3] == ["key", "state", "images"]
    assert "model=new" in rows[0]


def test_opening_a_bank_is_using_it(cache: Path, make: Callable[..., Bank]) -> None:
    old = make("old", days=3)
    read_bank(cache, old.key)
    assert answer("ls")[0]["used"] == pytest.approx(time.time(), abs=60)


def test_a_build_that_was_cut_off_is_unfinished_and_one_that_runs_is_building(cache: Path) -> None:
    folder = interrupted(cache)
    assert [(entry["state"], entry["shards"]) for entry in answer("ls")] == [("unfinished", 1)]
    with building(folder):
        assert answer("ls")[0]["state"] == "building"
    assert answer("ls")[0]["state"] == "unfinished"


# verify -----------------------------------------------------------------------------------------


def test_whole_banks_are_as_written(cache: Path, make: Callable[..., Bank]) -> None:
    one, two = make("one"), make("two")
    result = bank("verify")
    assert result.exit_code == 0
    said = sorted(line for line in result.stdout.splitlines() if "shards" in line)
    assert said == sorted(f"{each.key}: 3 shards, as written" for each in (one, two))
    assert bank("verify", one.key[:6]).stdout.count("as written") == 1


def test_a_flipped_bit_is_named_and_the_next_study_mends_it(cache: Path, make: Callable[..., Bank]) -> None:
    one = make("one")
    path = shard_of(one.folder)
    flip(path, 300)
    result = bank("verify", one.key)
    assert result.exit_code == 5
    assert f"{one.key}: damaged" in result.stdout
    assert f"{path}: expected CRC-32 {path.stem[6:]}, found " in result.stdout
    assert answer("ls")[0]["state"] == "damaged"
    make("one")
    assert bank("verify").exit_code == 0


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_shard_that_is_missing_or_cut_off_is_named(
    cache: Path, make: Callable[..., Bank], damage: str
) -> None:
    one = make("one")
    path, size = shard_of(one.folder), shard_of(one.folder).stat().st_size
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-2])
    told = bank("verify", "--json")
    assert told.exit_code == 5
    (event,) = (json.loads(line) for line in told.stdout.splitlines() if '"bank"' in line)
    actual = "no such file" if damage == "missing" else f"{size - 2} bytes"
    assert event["damages"] == [{"file": str(path), "expected": f"{size} bytes", "actual": actual}]


def test_shards_of_an_unfinished_bank_are_verified_too(cache: Path) -> None:
    folder = interrupted(cache)
    assert bank("verify").exit_code == 0
    flip(shard_of(folder, 0), 300)
    assert bank("verify").exit_code == 5


@pytest.mark.parametrize("key", ["zzz", ""])
def test_a_key_that_is_not_one_banks_is_bad_input(cache: Path, make: Callable[..., Bank], key: str) -> None:
    make("one"), make("two")
    result = bank("verify", key)
    assert result.exit_code == 2
    assert "see comkd-ray bank ls" in result.stderr


# gc ---------------------------------------------------------------------------------------------


def test_unfinished_and_long_unused_banks_go(cache: Path, make: Callable[..., Bank]) -> None:
    kept, old, folder = make("kept", days=5), make("old", days=8), interrupted(cache)
    would = {entry["key"] for entry in answer("gc", "--keep-days", "7", "--dry-run")}
    assert would == {old.key, folder.name}
    assert len(answer("ls")) == 3
    result = bank("gc", "--keep-days", "7")
    assert result.exit_code == 0
    assert "2 banks, " in result.output
    assert [entry["key"] for entry in answer("ls")] == [kept.key]
    assert not old.folder.exists()
    assert answer("gc") == []
    assert {entry["key"] for entry in answer("gc", "--keep-days", "0", "--force")} == {kept.key}


def test_less_than_a_day_might_take_banks_in_use(cache: Path, make: Callable[..., Bank]) -> None:
    kept = make("kept", days=0.6)
    result = bank("gc", "--keep-days", "0.5")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "comkd-ray: --keep-days: 0.5 may take banks that a study is using; keep 1 at least, or --force\n"
    )
    assert [entry["key"] for entry in answer("gc", "--keep-days", "0.5", "--force")] == [kept.key]


def test_a_bank_that_is_being_built_stays(cache: Path, make: Callable[..., Bank]) -> None:
    old, folder = make("old", days=100), interrupted(cache)
    with building(folder), building(old.folder), building(old.folder):
        assert answer("gc") == []
    dead = folder / ".0123.builder"  # of a process that was killed: nobody holds it
    dead.touch()
    assert {entry["key"] for entry in answer("gc")} == {old.key, folder.name}


def test_a_damaged_bank_stays_for_its_other_shards(cache: Path, make: Callable[..., Bank]) -> None:
    one = make("one")
    shard_of(one.folder).unlink()
    assert answer("gc") == []
    assert make("one").key == one.key


def test_banks_of_an_older_version_go(cache: Path) -> None:
    folder = cache / "banks" / "0123456789ab"
    folder.mkdir(parents=True)
    np.save(folder / "features.npy", np.zeros((1, 4, 6), np.float16))
    (folder / CARD).write_text(json.dumps({"shape": [1, 4, 6], "crc32": 0, "seconds_per_image": 1.0}))
    assert [entry["key"] for entry in answer("gc")] == [folder.name]


# build ------------------------------------------------------------------------------------------


def test_banks_are_built_from_a_study_file_and_trained_on(
    tmp_path: Path,
    cache: Path,
    image_folder: Path,
    clip_folders: dict[str, Path],
    make_study: Callable[..., Any],
) -> None:
    """The card of `prepare`, as a study would find it."""
    from comkd_ray import study_file
    from comkd_ray.prepare import prepare

    study = make_study({"teacher.epochs": 0, "data.views": 1})
    path = tmp_path / "study.yaml"
    study_file.dump(study, path)
    result = bank("build", str(path), "--json", "--set", "student.prompt_length=0")
    assert result.exit_code == 0, (result.output, result.exception)
    end = json.loads(result.stdout.splitlines()[-1])
    study = make_study({"teacher.epochs": 0, "data.views": 1, "student.prompt_length": 0})
    card = prepare(study, cache, quiet)
    assert card.student_banks is not None
    assert list(end["banks"].values()) == [card.train_bank, card.val_bank, *card.student_banks]
    material = open_material(study, card, cache)
    assert material.train_bank.key == end["banks"]["train"]
    listed = {entry["key"]: entry["of"] for entry in answer("ls")}
    assert listed[card.train_bank] == {
        "model": study.teacher.model,
        "prompted": False,
        "root": str(image_folder),
    }


def test_a_missing_study_file_is_named(cache: Path) -> None:
    result = bank("build", "none.yaml")
    assert result.exit_code == 2
    assert result.stderr.startswith("comkd-ray: none.yaml: cannot be read")
