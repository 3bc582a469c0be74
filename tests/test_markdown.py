"""The tables as Markdown say what the report's tables say."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from comkd_ray.cli import main
from comkd_ray.results import compact, write_record


def write_grid(run: Path) -> None:
    """Seeds 1 to 3 of the 2x2: IFAlign adds a point, EduAttention nothing."""
    references = {
        f"{name}_test_{score}": 80.0
        for name in ("teacher", "teacher_zero_shot", "zero_shot")
        for score in ("base_accuracy", "novel_accuracy", "harmonic_mean")
    }
    for number in range(12):
        seed, ifalign, edu = number % 3 + 1, number // 3 % 2 == 1, number // 6 == 1
        score = 60.0 + seed + ifalign
        scores = {f"test_{name}": score for name in ("base_accuracy", "novel_accuracy", "harmonic_mean")}
        row = (
            {"arm": f"a{number}", "number": number, "status": "complete", "seed": seed} | scores | references
        )
        row |= {
            "val_harmonic_mean": 50.0,
            "searched": ["student.edu_attention", "student.ifalign", "train.seed"],
        }
        row |= {"student.ifalign": ifalign, "student.edu_attention": edu, "train.seed": seed}
        write_record(run, row, [])
    compact(run)


def test_cells_references_and_paired_differences(tmp_path: Path) -> None:
    write_grid(tmp_path)
    done = CliRunner().invoke(main, ["report", str(tmp_path), "--markdown"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert "| both off (PromptKD) | 3 | 62.00 ± 1.00 | 62.00 ± 1.00 | 62.00 ± 1.00 |" in lines
    assert "| IFAlign only | 3 | 63.00 ± 1.00 | 63.00 ± 1.00 | 63.00 ± 1.00 |" in lines
    assert "| tuned teacher | 1 | 80.00 | 80.00 | 80.00 |" in lines
    assert "| IFAlign only | 3 | +1.00 | +1.00 to +1.00 | 0.25 | 0.25 | not decidable |" in lines
    assert "| EduAttention only | 3 | +0.00 | +0.00 to +0.00 | 1 | 0.25 | not decidable |" in lines


def test_no_results_is_one_clear_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["report", str(tmp_path), "--markdown"])
    assert done.exit_code == 2
    assert "run `comkd-ray tune` first" in done.output
