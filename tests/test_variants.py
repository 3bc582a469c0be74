"""Variants of a grid or a list: one row a setting, its name, its spread, its difference to the first."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean, median, stdev

import fake_run
import polars as pl
import pytest

from comkd_ray import markdown, pairing, report, run, stats, study_file, tables
from comkd_ray.reference_rows import reference_rows
from comkd_ray.run import Run
from comkd_ray.variants import Variants, variants

HM = "test_harmonic_mean"
READINGS = [
    "ComKD-CLIP",
    "align_axis: width",
    "align_reduction: mean",
    "align_features: raw",
    "attention_layers: shared",
    "attention_scale: 0.01",
    "attention_scale: 0.1",
    "attention_scale: sqrt_width",
    "attention_keys: evaluated",
    "renormalize: false",
    "alpha: vector",
    "PromptKD",
]


def shipped(folder: Path, name: str, seeds: int | None = None) -> Run:
    """A finished run of a study file that ships."""
    tree, cells = fake_run.enumerated(name, seeds)
    arms = [fake_run.arm(n, cell, tree=tree) for n, cell in enumerate(cells)]
    return run.read(fake_run.write(folder, arms, tree, fake_run.provenance()))


def grid(folder: Path, space: fake_run.Row) -> Run:
    """A finished run of a grid with the paper's towers, PromptKD where nothing else is said."""
    tree = fake_run.study_tree(space, "grid", **fake_run.PAIR)
    cells = study_file.cells(study_file.build(tree, "grid"))
    arms = [fake_run.arm(n, cell, tree=tree) for n, cell in enumerate(cells)]
    return run.read(fake_run.write(folder, arms, tree))


def found_in(a_run: Run) -> Variants:
    found = variants(a_run.arms, a_run.enumerated)
    assert found is not None
    return found


def names(a_run: Run) -> list[str]:
    return [row.name for row in found_in(a_run).rows]


def section(folder: Path, ident: str) -> str:
    """A section of the page, without scripts."""
    page = report.build(folder).read_text(encoding="utf-8")
    words = re.sub(r"<script.*?</script>", "", page[page.index("<body>") :], flags=re.DOTALL)
    return words.split(f'<section id="{ident}">')[1].split("</section>")[0]


def test_readings_are_named_by_what_differs_from_the_first(tmp_path: Path) -> None:
    readings = shipped(tmp_path, "readings")
    found = found_in(readings)
    assert names(readings) == READINGS
    assert [row.n for row in found.rows] == [3] * 12
    assert ("student.align_axis", "batch") in found.first
    assert "train.seed" not in dict(found.first)


def test_a_variant_is_its_own_arms_and_their_spread(tmp_path: Path) -> None:
    readings = shipped(tmp_path, "readings")
    raw = found_in(readings).rows[3]
    mine = readings.arms.filter(pl.col("student.align_features") == "raw")
    values = mine[HM].to_list()
    headline = raw.estimates[-1]
    assert headline is not None
    assert (headline.mean, headline.sd) == pytest.approx((mean(values), stdev(values)))
    assert (raw.lowest, raw.highest) == (min(values), max(values))
    assert raw.best_epoch == median(mine["best_epoch"].to_list())
    base = raw.estimates[0]
    assert base is not None
    assert base.mean == pytest.approx(mean(mine["test_base_accuracy"].to_list()))


