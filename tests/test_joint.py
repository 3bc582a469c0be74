"""Several runs as one: what is joined, what is refused, and what its ranks, tests and diagram say."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean

import fake_run
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from comkd_ray import across_datasets, joint_report
from comkd_ray.cli import main
from comkd_ray.errors import UserError
from comkd_ray.joint import Joint, join_runs
from comkd_ray.markdown import tables
from comkd_ray.markup import text
from comkd_ray.planner import fewest_seeds
from comkd_ray.rank_plot import rank_info, rank_plot
from comkd_ray.report_facts import DEMO_NOTICE
from comkd_ray.run import read

HM = "test_harmonic_mean"
FIVE = ["projector only", "PromptKD", "PromptKD + EduAttention", "PromptKD + IFAlign", "ComKD-CLIP"]
DATASETS = (
    "caltech101",
    "dtd",
    "eurosat",
    "food101",
    "oxford_pets",
    "stanford_cars",
    "sun397",
    "ucf101",
    "fgvc_aircraft",
)


def one(
    folder: Path,
    place: int = 0,
    seeds: int = 3,
    kind: tuple[str, str] = fake_run.KINDS[0],
    **sections: object,
) -> Path:
    """Five methods over seeds on one data set; a method is worth a point more than the one before it."""
    name = DATASETS[place]
    tree = {
        **fake_run.rows_tree(kind, **{"data": {"dataset": name, "root": f"/d/{name}"}, **sections}),
        "study": name,
    }
    arms = []
    for row, epochs in fake_run.rows_arms(tree, seeds):
        worth = 1.0 * (row["number"] % 5) + 0.01 * ((7 * place + row["number"]) % 11)
        known = [key for key in row if key.startswith("test_") and row[key] is not None]
        arms.append((row | dict.fromkeys(known, 82.0 + worth - place), epochs))
    facts = fake_run.provenance(hashes={"data": f"hash of {name}"})
    return fake_run.write(folder / name, arms, tree, facts)


def joined(folders: list[Path]) -> Joint:
    return join_runs([read(folder) for folder in folders])


def body(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page[page.index("<body>") :], flags=re.DOTALL)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("three")
    return [one(folder, place) for place in range(3)]


# What is joined -----------------------------------------------------------------------------------


def test_a_data_set_counts_once_with_its_seeds_averaged(three: list[Path]) -> None:
    found = joined(three)
    assert list(found.runs) == ["caltech101", "dtd", "eurosat"]
    arms = read(three[1]).arms
    mine = arms.filter(
        pl.col("student.prompt_length") == 4, pl.col("student.ifalign"), pl.col("student.edu_attention")
    )
    cell = found.cells["dtd", "ComKD-CLIP"]
    assert (cell.estimate.n, cell.estimate.mean) == (3, pytest.approx(mean(mine[HM])))
    assert found.ranks.datasets == 3
    assert found.ranks.methods == tuple(reversed(FIVE))
    assert found.ranks.average_ranks == (1.0, 2.0, 3.0, 4.0, 5.0)


def test_ranks_are_those_of_the_table_of_means(three: list[Path]) -> None:
    found = joined(three)
    names, methods = list(found.runs), tuple(sorted(FIVE))
    values = np.array([[found.cells[name, method].estimate.mean for method in methods] for name in names])
    expected = across_datasets.rank(across_datasets.Scores(tuple(names), methods, values))
    assert found.ranks._replace(pairs=()) == expected._replace(pairs=())
    for ours, theirs in zip(found.ranks.pairs, expected.pairs, strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2:] == pytest.approx(theirs[2:])


def test_only_what_all_runs_have_is_ranked(tmp_path: Path) -> None:
    folders = [one(tmp_path, place) for place in range(2)]
    part = folders[1] / "results" / "arms" / "part-0.parquet"
    rows = pl.read_parquet(part)
    lost = pl.when(pl.col("number") % 5 == 3).then(pl.lit("failed")).otherwise("status")
    rows.with_columns(status=lost).write_parquet(part)
    found = joined(folders)
    assert set(found.ranks.methods) == set(FIVE) - {"PromptKD + IFAlign"}
    assert found.left_out == ["PromptKD + IFAlign (not in dtd)"]


def test_values_that_are_not_the_same_everywhere_are_told(tmp_path: Path) -> None:
    folders = [one(tmp_path, 0), one(tmp_path, 1, loss={"kd_weight": 10.0})]
    assert joined(folders).differing == ["loss.kd_weight: caltech101 1, dtd 10"]
    assert "Not the same in all runs: loss.kd_weight: caltech101 1, dtd 10." in joint_report.markdown(folders)


def test_a_search_gives_the_methods_at_its_own_values(tmp_path: Path) -> None:
    """Arms that the sampler set otherwise are no method's."""
    folders = []
    for place in range(2):
        tree = fake_run.study_tree(
            {
                "loss.temperature": {"float": [0.5, 8.0]},
                **{k: v for k, v in fake_run.GRID.items() if k != "train.seed"},
            },
            data={"dataset": DATASETS[place], "root": "/d"},
        )
        cells = [
            {"student.ifalign": a, "student.edu_attention": b} for a in (True, False) for b in (True, False)
        ]
        points = [*cells, *({**cell, "loss.temperature": 7.0} for cell in cells)]
        arms = [fake_run.arm(n, point, tree=tree) for n, point in enumerate(points)]
        facts = fake_run.provenance(hashes={"data": str(place)})
        folders.append(fake_run.write(tmp_path / str(place), arms, tree, facts))
    found = joined(folders)
    assert set(found.ranks.methods) == set(FIVE[1:])
    assert {cell.estimate.n for cell in found.cells.values()} == {1}


