"""What the report of an ablation adds: curves of knobs, effects of factors, and p values of every look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_run
import numpy as np
import pytest

from comkd_ray import results, study_file
from comkd_ray.claims import verdicts
from comkd_ray.comparison import Claim
from comkd_ray.config import Study
from comkd_ray.designs import compile_study, settings, until_decided
from comkd_ray.figure import NoFigure
from comkd_ray.findings import findings, sentences
from comkd_ray.jobs import arm_identity
from comkd_ray.knob_plots import is_geometric, knob_info, knob_plot
from comkd_ray.main_effects import main_effects
from comkd_ray.markdown import tables
from comkd_ray.pairing import Rule, paired_by_seed
from comkd_ray.report import page
from comkd_ray.run import Run, read
from comkd_ray.sequential import compare_at_any_look, decide
from comkd_ray.stats import sign_flip_p

Tree = dict[str, Any]
SCORE = "test_harmonic_mean"
FLAGS: Tree = {"student.ifalign": [False, True], "student.edu_attention": [False, True]}
FIVE: Tree = {
    "loss.temperature": [1.0, 2.0],
    "student.ifalign": [False, True],
    "loss.kd_weight": [1.0, 2.0],
    "student.alpha": ["scalar", "vector"],
    "train.lr": [0.005, 0.01],
}


def ablation(design: str, factors: Tree, seeds: int = 3, most: int | None = None) -> Study:
    tree = fake_run.study_tree({})
    tree["search"] = {}
    tree["ablate"] = {"design": design, "factors": factors, "seeds": seeds}
    one = study_file.build(tree, "fake")
    return compile_study(until_decided(one, "fake", most) if most else one, "fake", "fake")


def run_of(folder: Path, one: Study, left_out: int = 0) -> Run:
    """A run directory with every cell trained, but for the last few."""
    cells, tree = study_file.cells(one), one.model_dump(mode="json")
    arms = [fake_run.arm(number, cell, tree=tree) for number, cell in enumerate(cells)]
    return read(fake_run.write(folder, arms[: len(arms) - left_out], tree, fake_run.provenance()))


# Curves of a knob -------------------------------------------------------------------------------

KNOBS: Tree = {"loss.temperature": [0.5, 1.0, 2.0, 4.0, 8.0], "loss.kd_weight": [0.5, 2.0]}


def test_a_curve_holds_each_value_with_its_seeds_and_all_others_at_their_own(tmp_path: Path) -> None:
    one = ablation("one_knob", KNOBS)
    run = run_of(tmp_path, one)
    info = knob_info(run.arms, one, "loss.temperature")
    assert [point.value for point in info.points] == [0.5, 1.0, 2.0, 4.0, 8.0]
    rows = run.arms.filter(run.arms["loss.kd_weight"] == 1.0)
    for point in info.points:
        own = rows.filter(rows["loss.temperature"] == point.value)
        assert point.scores == dict(zip(own["seed"], own[SCORE], strict=True))
        assert point.estimate.mean == pytest.approx(own[SCORE].mean())
    assert info.points[info.best].value == 2.0  # that is where the made-up scores have their best
    assert (info.own, info.log) == (1.0, True)
    weight = knob_info(run.arms, one, "loss.kd_weight")
    assert [(point.value, point.estimate.n) for point in weight.points] == [(0.5, 3), (1.0, 3), (2.0, 3)]


def test_a_curve_is_drawn_with_its_seeds_its_best_and_the_own_value(tmp_path: Path) -> None:
    one = ablation("one_knob", KNOBS)
    info = knob_info(run_of(tmp_path, one).arms, one, "loss.temperature")
    figure = knob_plot(info)
    assert figure.layout.xaxis.type == "log"
    assert [trace.name for trace in figure.data][:3] == ["a seed"] * 3
    assert [trace.showlegend for trace in figure.data][:3] == [True, False, False]
    star = next(trace for trace in figure.data if trace.marker.symbol == "star")
    assert tuple(star.x) == (2.0,)
    assert tuple(figure.data[-1].x) == (1.0, 1.0)


def test_words_are_categories_and_stay_in_their_order(tmp_path: Path) -> None:
    one = ablation("one_knob", {"student.attention_scale": [0.1, 4.0, "sqrt_width"]})
    info = knob_info(run_of(tmp_path, one).arms, one, "student.attention_scale")
    assert info.log is None
    assert [point.value for point in info.points] == [0.1, 4.0, "sqrt_width", 1.0]
    assert knob_plot(info).layout.xaxis.type == "category"


@pytest.mark.parametrize(
    ("values", "log"),
    [([0.01, 0.1, 1, 10], True), ([1, 2, 3], False), ([0.1, 0.2, 0.5, 0.7, 1, 1.4, 2, 2.8, 4], True),
     ([0, 1, 10], False), ([1, 10], False)],
)  # fmt: skip
def test_an_axis_is_logarithmic_where_values_are_spread_by_factors(values: list[float], log: bool) -> None:
    assert is_geometric(values) == log


def test_a_single_value_is_no_curve(tmp_path: Path) -> None:
    one = ablation("one_knob", {"loss.temperature": [1.0, 2.0]})
    run = run_of(tmp_path, one, left_out=3)
    with pytest.raises(NoFigure, match="Fewer than two values"):
        knob_info(run.arms, one, "loss.temperature")
    assert "Fewer than two values of loss.temperature" in page(run)


# Effects of factors -----------------------------------------------------------------------------


def test_main_effects_of_a_fraction_are_on_minus_off_inside_each_seed(tmp_path: Path) -> None:
    one = ablation("fractional", FIVE, seeds=4)
    run = run_of(tmp_path, one)
    found = main_effects(run.arms, one)
    assert [effect.factors for effect in found] == [(key,) for key in FIVE]
    for effect, (key, levels) in zip(found, FIVE.items(), strict=True):
        values = []
        for seed in (1, 2, 3, 4):
            own = run.arms.filter(run.arms["seed"] == seed)
            on, off = (own.filter(own[key] == level)[SCORE].mean() for level in reversed(levels))
            values.append(on - off)
        assert effect.estimate.mean == pytest.approx(np.mean(values))
        assert effect.p == pytest.approx(sign_flip_p(values))
        assert effect.p_holm >= effect.p
    assert "What each factor is worth" in page(run)


def test_a_seed_that_lacks_a_setting_is_left_out_of_the_effects(tmp_path: Path) -> None:
    one = ablation("fractional", FIVE, seeds=3)
    found = main_effects(run_of(tmp_path, one, left_out=1).arms, one)
    assert {effect.estimate.n for effect in found} == {2}
    assert main_effects(run_of(tmp_path / "none", one, left_out=47).arms, one) == []


def test_a_factorial_without_the_modules_has_its_effects_and_the_2x2_has_them_below(tmp_path: Path) -> None:
    factors = {"loss.temperature": [1.0, 2.0, 4.0], "student.ifalign": [False, True]}
    one = ablation("factorial", factors)
    found = main_effects(run_of(tmp_path / "a", one).arms, one)
    assert len(found) == 2 + 1 + 2
    assert (
        main_effects(run_of(tmp_path / "b", ablation("one_knob", KNOBS)).arms, ablation("one_knob", KNOBS))
        == []
    )
    modules = page(run_of(tmp_path / "c", ablation("factorial", FLAGS)))
    assert "What each component is worth" in modules
    assert "What each factor is worth" not in modules


def test_a_factor_without_effect_under_another_still_fills_the_grid(tmp_path: Path) -> None:
    """Without EduAttention an arm stands for every C: its effect there is zero, and nothing is claimed."""
    factors = {"student.edu_attention": [False, True], "student.attention_scale": [0.1, 1.0]}
    one = ablation("factorial", factors)
    cells, tree = study_file.cells(one), one.model_dump(mode="json")
    distinct = {arm_identity("", study_file.resolve(one, cell)): cell for cell in cells}
    assert len(distinct) == 9
    arms = [fake_run.arm(number, cell, tree=tree) for number, cell in enumerate(distinct.values())]
    run = read(fake_run.write(tmp_path, arms, tree))
    scores = {
        (r["student.edu_attention"], r["student.attention_scale"], r["seed"]): r[SCORE]
        for r in run.arms.iter_rows(named=True)
    }
    found = {effect.factors: effect for effect in main_effects(run.arms, one)}
    scale = found[("student.attention_scale",)]
    assert scale.levels == (1.0,)
    half = [(scores[True, 1.0, seed] - scores[True, 0.1, seed]) / 2 for seed in (1, 2, 3)]
    assert scale.estimate.mean == pytest.approx(np.mean(half))
    lines = verdicts(run.arms, one, run.rule)
    assert [line.split(" minus ")[0] for line in lines] == [
        "edu_attention: true, attention_scale: 0.1", "edu_attention: true, attention_scale: 1",
    ]  # fmt: skip
    assert all("is not decidable" in line for line in lines)


def test_levels_are_compared_with_the_first_that_the_design_names(tmp_path: Path) -> None:
    """Not with the first in the alphabet."""
    one = ablation("factorial", {"student.ifalign": [True, False], "loss.temperature": [4.0, 2.0]})
    found = main_effects(run_of(tmp_path, one).arms, one)
    assert [effect.levels for effect in found] == [(False,), (2.0,), (False, 2.0)]


# Claims -----------------------------------------------------------------------------------------


def test_without_a_part_a_setting_is_claimed_to_score_below(tmp_path: Path) -> None:
    run = run_of(tmp_path, ablation("leave_one_out", FLAGS, seeds=8))
    words = page(run)
    assert "A row claims to score below what it is compared with" in words
    assert "PromptKD + IFAlign" in words


def test_a_study_that_added_seeds_shows_p_values_of_every_look(tmp_path: Path) -> None:
    one = ablation("factorial", FLAGS, seeds=6, most=9)
    run = run_of(tmp_path, one)
    assert run.rule == Rule("above", 9, seeds_left=False)
    paired = paired_by_seed(run.arms, SCORE, run.rule)
    questions = decide([Claim(pair.name, pair.differences) for pair in paired], run.rule.seeds_left)
    for pair, question in zip(paired, questions, strict=True):
        assert (pair.found.p, pair.found.p_holm) == (question.p, question.p_holm)
        assert pair.found.verdict == question.standing
    for words in (page(run), tables(run)):
        assert "p at any look" in words
        assert "do not count the looks" in words
    head = " ".join(sentences(findings(run.arms, run.enumerated, run.rule)))
    assert "every look counted p" in head
    assert "exact sign-flip" not in head


def test_an_open_claim_is_called_open() -> None:
    claim = Claim("a", (1.0, -1.0, 0.5))
    (found,) = compare_at_any_look([claim], seeds_left=True)
    assert (found.verdict, found.n, found.at_any_look, found.further_seeds) == ("open", 3, True, None)
    (spent,) = compare_at_any_look([claim], seeds_left=False)
    assert spent.verdict == "not decidable"
    (decided,) = compare_at_any_look([Claim("b", (-1.0,) * 8, "below")], seeds_left=True)
    assert decided.verdict == "supported"


@pytest.mark.parametrize(("asked", "standing"), [(36, "not decidable"), (37, "open")])
def test_a_claim_is_open_only_while_an_arm_is_still_asked_for(
    tmp_path: Path, asked: int, standing: str
) -> None:
    """The reference failed at one seed, so no claim has as many differences as there were seeds."""
    one = ablation("factorial", FLAGS, seeds=6, most=9)
    tree = one.model_dump(mode="json")
    arms = [
        fake_run.arm(number, cell, "failed" if number == 1 else "complete", tree=tree)
        for number, cell in enumerate(study_file.cells(one))
    ]
    assert len(arms) == 36
    run = read(fake_run.write(tmp_path, arms, tree, fake_run.provenance(arms_asked=asked)))
    paired = paired_by_seed(run.arms, SCORE, run.rule)
    assert [pair.found.n for pair in paired] == [8, 8, 8]
    assert {pair.found.verdict for pair in paired} - {"supported", "refuted"} == {standing}
    told = " ".join(verdicts(run.arms, one, run.rule))
    assert ("is open: it wants another seed" in told) == (standing == "open")


def test_arms_of_another_run_are_not_counted_as_time_spent_here(tmp_path: Path) -> None:
    one = ablation("add_one_in", FLAGS)
    run = run_of(tmp_path, one)
    spent = float(run.arms["seconds"].sum())
    for place, record in enumerate(list(results.read_records(tmp_path).values())[:4]):
        origin = {"taken_from": "before"} if place else {"from": "before"}  # of a fork
        results.write_record(tmp_path, record["arm"] | origin, record["epochs"])
    results.compact(tmp_path)
    again = read(tmp_path)
    kept = again.arms.filter(again.arms["taken_from"].is_null(), again.arms["from"].is_null())
    assert len(kept) == len(run.arms) - 4
    assert again.trained.equals(kept)
    assert float(again.trained["seconds"].sum()) < spent
    assert run.trained.equals(run.arms)
    assert len(settings(one)) == 3