def test_differences_to_the_first_are_paired_by_seed(tmp_path: Path) -> None:
    """The difference of a seed is that of its two rows; Holm counts the eleven others."""
    readings = shipped(tmp_path, "readings")
    first, *others = found_in(readings).rows
    own = readings.arms.sort("number").head(3)
    raw = readings.arms.filter(pl.col("student.align_features") == "raw").sort("seed")
    expected = (raw[HM] - own.sort("seed")[HM]).to_list()
    pair = others[2].paired
    assert first.paired is None
    assert pair is not None
    assert (pair.name, pair.baseline, pair.seeds) == ("align_features: raw", "ComKD-CLIP", (1, 2, 3))
    assert pair.differences == pytest.approx(expected)
    every = [row.paired for row in others if row.paired is not None]
    assert [pair.found.p_holm for pair in every] == stats.holm(
        [stats.sign_flip_p(p.differences) for p in every]
    )
    assert len(every) == 11
    shown = tables.variants_table(found_in(readings), readings.scores)
    verdicts = {row[shown.head.index("verdict")] for row in shown.rows[1:]}
    assert verdicts == {"not decidable with n = 3"}
    assert shown.head.index("verdict") < shown.head.index("sign-flip p")  # what a narrow window shows first


def test_a_list_is_paired_at_equal_other_values(tmp_path: Path) -> None:
    """PromptKD stands in the list once, so only the default reading of ComKD-CLIP has a match."""
    readings = shipped(tmp_path, "readings")
    assert pairing.is_seeded_grid(readings.arms, readings.enumerated)
    (pair,) = pairing.paired_by_seed(readings.arms, HM)
    own = readings.arms.sort("number").head(3)[HM]
    promptkd = readings.arms.sort("number").tail(3)[HM]
    assert pair.name == "ComKD-CLIP"
    assert pair.differences == pytest.approx((own - promptkd).to_list())


def test_readings_are_not_pooled(tmp_path: Path) -> None:
    """Eight rows and 2x2 hold the default reading alone, and the page says so."""
    readings = shipped(tmp_path, "readings")
    rows = {row.name: row.n for row in reference_rows(readings.arms, readings.study)}
    assert (rows["ComKD-CLIP"], rows["PromptKD"]) == (3, 3)
    modules = section(tmp_path, "modules")
    cells = re.findall(r'<td class="word">(.*?)</td><td class="number">(\d+)</td>', modules)
    assert cells[:4] == [
        ("PromptKD", "3"),
        ("PromptKD + IFAlign", "0"),
        ("PromptKD + EduAttention", "0"),
        ("ComKD-CLIP", "3"),
    ]
    assert "The cells hold only arms at the study file&#x27;s own values" in modules
    assert "chosen by the search" not in modules


def test_stability_keeps_precisions_and_weights_apart(tmp_path: Path) -> None:
    stability = shipped(tmp_path, "stability")
    found = found_in(stability)
    assert names(stability) == [
        "PromptKD",
        "kd_weight: 10",
        "precision: float16",
        "kd_weight: 10, precision: float16",
    ]
    assert [row.n for row in found.rows] == [6] * 4
    assert found.first == [("loss.kd_weight", "1"), ("train.precision", "mixed")]
    assert [row.paired.found.n for row in found.rows[1:] if row.paired is not None] == [6] * 3
    rows = {row.name: row.n for row in reference_rows(stability.arms, stability.study)}
    assert rows["PromptKD"] == 6
    modules = section(tmp_path, "modules")
    assert "All full-budget arms are PromptKD" in modules
    assert "<table>" not in modules


def test_html_and_markdown_have_the_same_rows(tmp_path: Path) -> None:
    stability = shipped(tmp_path, "stability")
    shown = tables.variants_table(found_in(stability), stability.scores)
    lines = markdown.tables(stability).splitlines()
    assert "- protocol: base to novel, selection strict, inductive" in lines
    assert all(f"| {' | '.join(row)} |" in lines for row in (shown.head, *shown.rows))
    assert not any(line.startswith("| minus") for line in lines)  # no pair of methods, no table of them
    assert sum("exact two-sided sign-flip test" in line for line in lines) == 1
    page = section(tmp_path, "variants")
    assert all(f">{cell}<" in page for row in shown.rows for cell in row)
    assert all(len(row) == len(shown.head) for row in shown.rows)


