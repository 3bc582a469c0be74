"""The calibration tool runs every part on the rooms as they are; its numbers are in docs/statistics.md."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parent.parent / "tools" / "calibrate_statistics.py"


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("calibrate_statistics", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_part_prints_a_table(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four simulations prove nothing, so broken promises are expected here."""
    monkeypatch.setattr(sys, "argv", ["calibrate_statistics.py", "--simulations", "4"])
    assert tool.main() == (1 if tool.BROKEN else 0)
    printed = capsys.readouterr().out
    assert printed.count("\n### ") == 8
    assert printed.count("BROKEN: ") == len(tool.BROKEN)
    assert "nan" not in printed


def test_a_broken_promise_is_told(tool: ModuleType) -> None:
    tool.promise(True, "kept")
    tool.promise(False, "power 8: 0.1")
    assert tool.BROKEN == ["power 8: 0.1"]
