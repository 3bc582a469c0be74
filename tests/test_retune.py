"""`--retune N`: the same budget for every setting, over what is left to search under it."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_run
import outer
import pytest
from test_ledger import searched

from comkd_ray import ablation_run, cluster, planner, results, study_file, study_run
from comkd_ray.ablation_plan import can_find
from comkd_ray.ablation_run import open_ablation, run_ablations
from comkd_ray.arms import SEED, method_of
from comkd_ray.config import Study
from comkd_ray.designs import compile_study, settings, with_block
from comkd_ray.errors import UserError
from comkd_ray.findings import findings, sentences
from comkd_ray.jobs import arm_identity
from comkd_ray.ledger import arms_of
from comkd_ray.optuna_search import OptunaArms
from comkd_ray.pairing import FIXED, Rule
from comkd_ray.progress import Screen
from comkd_ray.report import page
from comkd_ray.retune import check_begun, in_words, tunings
from comkd_ray.retuned import fixed_arms, side_by_side
from comkd_ray.retuned_plots import retuned_plot
from comkd_ray.run import read

Tree = dict[str, Any]
SCORE = "test_harmonic_mean"
FLAGS: Tree = {"student.ifalign": [False, True], "student.edu_attention": [False, True]}
ALIGN: Tree = {"loss.align_weight": {"float": [0.1, 10.0], "log": True, "when": {"student.ifalign": True}}}


def study(
    design: str = "factorial", factors: Tree = FLAGS, search: Tree | None = None, seeds: Any = 3
) -> Study:
    block = {"design": design, "factors": factors, "seeds": seeds}
    asked = search or outer.tpe(8, space={**outer.SPACE, **ALIGN})
    return study_file.build(outer.tree(Path("/world"), asked) | {"ablate": block}, "tiny.yaml")


def spaces(one: Study) -> list[set[str]]:
    found = [search.study for search in tunings(one, Path("/run"), 5, "tiny.yaml")]
    return [set(own.search.space) if own is not None else set() for own in found]


# The searches -----------------------------------------------------------------------------------


def test_factors_and_what_has_no_effect_are_left_out_of_each_search() -> None:
    """C belongs to EduAttention and the weight of alignment to IFAlign; their conditions hold or fall."""
    both = {"loss.temperature", "train.lr"}
    scale, weight = {"student.attention_scale"}, {"loss.align_weight"}
    assert spaces(study()) == [both, both | scale, both | weight, both | scale | weight]
    own = tunings(study(), Path("/run"), 5, "x")[3].study
    assert own is not None
    assert all(dimension.when is None for dimension in own.search.space.values())


def test_a_key_without_effect_under_the_setting_is_no_knob() -> None:
    """Without a condition that says so, too; a choice that is still searched may give it an effect."""
    space = {"student.attention_scale": {"float": [0.1, 10.0]}, "loss.temperature": {"float": [1.0, 2.0]}}
    one = study(search=outer.tpe(8, space=space))
    assert spaces(one)[0] == {"loss.temperature"}
    free = outer.tpe(8, space={**space, "student.edu_attention": {"choice": [True, False]}})
    alone = study("one_knob", {"student.ifalign": [False, True]}, search=free)
    assert spaces(alone)[0] == {*space, "student.edu_attention"}


def test_every_search_has_the_same_budget_and_begins_at_the_studys_own_values(tmp_path: Path) -> None:
    one = study(seeds=[0, 1, 2])
    for search in tunings(one, tmp_path, 5, "tiny.yaml"):
        own = search.study
        assert own is not None
        assert own.search.arms == 5
        assert own.train.seed == 2**31 - 1  # none of the ablation's, and 3 may become one
        assert own.ablate is None
        assert own.study == search.run.name
        assert search.run.parent == tmp_path / "retune"
        search.run.mkdir(parents=True)
        first = OptunaArms(own, search.run / "optuna.journal").ask()
        assert first.protected
        flat = study_file.flatten(one.model_dump(mode="json"))
        assert first.overrides == {key: flat[key] for key in own.search.space}
        fixed = study_file.flatten(own.model_dump(mode="json"))
        assert {key: fixed[key] for key in FLAGS} == search.setting


@pytest.mark.parametrize("seeds", [3, [1, 5], [0, 1, 2], [2**31 - 2, 0]])
def test_the_seed_of_re_tuning_stays_apart_when_seeds_are_added(tmp_path: Path, seeds: Any) -> None:
    found = set()
    for most in (None, 4, 20) if seeds != [2**31 - 2, 0] else (None,):
        block = with_block(study(seeds=seeds), max_seeds=most)
        assert block.ablate is not None
        own = tunings(block, tmp_path, 5, "x")[0].study
        assert own is not None
        assert own.train.seed not in block.ablate.seed_values
        found.add(own.train.seed)
    assert len(found) == 1


def begun(run: Path, one: Study, arms: int) -> None:
    """The directories that a command leaves which was cut off as soon as its searches had begun."""
    for search in tunings(one, run, arms, "x"):
        assert search.study is not None
        search.run.mkdir(parents=True, exist_ok=True)
        study_file.dump(search.study, search.run / "study.yaml")


def test_searches_that_began_otherwise_are_refused_also_where_they_are_done(tmp_path: Path) -> None:
    """Fewer arms would leave budgets unequal; a seed of theirs that is an ablation's was chosen for."""
    one = study(seeds=[1, 2])
    begun(tmp_path, one, 5)
    check_begun(tunings(one, tmp_path, 5, "x"))
    check_begun(tunings(one, tmp_path, 8, "x"))
    with pytest.raises(
        UserError, match=r"--retune 4: this setting was given 5 arms already.*--retune 5 goes on"
    ):
        check_begun(tunings(one, tmp_path, 4, "x"))
    for other, key in (
        (study(seeds=[0, 1, 2]), "train.seed"),
        (study_file.resolve(one, {"loss.temperature": 2.0}), "loss.temperature"),
    ):
        with pytest.raises(UserError, match=rf"has begun with other values of {key}; --set study=NAME"):
            check_begun(tunings(other, tmp_path, 5, "x"))


