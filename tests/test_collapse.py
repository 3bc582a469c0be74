"""Which arms training did no good, and that no mean, test, table or figure swallows them."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean

import fake_run
import polars as pl
import pytest

from comkd_ray import components, cost_plots, findings, markdown, plots, report, run, search_plots, tables
from comkd_ray.collapse import AT_ONCE, COLLAPSED, FLAG, among, flag, flagged, tally
from comkd_ray.pairing import paired_by_seed
from comkd_ray.reference_rows import reference_rows
from comkd_ray.results import read_arms
from comkd_ray.variants import variants

HM = "test_harmonic_mean"
ROOT = Path(__file__).parent.parent
BROKEN = 13
"""Number of the arm that the fake run loses: PromptKD + IFAlign, seed 3."""


def harmonic(base: float, novel: float) -> float:
    return 2 * base * novel / (base + novel)


def seeds_with_a_lost_one(folder: Path, number: int = BROKEN) -> run.Run:
    """The five rows over three seeds; one arm of seed 3 ends at 40 %, where zero-shot has 72."""
    tree = fake_run.rows_tree()
    arms = fake_run.rows_arms(tree)
    row, epochs = arms[number]
    arms[number] = (row | {HM: 40.0}, epochs)
    return run.read(fake_run.write(folder, arms, tree, fake_run.provenance()))


@pytest.fixture
def broken(tmp_path: Path) -> run.Run:
    return seeds_with_a_lost_one(tmp_path)


def body(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page[page.index("<body>") :], flags=re.DOTALL)


# The rule ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "novel", "expected"),
    [
        (96.4, 96.5, ""),
        (84.4, 69.8, COLLAPSED),
        (96.6, 96.6, ""),
        (93.7, 84.9, COLLAPSED),
        (89.2, 81.3, COLLAPSED),
        (97.6, 93.2, COLLAPSED),
    ],
)
def test_published_seeds_that_failed_are_told_from_those_that_did_not(
    base: float, novel: float, expected: str
) -> None:
    """PAPER 4.46 and 4.47 against CLIP (95.40) and the tuned teacher (98.37) of 4.3."""
    assert flag(harmonic(base, novel), 95.40, 98.37, 12, 20) == expected


def test_collapsed_is_a_tenth_of_the_way_to_the_teacher_and_a_point_at_most() -> None:
    assert flag(70.5, 70.0, 75.0, 5, 9) == COLLAPSED
    assert flag(70.51, 70.0, 75.0, 5, 9) == ""
    assert flag(26.0, 25.0, 70.0, 5, 9) == COLLAPSED
    assert flag(26.01, 25.0, 70.0, 5, 9) == ""
    assert flag(12.0, 70.0, 80.0, 5, 9) == COLLAPSED


def test_a_teacher_that_is_no_better_or_unknown_adds_nothing() -> None:
    for teacher in (60.0, None):
        assert flag(70.0, 70.0, teacher, 5, 9) == COLLAPSED
        assert flag(70.1, 70.0, teacher, 5, 9) == ""


def test_peaked_at_once_takes_more_than_one_epoch() -> None:
    assert flag(79.0, 70.0, 80.0, 1, 9) == AT_ONCE
    assert flag(79.0, 70.0, 80.0, 1, 1) == ""
    assert flag(79.0, 70.0, 80.0, 2, 9) == ""
    assert flag(50.0, 70.0, 80.0, 1, 9) == COLLAPSED  # one flag an arm: the graver


def test_what_is_unknown_has_no_flag() -> None:
    assert flag(None, 70.0, 80.0, None, None) == ""
    assert flag(10.0, None, 80.0, 4, 9) == ""


def test_only_arms_that_enter_a_mean_are_flagged(tmp_path: Path) -> None:
    rows = [(row | {"best_epoch": 1}, epochs) for row, epochs in fake_run.searched_arms()]
    found = flagged(read_arms(fake_run.write(tmp_path, rows)))
    assert set(found.filter(pl.col("status") == "complete")[FLAG]) == {AT_ONCE}
    assert set(found.filter(pl.col("status") != "complete")[FLAG]) == {""}


def test_a_protocol_without_halves_is_judged_by_its_own_score(tmp_path: Path) -> None:
    tree = fake_run.rows_tree(("all_classes", "strict"))
    arms = read_arms(fake_run.write(tmp_path, fake_run.rows_arms(tree)))
    low = arms.with_columns(
        test_accuracy=pl.when(pl.col("number") == 0).then(71.0).otherwise("test_accuracy")
    )
    assert low["zero_shot_test_accuracy"][0] == pytest.approx(harmonic(74, 70))
    assert among(low).flags == (COLLAPSED,)


def test_tally_counts_the_graver_first() -> None:
    assert tally([AT_ONCE, COLLAPSED, AT_ONCE]) == "1 collapsed, 2 peaked at once"
    assert tally([]) == ""


# Means ------------------------------------------------------------------------------------------


def test_a_mean_holds_the_arm_says_so_and_stands_beside_the_mean_of_the_others(broken: run.Run) -> None:
    row = next(row for row in reference_rows(broken.arms, broken.study) if row.flagged.flags)
    mine = broken.arms.filter(pl.col("student.prompt_length") == 4, pl.col("student.ifalign"))
    values = mine.filter(~pl.col("student.edu_attention"))[HM].to_list()
    assert (row.name, row.n) == ("PromptKD + IFAlign", 3)
    assert row.headline is not None
    assert row.headline.mean == pytest.approx(mean(values))
    assert row.flagged.flags == (COLLAPSED,)
    assert row.flagged.others is not None
    assert row.flagged.others.mean == pytest.approx(mean(value for value in values if value != 40.0))
    shown = tables.reference_table(reference_rows(broken.arms, broken.study), broken.scores)
    line = next(cells for cells in shown.rows if cells[0] == row.name)
    assert line[1] == "3 (1 collapsed)"
    assert line[-1].endswith("(n = 2)")
    assert shown.head[-1] == "harmonic mean without flagged"
    assert {cells[-1] for cells in shown.rows if cells[0] != row.name} == {""}


def test_no_column_where_no_arm_is_flagged(tmp_path: Path) -> None:
    tree = fake_run.rows_tree()
    whole = run.read(fake_run.write(tmp_path, fake_run.rows_arms(tree), tree))
    shown = tables.reference_table(reference_rows(whole.arms, whole.study), whole.scores)
    assert shown.head == ["test (%)", "n", "base", "novel", "harmonic mean"]
    assert all(len(row) == 5 for row in shown.rows)
    assert not re.search("flagged|collapsed|peaked", markdown.tables(whole))
    assert COLLAPSED not in body(report.page(whole))


def test_a_method_that_only_collapsed_has_no_mean_without(tmp_path: Path) -> None:
    tree = fake_run.rows_tree()
    arms = fake_run.rows_arms(tree, seeds=1)
    arms[0] = (arms[0][0] | {HM: 3.0}, arms[0][1])
    lone = run.read(fake_run.write(tmp_path, arms, tree))
    shown = tables.reference_table(reference_rows(lone.arms, lone.study), lone.scores)
    assert [cells[-1] for cells in shown.rows if cells[0] == "projector only"] == ["\u2013 (n = 0)"]


# Pairs, variants, factorials ----------------------------------------------------------------------


def test_a_pair_with_a_collapsed_half_is_tested_and_told(broken: run.Run) -> None:
    found = {pair.name: pair for pair in paired_by_seed(broken.arms, HM)}
    pair = found["PromptKD + IFAlign"]
    assert (pair.seeds, pair.flags, pair.told) == ((1, 2, 3), ((3, COLLAPSED),), "1 collapsed (seed 3)")
    assert min(pair.differences) < -30
    assert [other.flags for name, other in found.items() if name != pair.name] == [(), (), ()]
    shown = tables.paired_table(list(found.values()), broken.scores)
    cells = {row[0]: dict(zip(shown.head, row, strict=True)) for row in shown.rows}
    assert cells[pair.name]["verdict"] == "not decidable with n = 3; with 1 collapsed (seed 3)"
    lines = findings.sentences(findings.findings(broken.arms, True))
    assert any("paired by seed (n = 3, with 1 collapsed (seed 3))" in line for line in lines)


def test_a_collapsed_baseline_is_told_of_every_pair(tmp_path: Path) -> None:
    lost = seeds_with_a_lost_one(tmp_path, 11)  # PromptKD
    assert {pair.told for pair in paired_by_seed(lost.arms, HM)} == {"1 collapsed (seed 3)"}


def test_variants_count_their_flagged_arms(tmp_path: Path) -> None:
    tree, cells = fake_run.enumerated("stability", 3)
    arms = [fake_run.arm(n, cell, tree=tree) for n, cell in enumerate(cells)]
    arms[4] = (arms[4][0] | {"best_epoch": 1}, arms[4][1])
    stability = run.read(fake_run.write(tmp_path, arms, tree))
    found = variants(stability.arms, True)
    assert found is not None
    shown = tables.variants_table(found, stability.scores)
    assert [row[1] for row in shown.rows] == ["3", "3 (1 peaked at once)", "3", "3"]
    assert shown.head[-1] == "harmonic mean without flagged"
    assert (
        shown.rows[1][shown.head.index("verdict")]
        == "not decidable with n = 3; with 1 peaked at once (seed 2)"
    )


def test_a_factorial_says_that_it_counts_them(broken: run.Run) -> None:
    found = components.components(broken.arms, broken.study, True)
    assert found is not None
    assert found.flags == (COLLAPSED,)
    assert "Of its arms 1 collapsed; all are counted." in tables.components_notes(found)[0]


# Words, pages, figures ----------------------------------------------------------------------------


def test_findings_name_them_and_say_what_becomes_of_them(broken: run.Run) -> None:
    lines = findings.sentences(findings.findings(broken.arms, True))
    identity = fake_run.identity(BROKEN)
    assert lines[2] == (
        f"1 of 15 full-budget arms collapsed: {identity} (number {BROKEN}). It is in every mean and test; "
        "tables say where, and what each mean is without it."
    )


def test_the_best_arm_is_not_spared(tmp_path: Path) -> None:
    rows = [(row | {"best_epoch": 1}, epochs) for row, epochs in fake_run.searched_arms()]
    found = findings.findings(read_arms(fake_run.write(tmp_path, rows)), False)
    sentence = findings.sentences(found)[2]
    assert sentence.startswith("16 of 16 full-budget arms peaked at once: ")
    assert " and 10 more. The best arm itself peaked at once." in sentence


def test_the_page_is_red_and_the_markdown_says_the_same(broken: run.Run) -> None:
    words = body(report.page(broken))
    assert "Arms that collapsed or peaked at once" in words
    assert '3 <span class="bad">(1 collapsed)</span>' in words
    assert 'not decidable with n = 3 <span class="bad">with 1 collapsed (seed 3)</span>' in words
    assert words.count("That is a choice by outcome") == 1
    text = markdown.tables(broken)
    assert "**Of 15 full-budget arms 1 collapsed.**" in text
    assert "| PromptKD + IFAlign | 3 (1 collapsed) |" in text
    assert "; with 1 collapsed (seed 3) |" in text


def test_figures_ring_them_in_red(broken: run.Run) -> None:
    names = {
        "history": search_plots.history_plot(search_plots.history_info(broken.arms, {})),
        "modules": plots.modules_plot(plots.modules_info(broken.arms)),
        "size": cost_plots.size_plot(cost_plots.size_info(broken.arms)),
        "curves": plots.curves_plot(plots.curves_info(broken.arms, broken.epochs)),
    }
    for name, figure in names.items():
        found = [trace for trace in figure.data if trace.name == COLLAPSED]
        assert len(found) == (2 if name in ("size", "curves") else 1), name  # two panels
        assert sum(bool(trace.showlegend is not False) for trace in found) == 1, name
        color = found[0].line.color if name == "curves" else found[0].marker.color
        assert color == "var(--red)", name
    ring = next(trace for trace in names["modules"].data if trace.name == COLLAPSED)
    assert list(ring.y) == [40.0]
    place = next(trace for trace in names["modules"].data if 40.0 in (trace.y or ()) and trace is not ring)
    assert list(ring.x) == [place.x[list(place.y).index(40.0)]]
    assert "1 collapsed" in names["modules"].layout.xaxis.ticktext[1]


def test_parallel_lines_of_flagged_arms_are_red(broken: run.Run) -> None:
    info = search_plots.parallel_info(broken.arms, {})
    lines = [trace for trace in search_plots.parallel_plot(info).data if trace.mode == "lines"]
    assert [line.line.dash == "dash" for line in lines] == [number == BROKEN for number in range(15)]


def test_the_committed_sample_has_no_flag() -> None:
    sample = run.read(ROOT / "reports" / "quickstart")
    assert among(sample.arms).flags == ()
