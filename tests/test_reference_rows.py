"""The eight rows: which arms they hold, that a search is not mixed into them, and what is said of gaps."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev

import fake_run
import polars as pl
import pytest

from comkd_ray import results, study_file
from comkd_ray.config import Study
from comkd_ray.reference_rows import at_own_values, reference_rows, remarks

NAMES = [
    "student zero-shot",
    "teacher zero-shot",
    "tuned teacher",
    "projector only",
    "PromptKD",
    "PromptKD + IFAlign",
    "PromptKD + EduAttention",
    "ComKD-CLIP",
]


def written(run: Path, arms: list[tuple[fake_run.Row, list[fake_run.Row]]]) -> pl.DataFrame:
    return results.read_arms(fake_run.write(run, arms))


def built(tree: fake_run.Row) -> Study:
    return study_file.build(tree, "fake")


@pytest.mark.parametrize("kind", fake_run.KINDS)
def test_eight_rows_of_a_grid(tmp_path: Path, kind: tuple[str, str]) -> None:
    """References once, arms as mean and sd over three seeds, in every score of the protocol."""
    tree = fake_run.rows_tree(kind)
    arms = written(tmp_path, fake_run.rows_arms(tree))
    rows = reference_rows(arms, built(tree))
    assert [row.name for row in rows] == NAMES
    assert [row.n for row in rows] == [1, 1, 1, 3, 3, 3, 3, 3]
    headline = "test_harmonic_mean" if kind[0] == "base_to_novel" else "test_accuracy"
    teacher, projector = rows[2].headline, rows[3].headline
    assert teacher is not None
    assert (teacher.mean, teacher.sd) == (arms[f"teacher_{headline}"][0], None)
    values = arms.filter(pl.col("student.prompt_length") == 0)[headline].to_list()
    assert projector is not None
    assert (projector.n, projector.mean) == (3, pytest.approx(mean(values)))
    assert projector.sd == pytest.approx(stdev(values))
    assert all(len(row.estimates) == (3 if kind[0] == "base_to_novel" else 1) for row in rows)
    assert len(remarks(arms, built(tree), rows)) == 1


def test_a_search_counts_only_the_arms_at_the_study_files_own_values(tmp_path: Path) -> None:
    """Arms of `search.first` set the method alone; arms the sampler drew differ in more and stay out."""
    tree = fake_run.study_tree(fake_run.SPACE)
    first = {"student.ifalign": False, "student.edu_attention": False}
    arms = written(tmp_path, [fake_run.arm(100, first), *fake_run.searched_arms()])
    rows = {row.name: row for row in reference_rows(arms, built(tree))}
    assert rows["PromptKD"].n == 1
    assert rows["PromptKD"].headline is not None
    assert rows["PromptKD"].headline.mean == arms.filter(pl.col("number") == 100)["test_harmonic_mean"][0]
    assert [rows[name].n for name in ("projector only", "ComKD-CLIP")] == [0, 0]
    lines = remarks(arms, built(tree), list(rows.values()))
    assert "loss.temperature" in lines[1]
    assert "No full-budget arm for projector only, PromptKD + IFAlign" in lines[2]


def test_a_word_beside_numbers_is_still_the_own_value(tmp_path: Path) -> None:
    """attention_scale becomes text in the table as soon as one arm has sqrt_width."""
    tree = fake_run.study_tree(fake_run.SPACE)
    arms = written(
        tmp_path,
        [
            fake_run.arm(n, {"student.edu_attention": True, "student.attention_scale": scale})
            for n, scale in enumerate((1.0, "sqrt_width"))
        ],
    )
    assert arms["student.attention_scale"].to_list() == ["1", "sqrt_width"]
    assert at_own_values(arms, built(tree))["number"].to_list() == [0]


def test_another_prompt_length_is_another_value(tmp_path: Path) -> None:
    space = {"student.prompt_length": {"choice": [0, 2, 4]}, "train.seed": {"choice": [1, 2]}}
    tree = fake_run.study_tree(space, "grid", **fake_run.PAIR)
    points = [{"student.prompt_length": length, "train.seed": s} for length in (0, 2, 4) for s in (1, 2)]
    arms = written(tmp_path, [fake_run.arm(n, point, tree=tree) for n, point in enumerate(points)])
    rows = {row.name: row.n for row in reference_rows(arms, built(tree))}
    assert (rows["projector only"], rows["PromptKD"]) == (2, 2)


def test_without_a_study_file_a_search_has_no_own_values(tmp_path: Path) -> None:
    grid = written(tmp_path / "grid", fake_run.grid_arms(2))
    searched = written(tmp_path / "searched", fake_run.searched_arms())
    assert [row.n for row in reference_rows(grid, None)] == [1, 1, 1, 0, 2, 2, 2, 2]
    rows = reference_rows(searched, None)
    assert [row.n for row in rows] == [1, 1, 1, 0, 0, 0, 0, 0]
    assert any("Without study.yaml" in line for line in remarks(searched, None, rows))


def test_modules_without_prompts_are_named_as_left_out(tmp_path: Path) -> None:
    tree = fake_run.rows_tree()
    point = {"student.prompt_length": 0, "student.ifalign": True, "train.seed": 1}
    arms = written(tmp_path, [*fake_run.rows_arms(tree), fake_run.arm(90, point, tree=tree)])
    rows = reference_rows(arms, built(tree))
    assert [row.n for row in rows[3:]] == [3] * 5
    assert remarks(arms, built(tree), rows)[-1] == "Not among these rows: projector + IFAlign, 1 arm."


def test_pruned_and_failed_arms_are_no_rows(tmp_path: Path) -> None:
    tree = fake_run.rows_tree()
    states = [(0, "failed"), (1, "pruned"), (2, "complete")]
    point = {"student.prompt_length": 0}
    arms = written(tmp_path, [fake_run.arm(n, point, status, tree=tree) for n, status in states])
    assert reference_rows(arms, built(tree))[3].n == 1
