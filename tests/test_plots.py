"""What the figures are drawn from, and that each draws or says in one line why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fake_run
import optuna
import plotly.graph_objects as go
import polars as pl
import pytest
from optuna.trial import TrialState

from comkd_ray import (
    cost_plots,
    front_plot,
    importance,
    plots,
    results,
    search_plots,
    search_study,
    study_file,
)
from comkd_ray.figure import NoFigure, hover
from comkd_ray.search_space import Dimension

Arms = list[tuple[fake_run.Row, list[fake_run.Row]]]
SPACE = study_file.build(fake_run.study_tree(fake_run.SPACE), "fake").search.space
TWO = ("objective", "trainable_parameters")

FIGURES: dict[str, Callable[[pl.DataFrame, pl.DataFrame], go.Figure]] = {
    "history": lambda a, _: search_plots.history_plot(search_plots.history_info(a, SPACE)),
    "parallel": lambda a, _: search_plots.parallel_plot(search_plots.parallel_info(a, SPACE)),
    "importance": lambda a, _: importance.importance_plot(importance.importance_info(a, SPACE)),
    "front": lambda a, _: front_plot.front_plot(front_plot.front_info(a, SPACE, TWO)),
    "modules": lambda a, _: plots.modules_plot(plots.modules_info(a)),
    "curves": lambda a, e: plots.curves_plot(plots.curves_info(a, e)),
    "size": lambda a, _: cost_plots.size_plot(cost_plots.size_info(a)),
    "cost": lambda a, _: cost_plots.cost_plot(cost_plots.cost_info(a, {"search": 60.0})),
}


def table(run: Path, arms: Arms) -> pl.DataFrame:
    return results.read_arms(fake_run.write(run, arms))


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    return table(tmp_path_factory.mktemp("searched"), fake_run.searched_arms())


def _ended(status: str) -> Arms:
    return [fake_run.arm(n, fake_run.drawn(n), status) for n in range(4)]


DEGENERATE: dict[str, tuple[Arms, set[str]]] = {
    "one arm": (_ended("complete")[:1], {"history", "front", "curves", "size", "cost"}),
    "all failed": (_ended("failed"), {"cost"}),
    "all pruned": (_ended("pruned"), {"curves", "cost"}),
    "one key": (
        [fake_run.arm(n, {"loss.temperature": 1.0 + n}) for n in range(12)],
        {"history", "parallel", "front", "curves", "size", "cost"},
    ),
    "no key": ([fake_run.arm(0, {}), fake_run.arm(1, {})], {"history", "front", "curves", "size", "cost"}),
    "a study": (fake_run.searched_arms(), set(FIGURES)),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        case: fake_run.write(tmp_path_factory.mktemp("case"), rows) for case, (rows, _) in DEGENERATE.items()
    }


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("case", DEGENERATE)
def test_every_figure_draws_or_gives_one_line(runs: dict[str, Path], case: str, name: str) -> None:
    arms, epochs = results.read_arms(runs[case]), results.read_epochs(runs[case])
    if name in DEGENERATE[case][1]:
        assert FIGURES[name](arms, epochs).data
    else:
        with pytest.raises(NoFigure, match=r"^[^\n]+\.$"):
            FIGURES[name](arms, epochs)


def test_study_is_rebuilt_with_states_and_conditional_keys(arms: pl.DataFrame) -> None:
    study = search_study.rebuild_study(arms, SPACE)
    rows = arms.rows(named=True)
    states = {
        "complete": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }
    for trial, row in zip(study.trials, rows, strict=True):
        assert trial.state == states[row["status"]]
        assert trial.params == fake_run.drawn(row["number"])
        assert ("student.attention_scale" in trial.params) == row["student.edu_attention"]
    assert study.best_value == max(r["objective"] for r in rows if r["status"] == "complete")
    scales = [trial.distributions.get("student.attention_scale") for trial in study.trials]
    assert next(filter(None, scales)) == optuna.distributions.CategoricalDistribution(
        (1.0, 4.0, "sqrt_width")
    )


def test_ranges_come_from_the_study_and_widen_for_arms_set_by_hand(tmp_path: Path) -> None:
    rows = table(tmp_path, [fake_run.arm(n, {"loss.temperature": t}) for n, t in enumerate((2.0, 9.5))])
    space = {"loss.temperature": Dimension(float=(1.0, 8.0), log=True)}
    found = search_study.rebuild_study(rows, space).trials[0].distributions["loss.temperature"]
    assert found == optuna.distributions.FloatDistribution(1.0, 9.5, log=True)


def test_ranges_come_from_the_rows_without_a_study(arms: pl.DataFrame) -> None:
    trial = search_study.rebuild_study(arms, {}).trials[0]
    assert isinstance(trial.distributions["train.lr"], optuna.distributions.FloatDistribution)
    modules = trial.distributions["student.ifalign"]
    assert modules == optuna.distributions.CategoricalDistribution((False, True))


def test_optuna_logs_as_before(arms: pl.DataFrame) -> None:
    level = optuna.logging.get_verbosity()
    search_study.rebuild_study(arms, SPACE)
    assert optuna.logging.get_verbosity() == level


def test_history_marks_pruned_and_failed_under_their_numbers(arms: pl.DataFrame) -> None:
    rows = arms.with_columns(number=pl.col("number") * 10)
    figure = search_plots.history_plot(search_plots.history_info(rows, SPACE))
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["pruned (smaller budget)"].x) == [50, 80, 130, 170]
    assert list(traces["failed (no value)"].x) == [30, 110]
    assert len(traces["full budget"].x) == 16
    assert max(traces["best so far"].y) == pytest.approx(max(traces["full budget"].y))


def test_best_so_far_starts_with_the_first_full_budget_arm(tmp_path: Path) -> None:
    rows = [fake_run.arm(0, fake_run.drawn(0), "failed"), fake_run.arm(1, fake_run.drawn(1))]
    figure = search_plots.history_plot(search_plots.history_info(table(tmp_path, rows), SPACE))
    line = next(trace for trace in figure.data if trace.name == "best so far")
    assert line.y[0] is None
    assert line.y[1] > 0


def test_parallel_axes_carry_whole_names(arms: pl.DataFrame) -> None:
    info = search_plots.parallel_info(arms, SPACE)
    assert info.labels == ["val_harmonic_mean (%)", *sorted(fake_run.SPACE)]
    figure = search_plots.parallel_plot(info)
    assert "student.<br>attention_scale" in figure.layout.xaxis.ticktext
    assert figure.layout.xaxis.ticktext[0] == "val_harmonic_<br>mean<br>(%)"
    assert len([trace for trace in figure.data if trace.mode == "lines"]) == 16


def test_parallel_axes_speak_like_a_study_file(arms: pl.DataFrame) -> None:
    """And a key that is not searched under the other values of an arm is off."""
    words = {
        note.text
        for note in search_plots.parallel_plot(search_plots.parallel_info(arms, SPACE)).layout.annotations
    }
    assert {"true", "false", "off"} <= words
    assert not {"True", "False", "None"} & words


def test_modules_hold_every_arm_once(arms: pl.DataFrame) -> None:
    cells = plots.modules_info(arms).cells
    assert [cell.method for cell in cells] == [
        (True, False, False),
        (True, True, False),
        (True, False, True),
        (True, True, True),
    ]
    assert sum(len(cell.values) for cell in cells) == 16
    assert sum(len(cell.pruned_values) for cell in cells) == 4
    for cell in cells:
        assert cell.estimate is not None
        assert cell.estimate.mean == pytest.approx(sum(cell.values) / len(cell.values))


def test_curves_end_where_the_arm_ended_and_the_best_is_on_top(tmp_path: Path) -> None:
    run = fake_run.write(tmp_path, fake_run.searched_arms())
    curves = plots.curves_info(results.read_arms(run), results.read_epochs(run)).curves
    assert [curve.best for curve in curves] == [False] * (len(curves) - 1) + [True]
    lengths = {curve.status: len(curve.epochs) for curve in curves}
    assert lengths == {"complete": 9, "pruned": 2}  # failed arms recorded no epoch


def test_modules_of_one_kind_are_not_compared(tmp_path: Path) -> None:
    rows = table(tmp_path, [fake_run.arm(n, {"student.ifalign": False}) for n in range(3)])
    with pytest.raises(NoFigure, match=r"are PromptKD \+ EduAttention: the modules cannot be compared"):
        plots.modules_info(rows)


def test_size_places_references_and_front(tmp_path: Path) -> None:
    info = cost_plots.size_info(table(tmp_path, fake_run.grid_arms(1)))
    references = {point.label: (point.trainable, point.total) for point in info.references}
    assert references == {
        "tuned teacher": (None, 86_000_000),
        "teacher zero-shot": (None, 86_000_000),
        "student zero-shot": (0, 5_600_000),
    }
    scores = [info.arms[index].score for index in info.front_total]
    assert scores == sorted(scores)
    assert max(point.score for point in info.arms) == scores[-1]


@pytest.mark.parametrize(("trainable", "total", "rows"), [(1, 2, [False, True]), (2, 2, [True, False]),
                                                         (1, 1, [False, False])])  # fmt: skip
def test_a_front_of_one_arm_is_no_line_of_the_legend(
    arms: pl.DataFrame, trainable: int, total: int, rows: list[bool]
) -> None:
    info = cost_plots.size_info(arms)
    info = info._replace(front_trainable=list(range(trainable)), front_total=list(range(total)))
    lines = [one for one in cost_plots.size_plot(info).data if one.name == "Pareto front of the arms"]
    assert [one.showlegend for one in lines] == rows


def test_size_without_references(arms: pl.DataFrame) -> None:
    names = [name for name in arms.columns if name.startswith(("teacher_", "zero_shot"))]
    bare = arms.with_columns(pl.lit(None, dtype=arms[name].dtype).alias(name) for name in names)
    assert cost_plots.size_info(bare).references == []


def test_cost_keeps_the_order_of_stages(arms: pl.DataFrame) -> None:
    info = cost_plots.cost_info(arms, {"pixels": 1.0, "search": 5.0})
    assert list(info.stages) == ["pixels", "search"]
    assert info.seconds == arms["seconds"].to_list()
    assert len(cost_plots.cost_plot(cost_plots.cost_info(arms, {})).data) == 3
    assert len(cost_plots.cost_plot(cost_plots.cost_info(arms.clear(), {"bank": 3.0})).data) == 1


def test_hover_escapes_and_shows_only_active_keys() -> None:
    row = {
        "arm": "<b>",
        "number": 3,
        "status": "complete",
        "searched": ["k"],
        "k": 0.123456,
        "j": 1,
    }
    assert hover(row, ["j", "k"]) == "arm &lt;b&gt; (number 3, complete)<br>k: 0.1235"


# Protocols --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "importance"])
@pytest.mark.parametrize("kind", fake_run.KINDS)
def test_every_figure_draws_under_every_protocol(tmp_path: Path, kind: tuple[str, str], name: str) -> None:
    run = fake_run.write(tmp_path, fake_run.rows_arms(fake_run.rows_tree(kind)))
    assert FIGURES[name](results.read_arms(run), results.read_epochs(run)).data


@pytest.mark.parametrize(
    ("kind", "chosen", "judged"),
    [
        (("base_to_novel", "strict"), "val_harmonic_mean (%)", "test_harmonic_mean (%)"),
        (("cross_dataset", "strict"), "val_agreement (%)", "test_accuracy (%)"),
        (("all_classes", "strict"), "val_accuracy (%)", "test_accuracy (%)"),
        (
            ("base_to_novel", "promptkd"),
            "test_base_accuracy (%)<br>chosen on test",
            "test_harmonic_mean (%)<br>chosen on test",
        ),
    ],
)
def test_axes_name_the_scores_of_the_protocol(
    tmp_path: Path, kind: tuple[str, str], chosen: str, judged: str
) -> None:
    """A picture saved from the page carries its axes, and so whether the test set chose."""
    run = fake_run.write(tmp_path, fake_run.rows_arms(fake_run.rows_tree(kind)))
    arms, epochs = results.read_arms(run), results.read_epochs(run)
    titles = {
        name: FIGURES[name](arms, epochs).layout.yaxis.title.text for name in FIGURES if name != "parallel"
    }
    assert (titles["history"], titles["curves"]) == (chosen, chosen)
    assert (titles["modules"], titles["size"]) == (judged, judged)


def test_projector_only_is_apart_from_the_2x2(tmp_path: Path) -> None:
    """It is no cell of the modules, and a method of its own among the sizes."""
    arms = table(tmp_path, fake_run.rows_arms(fake_run.rows_tree()))
    assert [len(cell.values) for cell in plots.modules_info(arms).cells] == [3, 3, 3, 3]
    info = cost_plots.size_info(arms)
    names = {trace.name: trace.marker.symbol for trace in cost_plots.size_plot(info).data}
    assert names["projector only"] == "circle-open-dot"
    assert names["PromptKD"] == "circle"
    small = min(point.trainable or 0 for point in info.arms)
    assert {point.method for point in info.arms if point.trainable == small} == {(False, False, False)}


def test_the_front_holds_the_arms_that_none_beats_in_both(tmp_path: Path) -> None:
    rows = [(number, fake_run.arm(number, fake_run.drawn(number))) for number in range(4)]
    values = [(70.0, 9), (60.0, 5), (65.0, 9), (60.0, 7)]
    for (_, (row, _)), (objective, size) in zip(rows, values, strict=True):
        row |= {"objective": objective, "trainable_parameters": size}
    arms = table(tmp_path, [arm for _, arm in rows])
    figure = front_plot.front_plot(front_plot.front_info(arms, SPACE, TWO))
    beaten, front = figure.data
    assert (beaten.name, front.name) == ("another arm beats it", "front")
    assert sorted(zip(front.x, front.y, strict=True)) == [(60.0, 5), (70.0, 9)]
    assert sorted(zip(beaten.x, beaten.y, strict=True)) == [(60.0, 7), (65.0, 9)]
    for trace in figure.data:  # each point says which arm it is
        for x, y, words in zip(trace.x, trace.y, trace.text, strict=True):
            assert f"(number {values.index((x, y))}, complete)" in words
    assert figure.layout.yaxis.title.text == "trainable_parameters"
