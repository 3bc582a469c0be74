"""Grids and lists: each arm once, numbered for good, and what has a record is not asked for again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import outer
import pytest

from comkd_ray import jobs, study_file
from comkd_ray.ablation import GridArms
from comkd_ray.config import Study
from comkd_ray.data.datasets import ROWS
from comkd_ray.designs import compile_study
from comkd_ray.jobs import arm_identity
from comkd_ray.ledger import arms_of, material_of
from comkd_ray.search_space import Overrides
from comkd_ray.study_file import cells

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


# Lists ------------------------------------------------------------------------------------------

PARTS = [{}, {"student.alpha": "vector"}, {"loss.align_weight": 3.0, "student.ifalign": False}]
OWN = {"student.alpha": "scalar", "loss.align_weight": 1.0, "student.ifalign": True}


def listed(folder: Path, **search: Any) -> Study:
    return outer.study(folder, {"sampler": "list", "first": PARTS, **search})


def test_a_list_holds_its_arms_and_nothing_else(tmp_path: Path) -> None:
    """Every arm names every key that one of them names, at the study's own value."""
    assert cells(listed(tmp_path)) == [OWN | part for part in PARTS]


def test_a_list_is_crossed_with_its_space(tmp_path: Path) -> None:
    study = listed(tmp_path, space={"train.seed": {"choice": [1, 2, 3]}})
    expected = [OWN | part | {"train.seed": seed} for part in PARTS for seed in (1, 2, 3)]
    assert cells(study) == expected
    assert list(ask_all(opened(study)).values()) == expected


def test_rows_of_a_list_name_the_same_searched_keys_so_that_seeds_pair(tmp_path: Path) -> None:
    study = listed(tmp_path, space={"train.seed": {"choice": [1, 2]}})
    rows = [jobs.asked_columns(study, "cohort", jobs.Asked("arm", 0, cell)) for cell in cells(study)]
    assert [row["searched"] for row in rows] == [sorted([*OWN, "train.seed"])] * 6
    assert [row["seed"] for row in rows] == [1, 2] * 3
    assert [row["student.alpha"] for row in rows[:4]] == ["scalar"] * 2 + ["vector"] * 2


def test_an_arm_of_a_list_with_a_record_is_left_out(tmp_path: Path) -> None:
    study = listed(tmp_path)
    asked = ask_all(opened(study))
    assert ask_all(opened(study, name(study, asked[1]))) == {n: asked[n] for n in (0, 2)}


def test_an_arm_that_a_list_names_twice_is_trained_once(tmp_path: Path) -> None:
    """Without IFAlign its weight has no effect, so the last arm is the one before it."""
    study = listed(tmp_path, first=[*PARTS, {"student.ifalign": False}])
    assert len(cells(study)) == 4
    assert opened(study).left() == 3


# Study files that ship --------------------------------------------------------------------------

SHIPPED = sorted(study_file.search_spaces().rglob("*.y*ml"))


def as_run(path: Path) -> Study:
    """A study file as its command runs it."""
    study = study_file.load(path)
    return study if study.search.is_asked else compile_study(study, study.study, str(path))


ENUMERATED = [path for path in SHIPPED if as_run(path).search.is_enumerated]


@pytest.mark.parametrize("path", ENUMERATED, ids=lambda path: path.stem)
def test_a_study_file_has_the_arms_that_its_head_says_and_pairs_them_by_seed(path: Path) -> None:
    study = as_run(path)
    arms = ask_all(opened(study))
    said = re.findall(r"(\d+) arms[.,]", path.read_text())[0]
    assert len(arms) == int(said)
    variants: dict[str, set[Any]] = {}
    for cell in arms.values():
        variants.setdefault(str({k: v for k, v in cell.items() if k != "train.seed"}), set()).add(
            cell["train.seed"]
        )
    (seeds,) = set(map(frozenset, variants.values()))
    assert len(seeds) >= 3


def test_every_reading_differs_from_the_default_in_one_key() -> None:
    """All but the last, which is PromptKD; and every switch of the method has its turn."""
    study = study_file.load(study_file.search_spaces() / "readings.yaml")
    default, *readings, promptkd = study.search.first
    assert default == {}
    assert promptkd == {"student.ifalign": False, "student.edu_attention": False}
    own = study_file.flatten(study.model_dump(mode="json"))
    for reading in readings:
        ((key, value),) = reading.items()
        assert own[key] != value
    assert {key for reading in readings for key in reading} == {f"student.{name}" for name in READINGS}


READINGS = (
    "align_axis", "align_reduction", "align_features", "attention_keys", "attention_layers",
    "attention_scale", "alpha", "renormalize",
)  # fmt: skip


def test_the_eight_reference_rows_are_five_students_beside_three_of_every_report() -> None:
    study = study_file.load(study_file.search_spaces() / "reference_rows.yaml")
    students = [
        (one.student.prompt_length, one.student.ifalign, one.student.edu_attention)
        for one in (study_file.resolve(study, point) for point in study.search.first)
    ]
    assert students == [
        (0, False, False),
        (4, False, False),
        (4, True, False),
        (4, False, True),
        (4, True, True),
    ]


# The paper's tables -----------------------------------------------------------------------------

