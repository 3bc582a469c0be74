"""Importance: Optuna's numbers, intervals that are resamples, and silence where nothing can be said."""

from __future__ import annotations

from pathlib import Path

import fake_run
import numpy as np
import optuna
import polars as pl
import pytest
from optuna.importance import PedAnovaImportanceEvaluator

from comkd_ray import importance, report, results, search_study, study_file
from comkd_ray.figure import NoFigure

SPACE = study_file.build(fake_run.study_tree(fake_run.SPACE), "fake").search.space


def table(run: Path, arms: list[tuple[fake_run.Row, list[fake_run.Row]]]) -> pl.DataFrame:
    return results.read_arms(fake_run.write(run, arms))


def drawn(folder: Path, count: int) -> pl.DataFrame:
    return table(folder, [fake_run.arm(n, fake_run.drawn(n)) for n in range(count)])


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    return table(tmp_path_factory.mktemp("searched"), fake_run.searched_arms())


def test_shares_are_optunas_over_full_budget_arms(arms: pl.DataFrame) -> None:
    info = importance.importance_info(arms, SPACE)
    assert (info.arms, info.top) == (16, 5 / 16)
    assert sum(bar.share for bar in info.bars) == pytest.approx(1.0)
    study = search_study.rebuild_study(arms.filter(pl.col("status") == "complete"), SPACE)
    with search_study.quiet():
        expected = optuna.importance.get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(target_quantile=5 / 16)
        )
    assert {bar.key: bar.share for bar in info.bars} == pytest.approx(expected)
    assert [bar.share for bar in info.bars] == sorted(expected.values(), reverse=True)
    assert set(expected) == set(fake_run.SPACE)


def test_intervals_are_those_of_seeded_resamples(arms: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restated: tables of resampled rows, each made into a study of its own."""
    monkeypatch.setattr(importance, "DRAWS", 12)
    info = importance.importance_info(arms, SPACE)
    rows = arms.filter(pl.col("status") == "complete")
    dimensions = search_study.rebuild_study(rows, SPACE).trials
    draw = np.random.default_rng(0).integers(0, 16, (12, 16))
    found: dict[str, list[float]] = {bar.key: [] for bar in info.bars}
    for places in draw:
        study = optuna.create_study(direction="maximize")
        for place in places:
            study.add_trial(dimensions[place])
        with search_study.quiet():
            shares = optuna.importance.get_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(target_quantile=5 / 16)
            )
        for key, values in found.items():
            values.append(shares.get(key, 0.0))
    for bar in info.bars:
        assert (bar.low, bar.high) == pytest.approx(tuple(np.quantile(found[bar.key], (0.05, 0.95))))
    assert importance.importance_info(arms, SPACE) == info


def test_the_key_that_decides_is_found_and_its_interval_stands_apart(tmp_path: Path) -> None:
    rows = drawn(tmp_path, 60)
    steep = rows.with_columns(objective=80 - (pl.col("loss.temperature").log() - 1).abs())
    first, second, *_ = importance.importance_info(steep, SPACE).bars
    assert first.key == "loss.temperature"
    assert first.low > second.high


def test_few_arms_are_grey_and_say_why(arms: pl.DataFrame, tmp_path: Path) -> None:
    few, many = (
        importance.importance_info(arms, SPACE),
        importance.importance_info(drawn(tmp_path, 30), SPACE),
    )
    colors = [importance.importance_plot(info).data[0].marker.color for info in (few, many)]
    assert colors == ["var(--grey)", "var(--blue)"]
    assert "Grey, because with fewer than 30 arms" in importance.reading(few, "val_harmonic_mean")
    assert "Grey" not in importance.reading(many, "val_harmonic_mean")
    assert "no ablation verdict" in importance.reading(many, "val_harmonic_mean")


def test_lines_of_the_figure_are_the_intervals(arms: pl.DataFrame) -> None:
    info = importance.importance_info(arms, SPACE)
    bars, lines = importance.importance_plot(info).data
    assert list(bars.x) == [bar.share for bar in info.bars][::-1]
    assert list(lines.x) == [end for bar in info.bars for end in (bar.low, bar.high, None)]
    assert list(lines.y)[::3] == [bar.key for bar in info.bars]


@pytest.mark.parametrize(
    ("count", "words"),
    [(9, "needs at least 10 full-budget arms; there are 9"), (0, "there are 0")],
)
def test_too_few_arms_show_nothing(arms: pl.DataFrame, count: int, words: str) -> None:
    with pytest.raises(NoFigure, match=words):
        importance.importance_info(arms.filter(pl.col("status") == "complete").head(count), SPACE)


def test_equal_values_or_a_single_key_show_nothing(arms: pl.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(NoFigure, match="same value"):
        importance.importance_info(arms.with_columns(objective=70.0), SPACE)
    one = table(tmp_path, [fake_run.arm(n, {"loss.temperature": 1.0 + n}) for n in range(12)])
    with pytest.raises(NoFigure, match="fewer than two keys varied"):
        importance.importance_info(one, SPACE)


def test_a_grid_has_no_importance(tmp_path: Path) -> None:
    arms = fake_run.grid_arms(5)
    folder = fake_run.write(tmp_path, arms, fake_run.study_tree(fake_run.GRID, "grid"))
    with pytest.raises(NoFigure, match="all arms were listed beforehand"):
        importance.importance_info(results.read_arms(folder), {}, True)
    assert "all arms were listed beforehand" in report.build(folder).read_text(encoding="utf-8")