@pytest.mark.parametrize("space", [fake_run.GRID, fake_run.ROWS])
def test_methods_and_seeds_alone_are_not_said_twice(tmp_path: Path, space: fake_run.Row) -> None:
    methods = grid(tmp_path, space)
    assert variants(methods.arms, True) is None
    assert "| variant" not in markdown.tables(methods)
    assert 'id="variants"' not in report.build(tmp_path).read_text(encoding="utf-8")


def test_a_search_has_no_variants(tmp_path: Path) -> None:
    folder = fake_run.write(tmp_path, fake_run.searched_arms(), fake_run.study_tree(fake_run.SPACE))
    searched = run.read(folder)
    assert variants(searched.arms, searched.enumerated) is None
    assert variants(searched.arms, None) is None


def test_methods_are_named_and_other_values_added(tmp_path: Path) -> None:
    """Two lengths of prompts are told apart; the length of none goes without saying."""
    space = {
        "student.prompt_length": {"choice": [2, 0, 4]},
        "loss.kd_weight": {"choice": [1.0, 4.0]},
    }
    assert names(grid(tmp_path, space)) == [
        "PromptKD",
        "kd_weight: 4",
        "projector only",
        "projector only, kd_weight: 4",
        "prompt_length: 4",
        "kd_weight: 4, prompt_length: 4",
    ]


def test_a_value_without_effect_makes_no_variant(tmp_path: Path) -> None:
    """Seed 3 was trained under another C, and without EduAttention that is the same setting."""
    space = {
        "student.edu_attention": {"choice": [False, True]},
        "student.attention_scale": {"choice": [0.1, 1.0]},
        "train.seed": {"choice": [1, 2, 3]},
    }
    whole = grid(tmp_path, space)
    first = pl.when(pl.col("seed") < 3).then(0.1).otherwise(1.0)
    kept = whole.arms.filter(pl.col("student.edu_attention") | (pl.col("student.attention_scale") == first))
    found = variants(kept, True)
    assert found is not None
    assert [(row.name, row.n) for row in found.rows] == [
        ("PromptKD", 3),
        ("PromptKD + EduAttention", 3),
        ("PromptKD + EduAttention, attention_scale: 1", 3),
    ]


def test_keys_of_one_last_name_keep_their_section(tmp_path: Path) -> None:
    weights = grid(tmp_path, {"loss.kd_weight": {"choice": [1.0, 4.0]}})
    twin = weights.arms.with_columns(pl.col("loss.kd_weight").alias("train.kd_weight"))
    keys = pl.lit(["loss.kd_weight", "train.kd_weight"])
    found = variants(twin.with_columns(searched=keys), True)
    assert found is not None
    assert found.rows[1].name == "loss.kd_weight: 4, train.kd_weight: 4"


def test_a_variant_without_arms_is_a_row_of_dashes(tmp_path: Path) -> None:
    """And a lost seed shows in the number of pairs."""
    stability = shipped(tmp_path, "stability", seeds=3)
    numbers = pl.col("number")  # the first variant has 0 to 2, the second 3 to 5
    lost = stability.arms.with_columns(
        status=pl.when(numbers.is_in([0, 3, 4, 5])).then(pl.lit("failed")).otherwise("status")
    )
    found = variants(lost, True)
    assert found is not None
    assert [row.n for row in found.rows] == [2, 0, 3, 3]
    shown = tables.variants_table(found, stability.scores)
    assert set(shown.rows[1][2:]) == {"\u2013"}
    assert "(n = 2)" in shown.rows[2][5]


def test_of_many_variants_the_ends_are_shown(tmp_path: Path) -> None:
    space = {"loss.temperature": {"float": [0.5, 8.0], "step": 0.1}}
    many = grid(tmp_path, space)
    found = found_in(many)
    assert len(found.rows) == 76
    shown = tables.variants_table(found, many.scores)
    order = [found.rows[0].name, *(row.name for row in found.ranked if row is not found.rows[0])]
    assert [row[0] for row in shown.rows] == [*order[:21], *order[-20:]]
    assert "35 more variants left out" in tables.variants_notes(found, many.scores)[-1]