LOWER_W = {"oxford_flowers", "fgvc_aircraft", "dtd"}
SETTINGS = re.compile(r"^#   (\w+) +(data/\S+) +([\d.]+) ", flags=re.M)


@pytest.mark.parametrize(("table", "rows"), [("table1", 11), ("table2", 10), ("table3", 4)])
def test_the_settings_in_the_head_of_a_paper_table_load_and_hold_promptkds_weight(
    table: str, rows: int
) -> None:
    """Ours is W over the number of classes (PAPER 3.6, 3.7); the file itself is one of the rows."""
    path = study_file.search_spaces() / "paper" / f"{table}.yaml"
    found = SETTINGS.findall(path.read_text())
    assert len(found) == rows
    own = study_file.load(path)
    for dataset, root, weight in found:
        sets = f"data.dataset={dataset}", f"data.root={root}", f"loss.kd_weight={weight}"
        study = study_file.load(path, sets)
        promptkd = 200 if table == "table1" and dataset in LOWER_W else 1000
        assert study.loss.kd_weight == pytest.approx(promptkd / ROWS[dataset].classes, rel=2e-4)
        assert root == f"data/{ROWS[dataset].folder}"
        if dataset == own.data.dataset:
            assert study == own


@pytest.mark.parametrize(
    "path", sorted((study_file.search_spaces() / "paper").glob("*.yaml")), ids=lambda p: p.stem
)
def test_a_paper_table_has_the_papers_pair_and_promptkds_schedule(path: Path) -> None:
    """PAPER 2.1, 2.5, 2.7, 3.1-3.5, 3.14."""
    study = study_file.load(path)
    student, teacher, train = study.student, study.teacher, study.train
    assert (teacher.model, teacher.pretrained, student.model, student.pretrained) == (
        "ViT-L-14", "openai", "ViT-B-16", "openai",
    )  # fmt: skip
    assert (teacher.prompt_length, teacher.prompt_depth, teacher.text_prompt_length) == (4, 9, 4)
    assert (teacher.text_prompt_depth, student.prompt_length, student.prompt_depth) == (9, 4, 9)
    assert (train.epochs, train.batch_size, train.lr, train.momentum) == (20, 8, 0.005, 0.9)
    assert (teacher.epochs, teacher.batch_size, teacher.lr) == (20, 8, 0.005)
    assert (study.data.views, study.data.shots, study.loss.temperature) == ("epochs", 16, 1.0)
    assert study.selection == "strict"


PAIR = ("caltech101", "reference_rows")


def test_the_2x2_of_caltech101_is_part_of_its_reference_rows() -> None:
    """docs/results.md shows one table for both: their arms are the same ones."""
    grid, rows = (study_file.load(study_file.search_spaces() / f"{name}.yaml") for name in PAIR)
    arms = [
        {arm_identity("", study_file.resolve(study, cell)) for cell in study_file.cells(study)}
        for study in (grid, rows)
    ]
    assert len(arms[0]) == 12
    assert arms[0] < arms[1]
    assert (grid.data, grid.teacher, grid.student.model) == (rows.data, rows.teacher, rows.student.model)


def test_the_2x2_over_eight_seeds_has_the_arms_of_caltech101() -> None:
    """So that the three seeds that were trained there are taken from it."""
    folder = study_file.search_spaces()
    grid, ablation = study_file.load(folder / "caltech101.yaml"), as_run(folder / "ablation.yaml")
    assert material_of(grid) == material_of(ablation)
    arms = [set(arms_of(study, "material")) for study in (grid, ablation)]
    assert (len(arms[0]), len(arms[1])) == (12, 32)
    assert arms[0] < arms[1]


@pytest.mark.parametrize(("name", "key"), [
    ("attention_scale", "student.attention_scale"), ("temperature", "loss.temperature"),
])  # fmt: skip
def test_a_ready_curve_has_nine_values_with_the_studys_own_among_them(name: str, key: str) -> None:
    study = as_run(study_file.search_spaces() / f"{name}.yaml")
    values = {cell[key] for cell in cells(study)}
    assert len(values) == 9
    assert study_file.flatten(study.model_dump(mode="json"))[key] in values


# Small spaces -----------------------------------------------------------------------------------


def test_a_small_space_is_trained_whole_with_its_named_arms_first_and_protected(tmp_path: Path) -> None:
    first: list[Tree] = [{"student.edu_attention": True, "student.ifalign": False}]
    study = outer.study(tmp_path, outer.tpe(20, first, space=SEEDS | {"train.seed": {"choice": [1, 2]}}))
    arms = opened(study)
    assert arms.left() == 8
    asked = [arms.ask() for _ in range(8)]
    assert [one.protected for one in asked] == [True] + [False] * 7
    assert asked[0].overrides == {**first[0], "train.seed": 1}
    assert len({name(study, one.overrides) for one in asked}) == 8


def test_numbers_that_a_sampler_gave_are_not_given_again(tmp_path: Path) -> None:
    study = grid_study(tmp_path, SEEDS)
    arms = GridArms(study, lambda cell: name(study, cell), (), [0, 5, 30])
    numbers = list(ask_all(arms))
    assert numbers == [31, 1, 2, 3, 4, 32, 6, 7, 8, 9, 10, 11]
