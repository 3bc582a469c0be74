"""Designs: which settings an `ablate` block compares, and what it refuses."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import outer
import pytest

from comkd_ray import study_file
from comkd_ray.config import Study
from comkd_ray.designs import (
    claim_pairs,
    compile_study,
    count_claims,
    count_settings,
    keep_begun,
    run_name,
    settings,
    until_decided,
    with_block,
)
from comkd_ray.errors import UserError
from comkd_ray.fractional import aliases_of, fraction, in_words, resolution_of
from comkd_ray.plan import reach_of
from comkd_ray.study_file import cells

Tree = dict[str, Any]
FLAGS: Tree = {"student.ifalign": [False, True], "student.edu_attention": [False, True]}
SEVEN: Tree = {
    **FLAGS,
    "student.renormalize": [False, True],
    "student.alpha": ["scalar", "vector"],
    "student.align_axis": ["width", "batch"],
    "student.align_reduction": ["mean", "sum"],
    "student.attention_keys": ["evaluated", "all"],
}


def study(design: str, factors: Tree, seeds: Any = 3, **sections: Tree) -> Study:
    tree = outer.tree(Path("/world"), **sections)
    del tree["search"]
    block = {"design": design, "factors": factors, "seeds": seeds}
    return study_file.build(tree | {"ablate": block}, "tiny.yaml")


def compiled(design: str, factors: Tree, seeds: Any = 3, **sections: Tree) -> Study:
    return compile_study(study(design, factors, seeds, **sections), "tiny", "tiny.yaml")


def short(one: Study) -> list[tuple[Any, ...]]:
    return [tuple(setting.values()) for setting in settings(one)]


# Settings ---------------------------------------------------------------------------------------


def test_a_factorial_has_every_combination_of_mixed_levels() -> None:
    factors = {"student.ifalign": [False, True], "student.projector_layers": [1, 2, 3]}
    assert short(study("factorial", factors)) == list(product([False, True], [1, 2, 3]))


def test_leave_one_out_begins_with_all_on_and_claims_that_less_is_worse() -> None:
    one = study("leave_one_out", FLAGS)
    assert short(one) == [(True, True), (False, True), (True, False)]
    assert one.ablate is not None
    assert one.ablate.direction == "below"


def test_add_one_in_begins_with_all_off() -> None:
    one = study("add_one_in", FLAGS)
    assert short(one) == [(False, False), (True, False), (False, True)]
    assert one.ablate is not None
    assert one.ablate.direction == "above"


def test_one_knob_varies_each_key_alone_around_the_studys_own_values() -> None:
    """The own value is there once, also where it is a level; a list is crossed with the seeds."""
    factors = {"loss.temperature": [0.5, 1.0, 2.0], "train.lr": [0.01, 0.04]}
    one = study("one_knob", factors)
    assert short(one) == [(1.0, 0.02), (0.5, 0.02), (2.0, 0.02), (1.0, 0.01), (1.0, 0.04)]
    asked = cells(compile_study(one, "tiny", "tiny.yaml"))
    assert len(asked) == 5 * 3
    assert asked[:4] == [
        {"loss.temperature": t, "train.lr": 0.02, "train.seed": s}
        for t, s in ((1.0, 1), (1.0, 2), (1.0, 3), (0.5, 1))
    ]  # fmt: skip


def test_levels_may_be_spread_over_a_range() -> None:
    factors = {"student.attention_scale": {"float": [0.01, 10.0], "log": True, "count": 9}}
    one = study("one_knob", factors)
    assert one.ablate is not None
    levels = one.ablate.factors["student.attention_scale"]
    assert levels == (0.01, 0.02371, 0.05623, 0.1334, 0.3162, 0.7499, 1.778, 4.217, 10.0)
    even = study("one_knob", {"loss.temperature": {"float": [1.0, 3.0], "count": 3}})
    assert even.ablate is not None
    assert even.ablate.factors["loss.temperature"] == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("design", ["factorial", "leave_one_out", "add_one_in", "one_knob"])
def test_the_compiled_study_asks_for_every_setting_with_every_seed(design: str) -> None:
    """Settings in order, the seeds of each beside each other and sorted; what is planned is compared."""
    one = compiled(design, FLAGS, seeds=[4, 2, 9])
    expected = [setting | {"train.seed": seed} for setting in settings(one) for seed in (2, 4, 9)]
    assert cells(one) == expected
    reach = reach_of(one)
    assert reach is not None
    assert (reach.seeds, reach.claims) == (3, len(settings(one)) - 1)
    assert claim_pairs(one) == [(place, 0) for place in range(1, len(settings(one)))]


def test_settings_that_are_the_same_arms_make_one_claim() -> None:
    """Without EduAttention C changes nothing: one setting more is the reference, and two are one."""
    one = compiled("factorial", {**FLAGS, "student.attention_scale": [0.1, 1.0]})
    places = {values: place for place, values in enumerate(short(one))}
    claims = [(False, True, 0.1), (False, True, 1.0), (True, False, 0.1), (True, True, 0.1),
              (True, True, 1.0)]  # fmt: skip
    assert [setting for setting, _ in claim_pairs(one)] == [places[values] for values in claims]
    assert count_claims(one) == 5
    assert count_claims(compiled("fractional", SEVEN)) == 7


def test_claims_at_re_tuned_values_are_told_apart_by_these() -> None:
    """Where EduAttention is off a C that a search found changes nothing, and a temperature does."""
    factors = {"student.edu_attention": [False, True], "student.attention_scale": [0.1, 1.0]}
    found = [setting | {"loss.temperature": t} for setting, t in zip(
        settings(study("factorial", factors)), (1.0, 2.0, 1.0, 1.0), strict=True)]  # fmt: skip
    one = with_block(study("factorial", factors), retuned=tuple(found))
    assert claim_pairs(one) == [(2, 0), (3, 0), (5, 4), (6, 4), (7, 4)]


def test_a_compiled_study_is_read_back_as_it_was(tmp_path: Path) -> None:
    one = compiled("leave_one_out", FLAGS)
    study_file.dump(one, tmp_path / "study.yaml")
    assert study_file.load(tmp_path / "study.yaml") == one


def test_settings_are_counted_without_listing_them() -> None:
    for design in ("factorial", "leave_one_out", "add_one_in"):
        one = study(design, FLAGS)
        assert one.ablate is not None
        assert count_settings(one.ablate) == len(settings(one))


def test_the_names_of_tune_and_ablate_never_meet() -> None:
    assert run_name(study("factorial", FLAGS)) == "tiny"
    both = study_file.build(
        outer.tree(Path("/world")) | {"ablate": {"design": "factorial", "factors": FLAGS}}, "x"
    )
    assert run_name(both) == "tiny-ablate"


# Fractions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factors", "size", "resolution"), [(5, 16, 5), (6, 16, 4), (7, 16, 4), (8, 16, 4), (9, 32, 4)]
)
def test_a_fraction_is_balanced_orthogonal_and_begins_with_all_off(
    factors: int, size: int, resolution: int
) -> None:
    """Sizes and resolutions of the published catalogue (Montgomery 2012, table 8.14)."""
    found = fraction(factors)
    signs = 2 * np.array(found.rows) - 1
    assert signs.shape == (size, factors)
    assert found.rows[0] == (0,) * factors
    assert (signs.T @ signs == size * np.eye(factors)).all()
    for one, other in combinations(range(factors), 2):
        assert not ((signs[:, one] * signs[:, other]) @ signs).any()  # mains clear of interactions of two
    assert (found.resolution, found.aliases == ()) == (resolution, resolution > 4)


def test_a_full_grid_confuses_nothing_and_a_half_of_three_factors_mains_with_pairs() -> None:
    full = np.array(list(product((-1, 1), repeat=3)))
    assert (resolution_of(full), aliases_of(full)) == (4, ())
    half = full[full.prod(axis=1) == 1]
    assert resolution_of(half) == 3
    doubled = np.column_stack([full, full.prod(axis=1)])  # d = abc: ab = cd, ac = bd, ad = bc
    assert resolution_of(doubled) == 4
    assert aliases_of(doubled) == (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))


def test_aliases_are_told_by_the_names_of_the_factors() -> None:
    words = in_words(fraction(6), list("abcdef"))
    assert words.startswith("resolution IV: main effects are clear of interactions of two factors; not told")
    assert " = " in words
    assert "and these of each other" in in_words(fraction(5), list("abcde"))


def test_a_fractional_design_sets_every_factor_in_every_setting() -> None:
    one = study("fractional", SEVEN)
    assert len(settings(one)) == 16
    assert settings(one)[0] == {key: levels[0] for key, levels in SEVEN.items()}
    for setting in settings(one):
        assert all(setting[key] in levels for key, levels in SEVEN.items())


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("design", "factors", "seeds", "words"),
    [
        ("factorial", {"student.ifalgin": [False, True]}, 3,
         "tiny.yaml: ablate.factors: student.ifalgin: unknown key; did you mean 'student.ifalign'?"),
        ("factorial", {"student.model": ["a", "b"]}, 3, "ablate.factors: student.model: unknown key"),
        ("factorial", {"train.seed": [1, 2]}, 3, "seeds are no factor; they stand under ablate.seeds"),
        ("factorial", {"student.ifalign": [0.5, True]}, 3, "ablate.factors: student.ifalign: input"),
        ("factorial", {"student.ifalign": [True]}, 3, "student.ifalign: a factor needs two levels or more"),
        ("factorial", {"train.lr": [0.1, 0.1]}, 3, "a factor needs two levels or more, and none twice"),
        ("factorial", {}, 3, "ablate.factors: "),
        ("factorial", FLAGS, 1, "seeds: a test needs two seeds or more"),
        ("factorial", FLAGS, [1, 1], "seeds: a test needs two seeds or more, and none twice"),
        ("factorial", FLAGS, [-1, 1], "seeds: a seed lies from 0 to"),
        ("leave_one_out", {"train.lr": [0.1, 0.2, 0.3]}, 3, "leave_one_out takes two levels, off and on"),
        ("add_one_in", {"train.lr": [0.1, 0.2, 0.3]}, 3, "add_one_in takes two levels, off and on, not 3"),
        ("fractional", FLAGS, 3, "fractional is for 5 factors or more, here are 2; use factorial"),
        ("one_knob", {"train.lr": {"float": [0.1, 1.0]}}, 3, "train.lr: levels are a list, or {float:"),
        ("one_knob", {"train.lr": {"float": [1.0, 0.1], "count": 3}}, 3, "lr: the lower bound 1.0 is not"),
        ("wrong", FLAGS, 3, "ablate.design: input should be 'factorial'"),
    ],
)  # fmt: skip
def test_a_block_that_cannot_be_is_refused_in_one_line(
    design: str, factors: Tree, seeds: Any, words: str
) -> None:
    with pytest.raises(UserError) as caught:
        compiled(design, factors, seeds)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_huge_grid_has_to_be_confirmed() -> None:
    factors = {key: {"float": [0.001, 0.9], "count": 25} for key in ("train.lr", "train.weight_decay")}
    one = study("factorial", factors, seeds=17)
    with pytest.raises(UserError, match=r"10,625 cells are more than 10,000; --yes confirms them"):
        compile_study(one, "tiny", "tiny.yaml")
    assert len(cells(compile_study(one, "tiny", "tiny.yaml", confirmed=True))) == 10_625


def test_without_a_block_there_is_nothing_to_ablate() -> None:
    with pytest.raises(UserError, match="x: ablate: no such block"):
        compile_study(outer.study(Path("/world")), "tiny", "x")


def test_until_decided_needs_room_for_more_seeds_and_settings_to_compare() -> None:
    one = study("factorial", FLAGS, seeds=[3, 7])
    grown = until_decided(one, "x", 5)
    assert grown.ablate is not None
    assert grown.ablate.seed_values == (3, 7, 8, 9, 10)
    for most, words in ((None, "go together"), (2, "are 2 already")):
        with pytest.raises(UserError, match=words):
            until_decided(one, "x", most)


@pytest.mark.parametrize("by_command", [True, False])
def test_a_fraction_adds_no_seeds_to_single_settings(by_command: bool) -> None:
    """Neither by --until-decided nor by its file."""
    one = study("fractional", SEVEN)
    one = until_decided(one, "x", 9) if by_command else with_block(one, max_seeds=9)
    with pytest.raises(UserError, match=r"^x: ablate\.max_seeds: the effects of a fraction need every"):
        compile_study(one, "tiny", "x")


def test_seeds_that_a_command_adds_may_pass_those_that_open_claims_could() -> None:
    """Nine were the most; with twelve in the file all twelve count, in p too."""
    begun = until_decided(study("factorial", FLAGS, seeds=8), "x", 9)
    kept = keep_begun(study("factorial", FLAGS, seeds=12), begun, {1, 2})
    assert kept.ablate is not None
    assert kept.ablate.max_seeds == 12
    assert kept.ablate.seed_values == tuple(range(1, 13))
    with pytest.raises(UserError, match="has begun with seed 3 too; seeds may grow, not go"):
        keep_begun(study("factorial", FLAGS, seeds=2), begun, set())


def test_new_seeds_come_after_those_that_claims_were_looked_at_with() -> None:
    """Three grew to eight of twelve. p depends on the order, and seeds that nobody has used are free."""
    begun = until_decided(study("factorial", FLAGS, seeds=3), "x", 12)
    used = set(range(1, 9))
    for seeds in ([1, 2, 3, 20], [1, 2, 3, 5], [0, 1, 2, 3], [1, 2, 3, 4, 5, 6, 7, 20]):
        with pytest.raises(UserError, match=r"seeds: .* used seed \d, in whose place \d+ comes; p depends"):
            keep_begun(study("factorial", FLAGS, seeds=seeds), begun, used)
    for seeds, first in (([*range(1, 9), 20], 9), (5, 5), (3, 3)):
        kept = keep_begun(study("factorial", FLAGS, seeds=seeds), begun, used)
        assert kept.ablate is not None
        assert kept.ablate.seed_values[:8] == tuple(range(1, 9))
        assert len(kept.ablate.first_seeds) == first
    keep_begun(study("factorial", FLAGS, seeds=[1, 2, 3, 20]), begun, {1, 2, 3})
    fixed = study("factorial", FLAGS, seeds=[1, 2, 20])
    keep_begun(study("factorial", FLAGS, seeds=[1, 2, 3, 20]), fixed, {1, 2, 20})


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"seeds": 10**9}, "seeds: 1,000,000,000 are more than 1,000"),
        ({"seeds": 8, "max_seeds": 7}, "max_seeds: 7 are fewer than the 8 of seeds"),
        ({"seeds": 8, "max_seeds": 10**9}, "ablate.max_seeds: input should be less than or equal to 1000"),
    ],
)
def test_seeds_that_nobody_means_are_refused_before_they_are_counted(block: Tree, words: str) -> None:
    tree = outer.tree(Path("/world")) | {"ablate": {"design": "factorial", "factors": FLAGS} | block}
    with pytest.raises(UserError, match=words):
        study_file.build(tree, "tiny.yaml")
    with pytest.raises(UserError, match="--max-seeds 1001: more than 1,000"):
        until_decided(study("factorial", FLAGS), "x", 1001)


def test_tune_leaves_the_block_alone_and_wants_a_space() -> None:
    with pytest.raises(UserError, match=r"x\.yaml: search\.space: which keys are searched\?"):
        study_file.require_search(study("factorial", FLAGS), Path("x.yaml"))
    both = study_file.build(
        outer.tree(Path("/world")) | {"ablate": {"design": "factorial", "factors": FLAGS}}, "x"
    )
    assert study_file.require_search(both, Path("x")) == outer.study(Path("/world"))
