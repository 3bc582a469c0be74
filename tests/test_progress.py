"""What a log shows of long work."""

from __future__ import annotations

import json

import pytest

from comkd_ray.progress import Screen


def test_every_piece_of_a_stage_is_shown_from_its_begin_to_its_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two banks of one study, a repeated look at the end of each; lines come rarely, ends always."""
    screen = Screen("json")
    for done, total in ((64, 128), (100, 128), (128, 128), (128, 128), (10, 20), (20, 20), (20, 20)):
        screen.show("bank", done, total, "")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["stage"], line["done"], line["total"]) for line in lines] == [
        ("bank", 64, 128),
        ("bank", 128, 128),
        ("bank", 10, 20),
        ("bank", 20, 20),
    ]
