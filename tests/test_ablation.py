"""Grids: each cell once, numbered for good, and what has a record is not asked for again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import outer
import pytest

from comkd_ray import jobs, study_file
from comkd_ray.ablation import GridArms
from comkd_ray.config import Study
from comkd_ray.search_space import Overrides

Tree = dict[str, Any]
SEEDS: Tree = {**outer.GRID, "train.seed": {"choice": [1, 2, 3]}}


def grid_study(folder: Path, space: Tree) -> Study:
    return outer.study(folder, {"sampler": "grid", "space": space})


def opened(study: Study, *recorded: str) -> GridArms:
    return GridArms(study, lambda cell: name(study, cell), recorded)


def name(study: Study, cell: Overrides) -> str:
    return jobs.arm_identity("material", study_file.resolve(study, cell))


def ask_all(arms: GridArms) -> dict[int, Overrides]:
    asked = {}
    while arms.left():
        proposal = arms.ask()
        assert not proposal.protected
        arms.assign(proposal.number, "arm")
        arms.note(proposal.number, 1, 50.0)
        arms.tell(proposal.number, outer.record("arm"))
        asked[proposal.number] = proposal.overrides
    return asked


def test_each_cell_is_asked_for_once_with_seeds_paired(tmp_path: Path) -> None:
    arms = opened(grid_study(tmp_path, SEEDS))
    assert arms.left() == 12
    asked = ask_all(arms)
    assert list(asked) == list(range(12))
    cells = [tuple(cell.values()) for cell in asked.values()]
    flags = [(a, b) for a in (False, True) for b in (False, True)]
    assert cells == [(*flag, seed) for flag in flags for seed in (1, 2, 3)]


def test_a_cell_with_a_record_is_left_out_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    study = grid_study(tmp_path, SEEDS)
    asked = ask_all(opened(study))
    recorded = [name(study, asked[number]) for number in (0, 1, 7)]
    arms = opened(study, *recorded)
    assert arms.left() == 9
    assert ask_all(arms) == {n: cell for n, cell in asked.items() if n not in (0, 1, 7)}


def test_a_grid_of_records_only_has_nothing_left(tmp_path: Path) -> None:
    study = grid_study(tmp_path, SEEDS)
    arms = opened(study, *(name(study, cell) for cell in ask_all(opened(study)).values()))
    assert arms.left() == 0
    with pytest.raises(IndexError):
        arms.ask()


def test_a_knob_without_effect_makes_no_second_cell(tmp_path: Path) -> None:
    """Without EduAttention its scale changes nothing, so those cells are one arm."""
    space: Tree = {
        "student.edu_attention": {"choice": [False, True]},
        "student.attention_scale": {"choice": [0.1, 1.0, 10.0]},
    }
    study = grid_study(tmp_path, space)
    asked = ask_all(opened(study))
    assert len(asked) == 4
    assert sum(not cell["student.edu_attention"] for cell in asked.values()) == 1


def test_a_cell_lost_with_its_process_stays_without_a_record(tmp_path: Path) -> None:
    study = grid_study(tmp_path, outer.GRID)
    arms = opened(study)
    arms.tell(arms.ask().number, None)
    assert arms.left() == 3
    assert arms.reconcile({}) == 0
    assert opened(study).left() == 4
