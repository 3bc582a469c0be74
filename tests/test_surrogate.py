"""The tabulated surrogate: the table of a run, the nearest arm of a cell, and samplers against it."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from statistics import fmean
from types import ModuleType

import polars as pl
import pytest
from scipy.stats import ttest_ind

from comkd_ray.search_space import Dimension
from comkd_ray.stats import estimate

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "tests" / "data" / "quickstart_surrogate.parquet"
SPACE = {
    "student.ifalign": Dimension(choice=(True, False)),
    "loss.align_weight": Dimension(float=(0.1, 10.0), log=True, when={"student.ifalign": True}),
    "train.lr": Dimension(float=(0.0, 1.0)),
}
ROWS = pl.DataFrame(
    {
        "student.ifalign": [True, True, False],
        "loss.align_weight": [0.1, 10.0, None],
        "train.lr": [0.5, 0.5, 0.9],
        "objective": [60.0, 70.0, 50.0],
    }
)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("surrogate", ROOT / "tools" / "surrogate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_nearest_arm_of_the_same_cell_answers(tool: ModuleType) -> None:
    answer = tool.Surrogate(ROWS, SPACE)
    near, far = ({"student.ifalign": True, "loss.align_weight": w, "train.lr": 0.5} for w in (0.9, 1.1))
    assert (answer(near), answer(far)) == (60.0, 70.0)  # the middle, by logarithm, is 1
    assert answer({"student.ifalign": False, "train.lr": 0.0}) == 50.0


def test_an_arm_answers_once_and_the_next_one_after_it(tool: ModuleType) -> None:
    answer = tool.Surrogate(ROWS, SPACE)
    near = {"student.ifalign": True, "loss.align_weight": 0.1, "train.lr": 0.5}
    assert [answer(near), answer(near), answer(near)] == [60.0, 70.0, None]


def test_a_cell_without_an_arm_answers_nothing(tool: ModuleType) -> None:
    answer = tool.Surrogate(ROWS.filter(pl.col("student.ifalign")), SPACE)
    assert answer({"student.ifalign": False, "train.lr": 0.0}) is None


def test_the_committed_sample_becomes_a_table_of_its_full_budget_arms(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "table.parquet"
    assert tool.main(["table", str(ROOT / "reports" / "quickstart"), str(file)]) == 0
    table, space = pl.read_parquet(file), tool.quickstart().search.space
    assert table.columns == [*space, "objective"]
    assert capsys.readouterr().out == f"{file}: {len(table)} arms at full budget\n"
    assert 0 < len(table) <= 20
    off = table.filter(~pl.col("student.edu_attention"))
    assert off["student.attention_scale"].null_count() == len(off) > 0
    arms = pl.read_parquet(ROOT / "reports" / "quickstart" / "results" / "arms" / "*.parquet")
    assert table["objective"].max() == arms.filter(pl.col("status") == "complete")["objective"].max()
    surrogate = tool.Surrogate(table, space)
    for row in table.iter_rows(named=True):  # a recorded arm answers for itself
        value = row.pop("objective")
        assert surrogate({key: one for key, one in row.items() if one is not None}) == value


def test_a_comparison_leaves_a_figure_and_a_table(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, words = tmp_path / "table.parquet", ["--arms", "12", "--runs", "3", "--samplers", "random", "tpe"]
    tool.make_table(ROOT / "reports" / "quickstart", tool.quickstart().search.space).write_parquet(file)
    assert tool.main(["compare", str(file), *words, "--out", str(tmp_path / "out")]) == 0
    printed = (tmp_path / "out" / "samplers.md").read_text()
    assert printed == capsys.readouterr().out
    assert (
        printed.splitlines()[0]
        == "| sampler | runs | after 3 arms | after 6 arms | after 12 arms | against random |"
    )
    assert [line.split()[1] for line in printed.splitlines()[2:]] == ["random", "tpe"]
    figure = (tmp_path / "out" / "samplers.html").read_text()
    assert "random (3 runs)" in figure
    difference = printed.splitlines()[3].split(" | ")[-1].removesuffix(" |")
    assert re.fullmatch(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]", difference)
    assert f"tpe (3 runs)\\u003cbr\\u003e{difference} against random" in figure


def test_samplers_are_held_apart_by_welchs_interval(tool: ModuleType) -> None:
    own, reference = [[1.0, 4.0], [2.0, 6.0], [0.0, 5.5]], [[0.0, 1.0], [0.0, 1.5], [0.0, 3.0], [0.0, 2.0]]
    low, mean, high = tool.apart(own, reference, 2)
    theirs = ttest_ind([4.0, 6.0, 5.5], [1.0, 1.5, 3.0, 2.0], equal_var=False).confidence_interval()
    assert (low, high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
    assert mean == pytest.approx((low + high) / 2)
    assert tool.apart([[1.0], [1.0]], [[3.0], [3.0]], 1) == (-2.0, -2.0, -2.0)


def test_curves_only_rise_and_have_one_value_an_arm(tool: ModuleType) -> None:
    table = tool.make_table(ROOT / "reports" / "quickstart", tool.quickstart().search.space)
    curves = tool.compare(table, ["random", "qmc", "tpe"], arms=11, runs=2)
    for own in curves.values():
        assert [len(curve) for curve in own] == [11, 11]
        assert all(curve == sorted(curve) for curve in own)
        assert max(map(max, own)) <= table["objective"].max()
        assert own[0] != own[1]
    assert tool.at([[1.0, 2.0], [3.0, 4.0]], 2) == estimate([2.0, 4.0])


def test_a_figure_leaves_out_arms_before_the_first_answer(tool: ModuleType) -> None:
    figure = tool.draw({"tpe": [[-math.inf, 50.0, 60.0], [40.0, 40.0, 70.0]]})
    mean = figure.data[-1]
    assert (list(mean.x), list(mean.y)) == ([2, 3], [45.0, 65.0])


def test_shuffled_objectives_stay_in_their_cells(tool: ModuleType) -> None:
    """So what is left to be learned is which choices are better."""
    table, space = pl.read_parquet(TABLE), tool.quickstart().search.space
    found = tool.shuffled(table, space, seed=3)
    assert found.drop("objective").equals(table.drop("objective"))
    assert not found.equals(table)
    cell = ["student.prompt_length", "student.ifalign", "student.edu_attention"]
    values = [one.group_by(cell).agg(pl.col("objective").sort()).sort(cell) for one in (table, found)]
    assert values[0].equals(values[1])
    assert found.equals(tool.shuffled(table, space, seed=3))


@pytest.mark.slow
def test_tpe_asks_for_better_arms_than_random_and_finds_no_worse_ones(tool: ModuleType) -> None:
    """40 searches on recorded arms: mean answer after the start, and the best so far.

    A sampler that learns nothing asks for arms as good as random's: the first interval holds it to more.
    """
    table, start = pl.read_parquet(TABLE), tool.quickstart().search.startup_arms
    answers = {
        name: [tool.search(table, tool.quickstart(sampler=name, arms=40, seed=seed)) for seed in range(40)]
        for name in ("random", "tpe")
    }
    means = {name: [fmean(filter(None, own[start:])) for own in found] for name, found in answers.items()}
    found = estimate([tpe - random for tpe, random in zip(means["tpe"], means["random"], strict=True)])
    assert found is not None
    assert found.low is not None
    assert found.low > 0
    curves = {name: [tool.best_so_far(own) for own in found] for name, found in answers.items()}
    assert tool.apart(curves["tpe"], curves["random"], 40)[2] >= 0
