"""The tables as Markdown say what the report's tables say."""

from __future__ import annotations

from pathlib import Path

import fake_run
import pytest
from click.testing import CliRunner

from comkd_ray.cli import main

LEVELS = {
    (0, False, False): 80,
    (4, False, False): 82,
    (4, True, False): 83,
    (4, False, True): 82,
    (4, True, True): 85,
}
"""Score of a method at seed 0; every seed adds a point, so differences have no spread."""


def markdown(run: Path, kind: tuple[str, str], dataset: str = "folder") -> list[str]:
    """Lines of `comkd-ray report --markdown` for three seeds of projector only and the 2x2."""
    tree = fake_run.rows_tree(kind, data={"dataset": dataset, "root": "/d"})
    arms = []
    for row, _ in fake_run.rows_arms(tree):
        method = (row["student.prompt_length"], row["student.ifalign"], row["student.edu_attention"])
        known = [key for key in row if key.startswith("test_") and row[key] is not None]
        arms.append((row | dict.fromkeys(known, float(LEVELS[method] + row["seed"])), []))
    fake_run.write(run, arms, tree)
    done = CliRunner().invoke(main, ["report", str(run), "--markdown"])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def test_eight_rows_and_paired_differences(tmp_path: Path) -> None:
    lines = markdown(tmp_path, ("base_to_novel", "strict"))
    assert "- protocol: base to novel, selection strict, inductive" in lines
    assert "| test (%) | n | base | novel | harmonic mean |" in lines
    assert "| student zero-shot | 1 | 74.00 | 70.00 | 71.94 |" in lines
    assert "| projector only | 3 | 82.00 \u00b1 1.00 | 82.00 \u00b1 1.00 | 82.00 \u00b1 1.00 |" in lines
    assert "| PromptKD | 3 | 84.00 \u00b1 1.00 | 84.00 \u00b1 1.00 | 84.00 \u00b1 1.00 |" in lines
    end = "| 1 | not decidable with n = 3 | about 5 | 0.25 | 0.25 |"  # 4 claims: 8 seeds at least
    assert f"| projector only | 3 | \u22122.00 | \u22122.00 to \u22122.00 {end}" in lines
    assert f"| PromptKD + IFAlign | 3 | +1.00 | +1.00 to +1.00 {end}" in lines
    same = "| 1 | not decidable with n = 3 | \u2013 | 1 | 0.25 |"
    assert f"| PromptKD + EduAttention | 3 | 0.00 | 0.00 to 0.00 {same}" in lines
    assert "chosen on the test set" not in "\n".join(lines)


def test_a_full_factorial_says_what_each_module_is_worth(tmp_path: Path) -> None:
    """By hand from LEVELS: IFAlign adds 1 without EduAttention and 3 with it, EduAttention 0 and 2."""
    lines = markdown(tmp_path, ("base_to_novel", "strict"))
    place = next(n for n, line in enumerate(lines) if line.startswith("| effect, points of test harmonic"))
    end = "0.25 | 0.25 | 0.75 |"
    assert lines[place + 2 : place + 5] == [
        f"| IFAlign | +2.00 | +2.00 to +2.00 | {end}",
        f"| EduAttention | +1.00 | +1.00 to +1.00 | {end}",
        f"| IFAlign \u00d7 EduAttention | +2.00 | +2.00 to +2.00 | {end}",
    ]
    assert "| Shapley value, points of test harmonic mean | mean | 95 % t-interval |" in lines
    assert "| all on minus all off | +3.00 | +3.00 to +3.00 |" in lines
    assert any(line.startswith("The full 2 \u00d7 2 grid of 3 seeds") for line in lines)


def test_one_score_where_there_are_no_halves(tmp_path: Path) -> None:
    lines = markdown(tmp_path, ("all_classes", "strict"), "caltech101")
    assert "| ComKD-CLIP | 3 | 87.00 \u00b1 1.00 |" in lines
    assert "| test (%) | n | accuracy |" in lines
    assert "protocol all_classes (published on caltech101: base_to_novel, cross_dataset)" in lines[-1]


@pytest.mark.parametrize("kind", fake_run.KINDS)
def test_a_choice_on_the_test_set_is_said_first(tmp_path: Path, kind: tuple[str, str]) -> None:
    lines = markdown(tmp_path, kind)
    warned = [
        n for n, line in enumerate(lines) if line.startswith("**All scores of arms: chosen on the test")
    ]
    assert bool(warned) == (kind[1] == "promptkd")
    table = next(n for n, line in enumerate(lines) if line.startswith("| test (%)"))
    assert all(place < table for place in warned)


def test_published_numbers_stand_beside_ours(tmp_path: Path) -> None:
    lines = markdown(tmp_path, ("domain_generalization", "promptkd"), "imagenet_v2")
    gap = "+14.23 | +11.75 to +16.71"
    assert f"| PromptKD | 69.77 | 84.00 | 3 | {gap} | VERIFIED | PAPER 4.28 |" in lines
    assert "| ComKD-CLIP | \u2013 | 87.00 | 3 | \u2013 | \u2013 | UNKNOWN | PAPER 4.29 |" in lines


def test_no_results_is_one_clear_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["report", str(tmp_path), "--markdown"])
    assert done.exit_code == 2
    assert "run `comkd-ray tune` first" in done.output