def test_folders_are_called_by_their_study(tmp_path: Path) -> None:
    folders = []
    for place in range(2):
        data = {"dataset": "folder", "root": f"/d/{place}"}
        folders.append(one(tmp_path, place, data=data))
    assert list(joined(folders).runs) == ["caltech101", "dtd"]
    for folder in folders:  # two studies of one name
        path = folder / "study.yaml"
        path.write_text(re.sub("study: .*", "study: mine", path.read_text(), count=1))
    assert list(joined(folders).runs) == ["mine (1)", "mine (2)"]


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"kind": ("all_classes", "strict")},
            "caltech101 has protocol base_to_novel and dtd has all_classes",
        ),
        ({"kind": ("base_to_novel", "promptkd")}, "has selection strict and dtd has promptkd"),
        ({"teacher": {"model": "ViT-H-14"}}, "has teacher.model ViT-L-14 and dtd has ViT-H-14"),
        (
            {"student": {"model": "ViT-B-16", "pretrained": "laion400m_e32"}},
            "has student.pretrained openai and dtd has laion400m_e32",
        ),
    ],
)
def test_other_protocols_and_towers_are_refused(tmp_path: Path, changes: fake_run.Row, words: str) -> None:
    folders = [one(tmp_path, 0), one(tmp_path, 1, **changes)]
    done = CliRunner().invoke(main, ["report", *map(str, folders)])
    assert done.exit_code == 2
    assert words in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "joint.html").exists()


def test_one_data_set_twice_is_refused(tmp_path: Path) -> None:
    first, second = one(tmp_path / "a", 0), one(tmp_path / "b", 0)
    with pytest.raises(UserError, match="are on the same data set, caltech101: a data set counts once"):
        joined([first, second])
    elsewhere = one(tmp_path / "c", 0, data={"dataset": "caltech101", "root": "/elsewhere"})
    (elsewhere / "provenance.json").unlink()
    copied = one(tmp_path / "d", 0, data={"dataset": "folder", "root": "/copy"})  # of the same hash
    for other in (elsewhere, copied):
        with pytest.raises(UserError, match="on the same data set"):
            joined([first, other])


def test_no_two_common_methods_are_refused(tmp_path: Path, three: list[Path]) -> None:
    tree = fake_run.rows_tree(data={"dataset": "dtd", "root": "/d"})
    lone = fake_run.write(
        tmp_path, fake_run.rows_arms(tree)[:1], tree, fake_run.provenance(hashes={"data": "other"})
    )
    with pytest.raises(UserError, match=r"^1 method trained in every run, and a ranking takes two: "):
        joined([three[0], lone])


def test_a_run_without_its_study_file_is_refused(tmp_path: Path, three: list[Path]) -> None:
    bare = one(tmp_path, 3)
    (bare / "study.yaml").unlink()
    with pytest.raises(UserError, match="its towers are unknown"):
        joined([three[0], bare])


