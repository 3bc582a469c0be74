"""What the report of an ablation adds: curves of knobs, effects of factors, and p values of every look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_run
import numpy as np
import polars as pl
import pytest

from comkd_ray import results, study_file
from comkd_ray.ablation_plan import can_find
from comkd_ray.claims import summary, verdicts
from comkd_ray.comparison import Claim
from comkd_ray.components import MODULES, components
from comkd_ray.config import Study
from comkd_ray.designs import compile_study, settings, until_decided
from comkd_ray.figure import NoFigure
from comkd_ray.findings import findings, sentences
from comkd_ray.growth import wanted_arms
from comkd_ray.jobs import arm_identity
from comkd_ray.knob_plots import is_geometric, knob_info, knob_plot
from comkd_ray.ledger import arms_of
from comkd_ray.main_effects import main_effects
from comkd_ray.markdown import tables
from comkd_ray.pairing import paired_by_seed
from comkd_ray.plan import reach_of
from comkd_ray.reference_rows import reference_rows
from comkd_ray.report import page
from comkd_ray.run import Run, read
from comkd_ray.search_space import Overrides
from comkd_ray.sequential import compare_at_any_look, decide
from comkd_ray.stats import sign_flip_p
from comkd_ray.tables import effects_notes, effects_of, paired_notes, variants_notes, variants_table
from comkd_ray.variants import variants

Tree = dict[str, Any]
SCORE = "test_harmonic_mean"
SCALE = "student.attention_scale"
FLAGS: Tree = {"student.ifalign": [False, True], "student.edu_attention": [False, True]}
FIVE: Tree = {
    "loss.temperature": [1.0, 2.0],
    "student.ifalign": [False, True],
    "loss.kd_weight": [1.0, 2.0],
    "student.alpha": ["scalar", "vector"],
    "train.lr": [0.005, 0.01],
}


def ablation(design: str, factors: Tree, seeds: int = 3, most: int | None = None, **sections: Tree) -> Study:
    tree = fake_run.study_tree({}, **sections)
    tree["search"] = {}
    tree["ablate"] = {"design": design, "factors": factors, "seeds": seeds}
    one = study_file.build(tree, "fake")
    return compile_study(until_decided(one, "fake", most) if most else one, "fake", "fake")


def run_of(folder: Path, one: Study, left_out: int = 0, score: Callable[[Tree], float] | None = None) -> Run:
    """A run directory with every arm trained, but for the last few; cells that are one arm are one."""
    cells, tree = arms_of(one, "").values(), one.model_dump(mode="json")
    arms = [fake_run.arm(number, cell, tree=tree) for number, cell in enumerate(cells)]
    if score is not None:
        arms = [(row | {SCORE: score(row)}, epochs) for row, epochs in arms]
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


def test_each_p_of_an_effect_stands_under_its_name(tmp_path: Path) -> None:
    run = run_of(tmp_path, ablation("factorial", FLAGS, seeds=6))
    assert run.study is not None
    found = main_effects(run.fixed, run.study)
    shown = effects_of(found, run.scores)
    places = {name: shown.head.index(name) for name in ("sign-flip p", "smallest p", "p (Holm)")}
    for one, row in zip(found, shown.rows, strict=True):
        values = {"sign-flip p": one.p, "smallest p": one.smallest_p, "p (Holm)": one.p_holm}
        assert {name: row[place] for name, place in places.items()} == {
            n: f"{p:.3g}" for n, p in values.items()
        }
    assert any(one.p != one.p_holm for one in found)


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
    one = ablation("factorial", {"student.edu_attention": [False, True], SCALE: [0.1, 1.0]})
    run = run_of(tmp_path, one)
    assert len(run.arms) == 9
    scores = {
        (r["student.edu_attention"], r[SCALE], r["seed"]): r[SCORE] for r in run.arms.iter_rows(named=True)
    }
    found = {effect.factors: effect for effect in main_effects(run.arms, one)}
    scale = found[(SCALE,)]
    assert scale.levels == (1.0,)
    half = [(scores[True, 1.0, seed] - scores[True, 0.1, seed]) / 2 for seed in (1, 2, 3)]
    assert scale.estimate.mean == pytest.approx(np.mean(half))
    lines = verdicts(run.arms, one, run.rule)
    assert [line.split(" minus ")[0] for line in lines] == [
        "edu_attention: true, attention_scale: 0.1", "edu_attention: true, attention_scale: 1",
    ]  # fmt: skip
    assert all("is not decidable" in line for line in lines)


def test_an_arm_without_a_module_is_at_the_own_values_whatever_level_it_was_trained_under(
    tmp_path: Path,
) -> None:
    """The reference rows hold it, and it fills the 2x2 of the arms at own values."""
    one = ablation("factorial", {**FLAGS, SCALE: [0.1, 1.0]})
    run = run_of(tmp_path, one)
    off = run.arms.filter(~run.arms["student.edu_attention"])
    assert set(off[SCALE]) == {0.1}
    assert study_file.flatten(one.model_dump())[SCALE] == 1.0
    rows = {row.name: row.n for row in reference_rows(run.arms, one)}
    methods = ("PromptKD", "PromptKD + IFAlign", "PromptKD + EduAttention", "ComKD-CLIP")
    assert [rows[name] for name in methods] == [3] * 4
    found = components(run.arms, one, run.enumerated)
    assert found is not None
    assert (found.grid.factors, found.grid.seeds) == (MODULES, (1, 2, 3))


@pytest.mark.parametrize("levels", [[0.1, 1.0], [1.0, 0.1]])
def test_methods_are_paired_over_all_levels_of_what_the_reference_lacks(
    tmp_path: Path, levels: list[float]
) -> None:
    """In whatever order they are written."""

    def score(row: Tree) -> float:
        scale = row[SCALE] * row["student.edu_attention"]
        return 80 + 2.0 * row["student.ifalign"] + scale * row["seed"]

    run = run_of(tmp_path, ablation("factorial", {**FLAGS, SCALE: levels}), score=score)
    found = {pair.name: pair.differences for pair in paired_by_seed(run.arms, SCORE, run.rule)}
    assert found["PromptKD + IFAlign"] == pytest.approx((2, 2, 2))
    assert found["PromptKD + EduAttention"] == pytest.approx((0.55, 1.1, 1.65))
    assert found["ComKD-CLIP"] == pytest.approx((2.55, 3.1, 3.65))


def test_effects_of_a_third_factor_stand_beside_those_of_the_modules(tmp_path: Path) -> None:
    """The 2x2 holds the arms at own values alone, so it says nothing of C."""
    words = page(run_of(tmp_path, ablation("factorial", {**FLAGS, SCALE: [1.0, 10.0]})))
    assert "What each component is worth" in words
    effects = words.split('<section id="effects">')[1].split("</section>")[0]
    assert "What each factor is worth" in effects
    assert f"{SCALE}: 10" in effects


def test_levels_are_compared_with_the_first_that_the_design_names(tmp_path: Path) -> None:
    """Not with the first in the alphabet."""
    one = ablation("factorial", {"student.ifalign": [True, False], "loss.temperature": [4.0, 2.0]})
    found = main_effects(run_of(tmp_path, one).arms, one)
    assert [effect.levels for effect in found] == [(False,), (2.0,), (False, 2.0)]


# Claims -----------------------------------------------------------------------------------------


def test_settings_that_are_the_same_arms_are_one_claim_to_everyone(tmp_path: Path) -> None:
    """Of twelve settings eight are arms: plan, growth, command line and report count seven claims.

    Nine seeds can decide seven and not eleven.
    """
    one = ablation("factorial", {**FLAGS, SCALE: [0.1, 1.0, 10.0]}, seeds=9, most=12)

    def score(row: Tree) -> float:
        return 80.0 + row["seed"] / 100 + (row["student.ifalign"] or row["student.edu_attention"])

    def identify(cell: Overrides) -> str:
        return arm_identity("", study_file.resolve(one, cell))

    whole = run_of(tmp_path, one, score=score)
    run = whole._replace(arms=whole.arms.filter(whole.arms["seed"] <= 9))
    assert can_find(one).endswith("7 claims: every look counted; a claim whose differences are all alike is "
                                  "decided after 9 seeds")  # fmt: skip
    foretold, found = reach_of(one), variants(run.fixed, run.enumerated, run.rule)
    assert foretold is not None
    assert found is not None
    assert foretold.claims == len([row for row in found.rows if row.paired is not None]) == 7
    lines = verdicts(run.fixed, one, run.rule)
    assert len(set(lines)) == len(lines) == 7
    assert all("that it scores above is supported" in line for line in lines)
    rows = zip(arms_of(one, ""), whole.arms.sort("number").iter_rows(named=True), strict=True)
    records = {arm: {"arm": row} for arm, row in rows if row["seed"] <= 9}
    assert wanted_arms(one, identify, records) == records.keys()


def test_a_report_of_an_ablation_begins_with_its_claims(tmp_path: Path) -> None:
    """Settled ones by name; a level above another by one point in every seed is supported."""
    one = ablation("factorial", FLAGS, seeds=8)

    def score(row: Tree) -> float:
        return (
            80.0
            + row["seed"] / 100
            + row["student.ifalign"]
            + (row["seed"] % 2) * row["student.edu_attention"]
        )

    run = run_of(tmp_path, one, score=score)
    words = "Which settings score above PromptKD? Of 3 claims: "
    words += "2 supported (PromptKD + IFAlign, ComKD-CLIP), 1 not decidable."
    assert summary(run.fixed, run.study, run.rule) == words
    assert f'<p class="lead">{words}</p>' in page(run)
    assert summary(run.fixed, None, run.rule) == ""


def test_claims_without_a_pair_are_counted_and_refuted_ones_named(tmp_path: Path) -> None:
    one = ablation("leave_one_out", FLAGS, seeds=8)

    def score(row: Tree) -> float:
        return 80.0 + row["seed"] / 100 - row["student.ifalign"]

    run = run_of(tmp_path, one, score=score)
    words = "Which settings score below ComKD-CLIP? Of 2 claims: "
    assert (
        summary(run.fixed, one, run.rule) == f"{words}1 refuted (PromptKD + EduAttention), 1 not decidable."
    )
    kept = run.fixed.filter(pl.col("student.ifalign"))
    without = f"{words}1 not decidable, 1 without a pair of arms."
    assert summary(kept, one, run.rule) == without
    assert summary(kept.clear(), one, run.rule) == f"{words}2 without a pair of arms."


def test_settings_of_a_fraction_are_shown_and_not_compared(tmp_path: Path) -> None:
    run = run_of(tmp_path, ablation("fractional", FIVE, seeds=8))
    found = variants(run.fixed, run.enumerated, run.rule)
    assert found is not None
    assert [(row.n, row.paired) for row in found.rows] == [(8, None)] * 16
    shown = variants_table(found, run.scores)
    assert shown.head == ["variant, test (%)", "n", "base", "novel", "harmonic mean",
                          "range of harmonic mean", "best epoch"]  # fmt: skip
    assert {len(row) for row in shown.rows} == {len(shown.head)}
    assert "settings of a fraction are not compared" in variants_notes(found, run.scores)[0]
    assert paired_notes(run.scores, run.rule) == []
    assert "sign-flip" not in tables(run).split("| effect")[0]
    section = page(run).split('<section id="variants">')[1].split("</section>")[0]
    assert "verdict" not in section
    effects = tables(run).split("| effect")[1]
    assert all(words in effects for words in ("loss.temperature: 2", "IFAlign", "student.alpha: vector"))
    assert effects_notes(run.rule)[0] in effects
    assert verdicts(run.fixed, run.study, run.rule) == []
    assert summary(run.fixed, run.study, run.rule) == ""


def test_each_table_says_what_its_own_rows_claim(tmp_path: Path) -> None:
    """Without a part a setting scores below; a method with a module scores above PromptKD."""
    factors = {"student.ifalign": [False, True], "loss.temperature": [1.0, 2.0]}
    words = tables(run_of(tmp_path, ablation("leave_one_out", factors, **fake_run.PAIR)))
    order = ("| variant, test (%)", "A row claims to score below", "| minus PromptKD, points of",
             "A row claims to score above")  # fmt: skip
    places = [words.index(part) for part in order]
    assert places == sorted(places)
    assert [words.count(part) for part in order] == [1] * 4


def test_without_a_part_a_setting_is_claimed_to_score_below(tmp_path: Path) -> None:
    run = run_of(tmp_path, ablation("leave_one_out", FLAGS, seeds=8))
    words = page(run)
    assert "A row claims to score below what it is compared with" in words
    assert "PromptKD + IFAlign" in words


def test_a_study_that_added_seeds_shows_p_values_of_every_look(tmp_path: Path) -> None:
    one = ablation("factorial", FLAGS, seeds=6, most=9)
    run = run_of(tmp_path, one)
    assert (run.rule.direction, run.rule.max_seeds, run.rule.seeds_left) == ("above", 9, False)
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
