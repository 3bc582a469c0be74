"""Which studies are a full factorial of the modules, and that its numbers are those of `factorial`."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import fake_run
import polars as pl
import pytest

from comkd_ray import arms as arms_room
from comkd_ray import factorial, markdown, report, run, study_file, tables
from comkd_ray.components import Components, components
from comkd_ray.run import Run

HM = "test_harmonic_mean"
MODULES = {key: {"choice": [False, True]} for key in (arms_room.IFALIGN, arms_room.EDU_ATTENTION)}
SEEDS = {"train.seed": {"choice": [1, 2, 3]}}


def grid(folder: Path, space: fake_run.Row) -> Run:
    """A finished run of a grid with the paper's towers, PromptKD where nothing else is said."""
    tree = fake_run.study_tree(space, "grid", **fake_run.PAIR)
    cells = study_file.cells(study_file.build(tree, "grid"))
    return run.read(
        fake_run.write(folder, [fake_run.arm(n, cell, tree=tree) for n, cell in enumerate(cells)], tree)
    )


def found_in(a_run: Run, arms: pl.DataFrame | None = None) -> Components | None:
    return components(a_run.arms if arms is None else arms, a_run.study, a_run.enumerated)


def sure(found: Components | None) -> Components:
    assert found is not None
    return found


def test_the_2x2_over_seeds_is_the_smallest(tmp_path: Path) -> None:
    """The main effect of a seed is half the sum of its four signed rows; so is the Shapley value."""
    two = grid(tmp_path, {**MODULES, **SEEDS})
    found = sure(found_in(two))
    assert found.grid.factors == (arms_room.IFALIGN, arms_room.EDU_ATTENTION)
    sign = pl.when(pl.col(arms_room.IFALIGN)).then(0.5).otherwise(-0.5)
    by_seed = two.arms.group_by("seed").agg(effect=(sign * pl.col(HM)).sum())["effect"]
    assert found.effects[0].estimate.mean == pytest.approx(mean(by_seed))
    assert found.shares[0].estimate == pytest.approx(found.effects[0].estimate)
    assert [len(effect.factors) for effect in found.effects] == [1, 1, 2]


def test_shares_add_up_to_all_on_minus_all_off(tmp_path: Path) -> None:
    """Prompts are a component where they are crossed with the modules; then shares are no main effects."""
    space = {"student.prompt_length": {"choice": [0, 4]}, **MODULES, **SEEDS}
    three = grid(tmp_path, space)
    found = sure(found_in(three))
    assert [share.factor for share in found.shares] == [*MODULES, arms_room.PROMPTS]
    ends = [mean(arms_room.of_method(three.arms, (on, on, on))[HM].to_list()) for on in (True, False)]
    assert found.total.mean == pytest.approx(ends[0] - ends[1])
    assert sum(share.estimate.mean for share in found.shares) == pytest.approx(found.total.mean)
    assert found.shares[0].estimate.mean != pytest.approx(found.effects[0].estimate.mean)


def test_other_keys_that_are_crossed_are_factors_and_no_components(tmp_path: Path) -> None:
    """2 x 2 x 3: two levels of the weight stand against its first, and shares average over it."""
    mixed = grid(tmp_path, {**MODULES, "loss.kd_weight": {"choice": [1.0, 2.0, 4.0]}, **SEEDS})
    found = sure(found_in(mixed))
    assert found.grid.scores.shape == (3, 2, 2, 3)
    assert len(found.effects) == 2 + 2 + 1 + 2 * 2
    assert [share.factor for share in found.shares] == list(MODULES)
    assert found.shares[1].estimate == pytest.approx(found.effects[1].estimate)
    names = [row[0] for row in tables.effects_table(found, mixed.scores).rows]
    assert names[2:5] == ["loss.kd_weight: 2", "loss.kd_weight: 4", "IFAlign \u00d7 EduAttention"]
    assert "compared with loss.kd_weight 1." in tables.components_notes(found)[0]


def test_projector_only_beside_the_2x2_is_left_aside(tmp_path: Path) -> None:
    eight = grid(tmp_path, fake_run.ROWS)
    found = sure(found_in(eight))
    expected = factorial.grid_of(eight.arms.filter(pl.col(arms_room.PROMPTS) > 0), list(MODULES), HM)
    assert (found.grid.scores == expected.scores).all()


def test_where_a_key_is_searched_under_one_module_only_arms_at_own_values_count(tmp_path: Path) -> None:
    scale = {"choice": [1.0, 4.0], "when": {"student.edu_attention": True}}
    found = sure(found_in(grid(tmp_path, {**MODULES, "student.attention_scale": scale, **SEEDS})))
    assert found.grid.factors == tuple(MODULES)
    assert found.grid.seeds == (1, 2, 3)


def test_a_seed_with_a_hole_is_left_out_and_named(tmp_path: Path) -> None:
    two = grid(tmp_path, {**MODULES, **SEEDS})
    first = two.arms.sort("number")["arm"][0]
    status = pl.when(pl.col("arm") == first).then(pl.lit("failed")).otherwise("status")
    found = sure(found_in(two, two.arms.with_columns(status=status)))
    assert (found.grid.seeds, found.grid.dropped) == ((2, 3), (1,))
    assert "Without seed 1, which lacks a cell." in tables.components_notes(found)[0]


@pytest.mark.parametrize("space", [
    {**MODULES, "train.seed": {"choice": [1]}},
    {arms_room.IFALIGN: {"choice": [False, True]}, **SEEDS},
    MODULES,
])  # fmt: skip
def test_what_is_no_factorial_over_seeds(tmp_path: Path, space: fake_run.Row) -> None:
    assert found_in(grid(tmp_path, space)) is None


def test_a_search_is_no_factorial_whatever_cells_it_fills(tmp_path: Path) -> None:
    two = grid(tmp_path, {**MODULES, **SEEDS})
    assert components(two.arms, two.study, False) is None


def test_a_long_table_keeps_the_modules(tmp_path: Path) -> None:
    many = grid(tmp_path, {**MODULES, "loss.kd_weight": {"float": [1.0, 4.0], "step": 0.5}, **SEEDS})
    found = sure(found_in(many))
    assert len(found.effects) == 2 + 6 + 1 + 2 * 6
    assert len(tables.effects_table(found, many.scores).rows) == 3
    assert "18 effects of other values are left out." in tables.components_notes(found)[0]


def test_html_and_markdown_have_the_same_rows(tmp_path: Path) -> None:
    two = grid(tmp_path, {**MODULES, **SEEDS})
    found = sure(found_in(two))
    page = report.build(tmp_path).read_text(encoding="utf-8")
    modules = page.split('<section id="modules">')[1].split("</section>")[0]
    assert "What each component is worth" in modules
    lines = markdown.tables(two).splitlines()
    for shown in (tables.effects_table(found, two.scores), tables.shapley_table(found, two.scores)):
        assert all(f"| {' | '.join(row)} |" in lines for row in (shown.head, *shown.rows))
        assert all(f">{cell}<" in modules for row in shown.rows for cell in row)