# What is said -------------------------------------------------------------------------------------


def test_three_data_sets_can_tell_no_pair_apart_and_say_so(three: list[Path]) -> None:
    lines = joint_report.sentences(joined(three))
    assert lines[0] == (
        "ComKD-CLIP has the best average rank, 1.00 of 5, over 3 data sets; 0 of 10 pairs of methods differ."
    )
    assert "chi-squared 12.00, p = 0.0174: the methods differ" in lines[1]
    assert lines[2] == (
        "With 3 data sets the smallest p of a pair is 0.25 before Holm and 1 after it, over 10 pairs: no "
        f"pair can be told apart here, whatever the scores; {fewest_seeds(10)} data sets could."
    )


def test_nine_data_sets_tell_all_pairs_apart(tmp_path: Path) -> None:
    found = joined([one(tmp_path, place, seeds=1) for place in range(9)])
    assert found.ranks.cliques == ()
    assert {row[-1] for row in joint_report.pair_table(found).rows} == {"they differ"}
    assert joint_report.sentences(found)[2].endswith("over 10 pairs.")


def test_tables_hold_means_spreads_ranks_and_references(three: list[Path]) -> None:
    found = joined(three)
    shown = joint_report.score_table(found)
    assert shown.head == ["test harmonic mean (%)", "caltech101", "dtd", "eurosat", "mean", "average rank"]
    assert [row[0] for row in shown.rows] == [
        *reversed(FIVE),
        "student zero-shot",
        "teacher zero-shot",
        "tuned teacher",
    ]
    assert [row[-1] for row in shown.rows] == ["1.00", "2.00", "3.00", "4.00", "5.00", *3 * ["\u2013"]]
    best = found.cells["caltech101", "ComKD-CLIP"].estimate
    assert shown.rows[0][1] == f"{best.mean:.2f} \u00b1 {best.sd:.2f}"
    pairs = joint_report.pair_table(found)
    assert len(pairs.rows) == 10
    assert pairs.rows[0][0] == "ComKD-CLIP over PromptKD + IFAlign"
    assert {(row[2], row[4], row[-1]) for row in pairs.rows} == {
        ("3 of 3", "0.25", "not decidable with n = 3")
    }


def test_collapsed_arms_and_other_ns_are_told_in_their_cell(tmp_path: Path) -> None:
    folders = [one(tmp_path, place) for place in range(2)]
    part = folders[1] / "results" / "arms" / "part-0.parquet"
    rows = pl.read_parquet(part).sort("number")
    broken = pl.when(pl.col("number") == 1).then(20.0).otherwise(HM).alias(HM)
    failed = pl.when(pl.col("number") == 0).then(pl.lit("failed")).otherwise("status")
    rows.with_columns(broken, status=failed).write_parquet(part)
    others = mean(rows.filter(pl.col("number").is_in([6, 11]))[HM])
    both = joined(folders)
    found = {row[0]: row[2] for row in joint_report.score_table(both).rows}
    assert found["PromptKD"].endswith(f" (n = 3, 1 collapsed; without {others:.2f})")
    assert found["projector only"].endswith(" (n = 2)")
    assert "(" not in found["ComKD-CLIP"]
    assert f'<span class="bad">(n = 3, 1 collapsed; without {others:.2f})</span>' in joint_report.page(both)
    assert "Of 29 full-budget arms 1 collapsed (dtd); they are in every mean, rank and test." in (
        joint_report.sentences(both)
    )
    told = [row[-1].endswith("; with 1 collapsed (dtd)") for row in joint_report.pair_table(both).rows]
    assert sum(told) == 4  # PromptKD with each of the others


def test_a_run_on_demo_weights_makes_the_page_a_demonstration(three: list[Path], tmp_path: Path) -> None:
    runs = [read(folder) for folder in three]
    bare = [run._replace(provenance={**run.provenance, "demo_weights": False}) for run in runs]
    first = bare[0]._replace(provenance={**runs[0].provenance, "demo_weights": True})
    pages = [joint_report.page(join_runs(some)) for some in (bare, [first, *bare[1:]])]
    assert [DEMO_NOTICE in page for page in pages] == [False, True]
    told = [DEMO_NOTICE in markdown for markdown in (joint_report.markdown(three), tables(runs[0]))]
    assert told == [True, True]