def test_what_a_search_found_is_its_best_complete_arm(tmp_path: Path) -> None:
    search = tunings(study(), tmp_path, 2, "tiny.yaml")[1]
    with pytest.raises(UserError, match="no complete arm"):
        search.found()
    for arm, value, status, rate in (
        ("a", 60.0, "complete", 0.01),
        ("c", 95.0, "failed", 0.02),
        ("b", 90.0, "pruned", 0.05),
    ):
        assert not search.is_done()
        record = outer.record(arm, value, status, searched=["train.lr"], **{"train.lr": rate})
        results.write_record(search.run, record["arm"], [])
    assert search.is_done()
    assert search.found() == {"student.ifalign": False, "student.edu_attention": True, "train.lr": 0.01}


def test_the_arm_that_it_starts_from_is_remembered_before_anything_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source finds a better arm between a kill in the first search and the same command again."""
    source = searched(tmp_path)
    cut_off = study_run.Outcome(tmp_path, 0, 0, 1, 0, None, True, None, 0.0)

    def begin_and_die(*_: Any, beginning: Callable[[], None]) -> study_run.Outcome:
        beginning()
        return cut_off

    monkeypatch.setattr(ablation_run, "run_study", begin_and_die)
    monkeypatch.setattr(cluster, "connect", lambda *_: contextlib.nullcontext())
    one = with_block(study(), retune=2)
    first = open_ablation(one, "tiny.yaml", tmp_path / "tiny", source)
    assert run_ablations([first], lambda: Screen("quiet"), None, False) == [cut_off]
    better = outer.record("arm9", 99.0, number=9, searched=["loss.temperature"], **{"loss.temperature": 0.5})
    results.write_record(source, better["arm"], better["epochs"])
    again = open_ablation(one, "tiny.yaml", tmp_path / "tiny", source)
    assert again.study == first.study
    assert again.study.loss.temperature == 2.0
    assert not (tmp_path / "tiny" / "study.yaml").exists()  # nothing has begun that a change would clash with


def train(own: Study, run: Path, failing: set[int]) -> list[str]:
    """What a command does with a search, but for Ray: ask for what is left; which of them fail is given."""
    asked: list[str] = []
    arms = OptunaArms(own, run / "optuna.journal")
    arms.reconcile(results.read_records(run))
    while arms.left():
        proposal = arms.ask()
        number, values = proposal.number, proposal.overrides
        arm = arm_identity("", study_file.resolve(own, values))
        arms.assign(number, arm)
        status = "failed" if len(asked) in failing else "complete"
        record = outer.record(arm, 60.0, status, number=number, searched=sorted(values), **values)
        results.write_record(run, record["arm"], record["epochs"])
        arms.tell(number, record)
        asked.append(arm)
    return asked


def test_failed_arms_of_a_search_are_tried_again_once_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is short: nothing ends. Later one arm of a search ends, which will do, and then the other."""
    asked: list[list[str]] = []

    def run_study(own: Study, run: Path, *_: Any, beginning: Any = None) -> study_run.Outcome:
        if beginning is not None:  # a search, not the cells after it
            run.mkdir(parents=True, exist_ok=True)
            beginning()
            study_file.dump(own, run / "study.yaml")
            asked.append(train(own, run, failing))
        return study_run.Outcome(run, 2, 0, 0, 0, None, False, None, 0.0)

    monkeypatch.setattr(ablation_run, "run_study", run_study)
    monkeypatch.setattr(cluster, "connect", lambda *_: contextlib.nullcontext())

    def command() -> list[list[str]]:
        asked.clear()
        one = open_ablation(with_block(study(), retune=2), "tiny.yaml", tmp_path / "tiny", None)
        run_ablations([one], lambda: Screen("quiet"), None, False)
        return list(asked)

    failing = {0, 1}
    for _ in range(2):
        with pytest.raises(UserError, match="no complete arm"):
            command()
        assert [len(one) for one in asked] == [2] * 4
    every = list(asked)
    failing = {1}
    assert command() == every
    failing = set()
    assert command() == [one[1:] for one in every]
    assert command() == []


