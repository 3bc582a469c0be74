"""The shared cache: where it is, and which teachers it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comkd_ray.cache import cache_root, find_teacher, teacher_cards
from comkd_ray.errors import UserError


def store(cache: Path, key: str, **card: Any) -> None:
    folder = cache / "teachers" / key
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(json.dumps(card))


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("COMKD_CACHE", raising=False)
    assert cache_root() == tmp_path / "comkd-ray"
    monkeypatch.setenv("COMKD_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"


def test_teachers_come_oldest_first(tmp_path: Path) -> None:
    store(tmp_path, "aa", created="2026-02-01")
    store(tmp_path, "bb", created="2026-01-01")
    store(tmp_path, "cc")  # of a version that wrote no date
    assert [card["key"] for card in teacher_cards(tmp_path)] == ["cc", "bb", "aa"]


def test_what_is_no_teacher_is_left_out(tmp_path: Path) -> None:
    store(tmp_path, "aa", created="2026-01-01")
    store(tmp_path, "bb.part", created="2026-01-01")  # a build that was killed
    (tmp_path / "teachers" / "aa.lock").write_text("")
    for name, content in (("cc", "{"), ("dd", "[1]")):
        store(tmp_path, name)
        (tmp_path / "teachers" / name / "card.json").write_text(content)
    assert [card["key"] for card in teacher_cards(tmp_path)] == ["aa"]
    assert teacher_cards(tmp_path / "nowhere") == []


def test_the_folder_is_the_key_whatever_the_card_says(tmp_path: Path) -> None:
    (tmp_path / "teachers" / "aa").mkdir(parents=True)
    (tmp_path / "teachers" / "aa" / "card.json").write_text('{"seed": 1, "key": 5}')
    assert list(find_teacher(tmp_path, "a").items()) == [("key", "aa"), ("seed", 1)]


def test_a_unique_prefix_finds_a_teacher(tmp_path: Path) -> None:
    for key in ("ab12", "ab34", "cd56"):
        store(tmp_path, key, seed=key)
    assert find_teacher(tmp_path, "ab3")["seed"] == "ab34"
    assert find_teacher(tmp_path, "cd56")["seed"] == "cd56"
    with pytest.raises(UserError, match=r"teacher ab: 2 keys begin so \(ab12, ab34\); add digits"):
        find_teacher(tmp_path, "ab")
    with pytest.raises(UserError, match="teacher ef: none of the 3 teachers"):
        find_teacher(tmp_path, "ef")