def test_markdown_says_what_the_page_says(three: list[Path]) -> None:
    done = CliRunner().invoke(main, ["report", "--markdown", *map(str, three)])
    assert done.exit_code == 0, done.output
    found = joined(three)
    for shown in (joint_report.score_table(found), joint_report.pair_table(found)):
        assert all(f"| {' | '.join(row)} |" in done.output.splitlines() for row in (shown.head, *shown.rows))
    words = body(joint_report.page(found))
    assert all(text(line) in words for line in joint_report.sentences(found))


@pytest.mark.parametrize("kind", fake_run.KINDS)
def test_every_protocol_can_be_joined(tmp_path: Path, kind: tuple[str, str]) -> None:
    found = joined([one(tmp_path, place, kind=kind) for place in range(2)])
    words = body(joint_report.page(found))
    assert found.scores.name in words
    assert ("chosen on the test set" in words) == (kind[1] == "promptkd")


# The command ----------------------------------------------------------------------------------------


def test_the_file_lies_beside_the_first_run_or_where_it_is_told(three: list[Path], tmp_path: Path) -> None:
    words = ["report", *map(str, three)]
    done = CliRunner().invoke(main, words)
    target = three[0].parent / "joint.html"
    assert (done.exit_code, done.output) == (0, f"{target}\n")
    assert target.read_text(encoding="utf-8").count('class="plot"') == 1
    assert not any((folder / "report.html").exists() for folder in three)
    other = tmp_path / "new" / "all.html"
    done = CliRunner().invoke(main, [*words, "--into", str(other)])
    assert (done.exit_code, done.output) == (0, f"{other}\n")
    assert other.read_bytes() == target.read_bytes()


def test_into_is_for_several_runs(three: list[Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["report", str(three[0]), "--into", str(tmp_path / "x.html")])
    assert done.exit_code == 2
    assert "--into names the file of several runs" in done.output


# The diagram --------------------------------------------------------------------------------------


def ranks(
    methods: tuple[str, ...], average: tuple[float, ...], cliques: tuple[tuple[str, ...], ...]
) -> across_datasets.Ranks:
    return across_datasets.Ranks(methods, average, 11, (9.0, 0.01), 2 / 2**11, (), cliques)


def test_names_stand_so_that_no_line_crosses_another() -> None:
    """On each side the name farther out stands higher: its vertical line ends above the others' level."""
    info = rank_info(ranks(("a", "b", "c", "d", "e"), (1.2, 2.0, 2.8, 4.0, 5.0), ()))
    left = [one for one in info.named if one.is_left]
    right = [one for one in info.named if not one.is_left]
    assert [one.method for one in left] == ["a", "b", "c"]
    assert [one.line for one in left] == [0, 1, 2]
    assert [one.method for one in right] == ["d", "e"]
    assert [one.line for one in right] == [1, 0]


def test_a_bar_has_a_dot_at_each_member_and_none_at_others() -> None:
    """`b` lies between the two ends of a group that it is not in."""
    info = rank_info(ranks(("a", "b", "c"), (1.0, 2.0, 3.0), (("a", "c"), ("b", "c"))))
    assert info.bars == [[("a", 1.0), ("c", 3.0)], [("b", 2.0), ("c", 3.0)]]
    figure = rank_plot(info)
    bars = [trace for trace in figure.data if trace.mode == "lines+markers"]
    dots = [[x for x, size in zip(bar.x, bar.marker.size, strict=True) if size] for bar in bars]
    assert dots == [[1.0, 3.0], [2.0, 3.0]]
    assert bars[0].y[0] != bars[1].y[0]
    names = [note.text for note in figure.layout.annotations]
    assert names == ["a  <b>1.00</b>", "b  <b>2.00</b>", "<b>3.00</b>  c"]


def test_names_of_methods_are_escaped() -> None:
    info = rank_info(ranks(("a<b>", "c & d"), (1.0, 2.0), (("a<b>", "c & d"),)))
    figure = rank_plot(info)
    assert [note.text for note in figure.layout.annotations] == [
        "a&lt;b&gt;  <b>1.00</b>",
        "<b>2.00</b>  c &amp; d",
    ]