def test_a_setting_with_nothing_to_tune_keeps_its_values() -> None:
    one = study(search=outer.tpe(8, space={**outer.GRID, **ALIGN}))
    first, *_ = searches = tunings(one, Path("/run"), 5, "tiny.yaml")
    assert first.study is None
    assert first.is_done()
    assert first.found() == {"student.ifalign": False, "student.edu_attention": False}
    assert in_words(searches).startswith("2 settings with tpe, 10 arms in all, over loss.align_weight; then")
    assert in_words(searches).endswith("2 settings without a knob to tune")


def test_a_small_space_is_done_with_its_distinct_arms(tmp_path: Path) -> None:
    """C has no effect without EduAttention: two flags and two C are four cells and three arms."""
    space: Tree = {
        "student.edu_attention": {"choice": [False, True]},
        "student.attention_scale": {"choice": [0.5, 1.0]},
    }
    one = study(factors={"student.ifalign": [False, True]}, search=outer.tpe(8, space=space))
    search = tunings(one, tmp_path, 8, "tiny.yaml")[0]
    for arm in "abc":
        assert not search.is_done()
        results.write_record(search.run, outer.record(arm, 60.0)["arm"], [])
    assert search.is_done()


def test_a_fraction_is_not_re_tuned() -> None:
    factors: Tree = {
        **FLAGS,
        "student.renormalize": [False, True],
        "loss.kd_weight": [0.5, 1.0],
        "loss.temperature": [1.0, 2.0],
    }
    with pytest.raises(UserError, match="--retune compares settings, and a fraction tells of main effects"):
        tunings(study("fractional", factors), Path("/run"), 5, "tiny.yaml")


def test_a_file_without_a_sampler_or_with_own_values_outside_its_space_is_refused() -> None:
    grid = study(search={"sampler": "grid", "space": outer.GRID})
    with pytest.raises(UserError, match=r"--retune asks a sampler over search\.space"):
        tunings(grid, Path("/run"), 5, "tiny.yaml")
    far = study(search=outer.tpe(8, space={"loss.temperature": {"float": [2.0, 3.0]}}))
    with pytest.raises(UserError, match=r"loss.temperature: 1.0, the study's own value, is not in"):
        tunings(far, Path("/run"), 5, "tiny.yaml")


# Side by side -----------------------------------------------------------------------------------


def ablated() -> tuple[Study, list[tuple[Tree, list[Tree]]]]:
    """A 2x2 of four seeds at fixed knobs and at re-tuned ones; PromptKD alone gains by re-tuning."""
    tree = fake_run.study_tree({"loss.temperature": {"float": [0.5, 4.0]}})
    tree["ablate"] = {"design": "factorial", "factors": FLAGS, "seeds": 4}
    one = study_file.build(tree, "fake")
    found = [
        setting | {"loss.temperature": 2.0 if place == 0 else 1.0}
        for place, setting in enumerate(settings(one))
    ]
    compiled = compile_study(with_block(one, retune=6, retuned=tuple(found)), "fake-ablate", "fake")
    cells = {str(sorted(cell.items())): cell for cell in study_file.cells(compiled)}
    asked = compiled.model_dump(mode="json")
    return compiled, [fake_run.arm(number, cell, tree=asked) for number, cell in enumerate(cells.values())]


