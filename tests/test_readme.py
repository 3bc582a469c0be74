"""The README is true: its tree exists, its commands parse, and its first command does the main job."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import polars as pl
import pytest

from comkd_ray.cli import main
from comkd_ray.report import page
from comkd_ray.run import read
from comkd_ray.study_file import load, search_spaces

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_lines(language: str) -> list[str]:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_the_tree_names_every_module_and_nothing_else() -> None:
    tree = "\n".join(code_lines("text"))
    named = set(re.findall(r"(\w+\.py)", tree))
    there = {path.name for path in (ROOT / "comkd_ray").glob("*.py")} - {"__init__.py"}
    assert named == there
    for folder in re.findall(r"^(\w+)/", tree, flags=re.M):
        assert (ROOT / folder).is_dir(), folder


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_every_command_of_ours_parses() -> None:
    lines = [part for line in code_lines("bash") for part in line.split("&&")]
    ours = [shlex.split(line)[1:] for line in lines if line.strip().startswith("comkd-ray")]
    assert len(ours) >= 4
    for name, *words in ours:
        command = main.commands[name]
        if isinstance(command, click.Group):
            command, words = command.commands[words[0]], words[1:]
        with click.Context(command) as context:
            command.make_parser(context).parse_args(list(words))


def test_the_committed_sample_is_one_that_this_version_reports() -> None:
    run = read(ROOT / "reports" / "quickstart")
    assert run.provenance["sample"] is True
    assert len(run.arms) == load(search_spaces() / "quickstart.yaml").search.arms
    assert "ComKD-CLIP" in page(run)


@pytest.mark.slow
def test_the_first_command_does_the_main_job(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "comkd_ray.cli", "tune", "--json"],
        cwd=tmp_path,
        env=os.environ | {"COMKD_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {event["event"] for event in events} >= {"progress", "end"}
    run = tmp_path / "reports" / "quickstart"
    assert (run / "report.html").stat().st_size > 1_000_000
    arms = pl.read_parquet(run / "results" / "arms" / "*.parquet")
    assert len(arms) >= 16
    assert set(arms["status"]) <= {"complete", "pruned"}
    for key in arms["searched"].explode().unique():
        assert arms[key].n_unique() > 1, f"{key} does not vary"
    best = arms.filter(pl.col("status") == "complete").sort("val_harmonic_mean").tail(1)
    chance = 10.0  # percent: ten classes in each half
    assert best["test_base_accuracy"][0] > 2 * chance
    assert best["test_novel_accuracy"][0] > 2 * chance
    assert best["teacher_test_harmonic_mean"][0] > 4 * chance