def test_effects_at_fixed_and_at_re_tuned_knobs_stand_side_by_side(tmp_path: Path) -> None:
    """Where the own values won, an arm is both; the reference re-tuned is another arm."""
    one, arms = ablated()
    assert len(arms) == 4 * 4 + 4
    run = fake_run.write(tmp_path / "run", arms, one.model_dump(mode="json"), fake_run.provenance())
    table = results.read_arms(run)
    assert len(fixed_arms(table, one)) == 16
    found = side_by_side(table, one, FIXED)
    assert found is not None
    assert found.reference == "PromptKD"
    assert found.reference_values == [("loss.temperature", "2")]
    assert [one.name for one in found.effects] == [
        "PromptKD + EduAttention",
        "PromptKD + IFAlign",
        "ComKD-CLIP",
    ]
    rows = {
        (r["student.ifalign"], r["student.edu_attention"], r["loss.temperature"], r[SEED]): r[SCORE]
        for r in table.iter_rows(named=True)
    }
    both = found.effects[-1]
    assert both.fixed is not None
    assert both.retuned is not None
    for kind, temperature in ((both.fixed, 1.0), (both.retuned, 2.0)):
        expected = [rows[True, True, 1.0, s] - rows[False, False, temperature, s] for s in (1, 2, 3, 4)]
        assert kind.differences == pytest.approx(expected)
    figure = retuned_plot(found, "test harmonic mean")
    rings = next(trace for trace in figure.data if trace.name == "fixed knobs")
    assert rings.x[-1] == pytest.approx(both.fixed.found.estimate.mean)
    words = page(read(run))
    assert "Fixed and re-tuned knobs, side by side" in words
    assert "<h2>Variants" not in words  # its arms differ by method and seed alone, at fixed knobs


def test_a_setting_that_is_its_reference_at_either_knobs_has_no_row(tmp_path: Path) -> None:
    """Without EduAttention C changes nothing."""
    tree = fake_run.study_tree({"loss.temperature": {"float": [0.5, 4.0]}})
    factors = {"student.edu_attention": [False, True], "student.attention_scale": [0.1, 1.0]}
    tree["ablate"] = {"design": "factorial", "factors": factors, "seeds": 3}
    one = study_file.build(tree, "fake")
    found = tuple(setting | {"loss.temperature": 2.0} for setting in settings(one))
    compiled = compile_study(with_block(one, retune=6, retuned=found), "fake-ablate", "fake")
    asked = compiled.model_dump(mode="json")
    cells = arms_of(compiled, "").values()
    assert len(cells) == 2 * 3 * 3
    arms = [fake_run.arm(number, cell, tree=asked) for number, cell in enumerate(cells)]
    table = results.read_arms(fake_run.write(tmp_path, arms, asked))
    both = side_by_side(table, compiled, FIXED)
    assert both is not None
    assert [effect.name.partition(",")[2] for effect in both.effects] == [
        " attention_scale: 0.1", " attention_scale: 1",
    ]  # fmt: skip
    assert all(effect.fixed and effect.retuned for effect in both.effects)


def test_methods_are_compared_at_fixed_knobs_where_re_tuning_came_later(tmp_path: Path) -> None:
    """Arms of the first command do not name the knob: those at re-tuned values are averaged with none."""
    one, arms = ablated()
    for row, _ in arms:
        if row["loss.temperature"] == 1.0:
            row["searched"] = [key for key in row["searched"] if key != "loss.temperature"]
    run = read(fake_run.write(tmp_path / "run", arms, one.model_dump(mode="json")))
    found = findings(run.arms, run.enumerated, run.rule, run.fixed)
    both = found.paired[-1]
    score = {(method_of(row), row["loss.temperature"], row[SEED]): row[SCORE] for row, _ in arms}
    assert both.differences == pytest.approx(
        [score[(True, True, True), 1.0, s] - score[(True, False, False), 1.0, s] for s in (1, 2, 3, 4)]
    )
    assert sentences(found) != sentences(findings(run.arms, run.enumerated, run.rule))
    assert all(html.escape(line) in page(run) for line in sentences(found))


def test_claims_at_re_tuned_values_are_no_claims_at_fixed_ones() -> None:
    """What the seeds can find is foretold for three claims, before and after re-tuning."""
    one, _ = ablated()
    assert can_find(one) == planner.foretell(planner.plan(4, 3))


def test_two_kinds_of_knobs_are_two_families_by_the_rule_that_was_used(tmp_path: Path) -> None:
    one, arms = ablated()
    run = fake_run.write(tmp_path / "run", arms, one.model_dump(mode="json"))
    found = side_by_side(results.read_arms(run), one, Rule(max_seeds=9))
    assert found is not None
    for effect in found.effects:
        for pair in (effect.fixed, effect.retuned):
            assert pair is not None
            assert pair.found.at_any_look
            assert pair.found.p_holm <= 3 * pair.found.p


def test_without_re_tuning_all_arms_are_at_fixed_knobs() -> None:
    one = study()
    arms = results.pl.DataFrame({"arm": ["a"]})
    assert fixed_arms(arms, one) is arms
    assert fixed_arms(arms, None) is arms
    assert side_by_side(arms, one, FIXED) is None
