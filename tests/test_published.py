"""Published numbers add up, carry their status, and stand beside ours only where they may."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import fake_run
import miniatures
import pytest

from comkd_ray import results, study_file
from comkd_ray.arms import Scores
from comkd_ray.config import Data, Study
from comkd_ray.data.datasets import ROWS, open_dataset
from comkd_ray.protocols import PROTOCOLS
from comkd_ray.published import (
    ABLATIONS,
    AVERAGE,
    METHODS,
    PUBLISHED,
    TEACHER,
    TEST_IMAGES,
    Published,
    Value,
    published_for,
)
from comkd_ray.published_gap import comparison, differences, gaps
from comkd_ray.reference_rows import ReferenceRow, reference_rows
from comkd_ray.stats import estimate
from comkd_ray.tables import printed, published_table

ROUNDED = 0.0051  # half of the last printed digit
BASE_TO_NOVEL = [row for row in PUBLISHED if row.protocol == "base_to_novel"]


def harmonic_mean(values: tuple[Value, ...]) -> float | None:
    base, novel, _ = (value.number for value in values)
    return None if base is None or novel is None else 2 * base * novel / (base + novel)


# The numbers ------------------------------------------------------------------------------------


def test_harmonic_means_follow_from_base_and_novel_but_for_three() -> None:
    """PAPER 4.13, 4.14: the three that do not are marked, and no other is."""
    broken = []
    for row in (*BASE_TO_NOVEL, *ABLATIONS):
        expected, found = harmonic_mean(row.values), row.values[-1]
        if expected is not None and found.number is not None and abs(expected - found.number) > 0.03:
            broken.append((row.source, found.number))
            assert not found.follows
        else:
            assert found.follows
    assert broken == [("4.5", 83.13), ("4.12", 86.10), ("4.37", 71.57)]


AVERAGES = [row for row in PUBLISHED if row.dataset == AVERAGE and row.values[-1].status != "UNKNOWN"]
RECOMPUTED = [row for row in AVERAGES if row.method != "ComKD-CLIP"]  # whose rows are UNKNOWN


@pytest.mark.parametrize("average", RECOMPUTED, ids=lambda row: f"{row.protocol}-{row.method}")
def test_averages_are_those_of_their_rows(average: Published) -> None:
    """PAPER 4.1, 4.13: base, novel and accuracy are means; the harmonic mean is that of the averages."""
    group = (average.protocol, average.method)
    parts = [row for row in PUBLISHED if (row.protocol, row.method) == group and row.dataset != AVERAGE]
    assert len(parts) == {"base_to_novel": 11, "cross_dataset": 10, "domain_generalization": 4}[group[0]]
    means = [mean(row.values[place].number or 0.0 for row in parts) for place in range(len(average.values))]
    if average.protocol == "base_to_novel":
        assert average.values[2].number != pytest.approx(means[2], abs=0.05)
        base, novel, _ = (value.number or 0.0 for value in average.values)
        means[2] = 2 * base * novel / (base + novel)
    assert [value.number for value in average.values] == pytest.approx(means, abs=ROUNDED)


def test_every_average_is_recomputed() -> None:
    """Seven methods base to novel, six across data sets, ten domain generalisation."""
    counts = [sum(row.protocol == name for row in RECOMPUTED) for name in PROTOCOLS]
    assert dict(zip(PROTOCOLS, counts, strict=True)) == {
        "base_to_novel": 7,
        "cross_dataset": 6,
        "domain_generalization": 10,
        "all_classes": 0,
    }


def test_frozen_numbers_of_the_papers_head() -> None:
    """PAPER 4.1, 4.28, 4.29: PromptKD's averages; ComKD-CLIP's is PromptKD's + 1.31."""
    found = {(row.protocol, row.method): row for row in PUBLISHED if row.dataset == AVERAGE}
    promptkd = found["base_to_novel", "PromptKD"]
    assert [value.number for value in promptkd.values] == [86.96, 80.73, 83.73]
    ours = found["domain_generalization", "ComKD-CLIP"].values[0]
    theirs = found["domain_generalization", "PromptKD"].values[0]
    assert ours == Value(72.78, "NOTE")
    assert (ours.number or 0) - (theirs.number or 0) == pytest.approx(1.31)


def test_what_is_known_of_comkd_clip_and_how() -> None:
    """PAPER 4.9, 4.41: SUN397 alone, from a note; novel computed; single modules unknown."""
    known = [r for r in PUBLISHED if r.method == "ComKD-CLIP" and r.values[-1].status != "UNKNOWN"]
    assert [(row.protocol, row.dataset) for row in known] == [
        ("base_to_novel", "sun397"),
        ("domain_generalization", AVERAGE),
    ]
    assert [value.status for value in known[0].values] == ["NOTE", "COMPUTED", "NOTE"]
    modules = {row.setting: row.values for row in ABLATIONS if row.source == "4.41"}
    assert [value.status for value in modules["neither"]] == ["INFERRED"] * 3
    assert {value.status for value in modules["IFAlign only"]} == {"UNKNOWN"}
    assert modules["both"] == known[0].values
    pairs = zip(modules["both"], modules["neither"], strict=True)
    gain = [(both.number or 0) - (neither.number or 0) for both, neither in pairs]
    assert gain == pytest.approx([0.50, 0.17, 0.33])


def test_unknown_is_the_only_status_without_a_number() -> None:
    values = [value for row in (*PUBLISHED, *ABLATIONS) for value in row.values]
    assert all((value.number is None) == (value.status == "UNKNOWN") for value in values)
    assert {value.status for value in values} == {"VERIFIED", "NOTE", "COMPUTED", "INFERRED", "UNKNOWN"}


def test_every_row_has_the_scores_of_its_protocol_and_a_known_method() -> None:
    for row in PUBLISHED:
        assert len(row.values) == len(PROTOCOLS[row.protocol].scores)
        assert row.method in METHODS
        assert row.dataset in {AVERAGE, *TEST_IMAGES}
    keys = [(row.protocol, row.dataset, row.method) for row in PUBLISHED]
    assert len(set(keys)) == len(keys)


def test_ablations_agree_with_the_main_table_where_they_meet() -> None:
    """PAPER 4.32, 4.35 at all images are PromptKD's ImageNet row; 4.31 and 4.30 know its teacher."""
    main = {row.method: row.values for row in published_for("base_to_novel", "imagenet")}
    found = {(row.source, row.setting): row.values for row in ABLATIONS}
    assert found["4.32", "ViT-B-16, PromptKD"] == found["4.35", "all"] == main["PromptKD"]
    assert found["4.31", "PromptSRC, the teacher"] == main[TEACHER]
    assert found["4.30", "ViT-L-14, the teacher"][-1] == main[TEACHER][-1]
    assert found["4.32", "ViT-B-16, CLIP"] == main["CLIP"]
    usual = found["4.34", "PromptKD"]
    assert usual == found["4.35", "64"] == found["4.36", "2"] == found["4.37", "1"] == found["4.38", "20"]


# Beside ours ------------------------------------------------------------------------------------

SUN = {"data": {"dataset": "sun397", "root": "/d"}}


def study(kind: tuple[str, str] = ("base_to_novel", "promptkd"), **sections: Any) -> Study:
    return study_file.build(fake_run.rows_tree(kind, **{**SUN, **sections}), "fake")


def test_the_papers_setting_differs_in_nothing() -> None:
    assert differences(study(), {"test": 19_850}) == []
    assert differences(study(), {}) == []
    assert differences(study(("cross_dataset", "strict")), {"test": 19_850}) == []
    quick = {"model": "ViT-B-16-quickgelu", "pretrained": "openai"}
    assert differences(study(student=quick), {"test": 19_850}) == []


@pytest.mark.parametrize(
    ("changed", "images", "phrase"),
    [
        ({"data": {"root": "/d"}}, 19_850, "data.dataset folder: nothing is published on it"),
        ({}, 240, "sun397 with 240 test images (published: 19,850)"),
        (
            {"student": {"model": "ViT-B-32", "pretrained": "openai"}},
            19_850,
            "student ViT-B-32 with openai (published: ViT-B-16 with openai)",
        ),
        (
            {"teacher": {"model": "ViT-L-14", "pretrained": "laion2b_s32b_b82k"}},
            19_850,
            "teacher ViT-L-14 with laion2b_s32b_b82k (published: ViT-L-14 with openai)",
        ),
        (
            {"data": {"dataset": "imagenet_v2", "root": "/d"}},
            10_000,
            "protocol base_to_novel (published on imagenet_v2: domain_generalization)",
        ),
    ],
)
def test_what_differs_is_named_and_no_gap_is_shown(changed: Any, images: int, phrase: str) -> None:
    other = study(("base_to_novel", "strict"), **changed)
    assert differences(other, {"test": images}) == [phrase]
    found = comparison(other, {"test": images}, [])
    assert found.gaps == []
    assert found.words == [
        f"No gap to published numbers is shown. What differs: {phrase}; "
        "selection strict (published: promptkd)."
    ]


def test_a_split_of_our_own_differs_and_a_published_one_found_beside_the_key_does_not(tmp_path: Path) -> None:
    """`data.make_split` asks for one where the split file is missing; the table says which was used."""
    photos = miniatures.sun397(tmp_path)
    keys = {"dataset": "sun397", "root": str(tmp_path), "make_split": True}
    asked, data = study(data=keys), Data.model_validate(keys)

    def found() -> list[str]:
        return differences(asked, {"split": open_dataset(data, tmp_path).split, "test": 19_850})

    assert found() == ["data.make_split: a split of our own"]
    miniatures.write_split_file(tmp_path / ROWS["sun397"].split, photos)
    assert found() == []
    (unknown,) = differences(asked, {"test": 19_850})
    assert "perhaps a split of our own" in unknown


def test_another_source_differs() -> None:
    tree = fake_run.rows_tree(("cross_dataset", "promptkd"), **SUN)
    tree["source"] = {"dataset": "caltech101", "root": "/c"}
    other = study_file.build(tree, "fake")
    assert differences(other, {}) == ["source.dataset caltech101 (published: imagenet)"]


def test_no_study_file_is_no_comparison() -> None:
    assert comparison(None, {}, []).gaps == []


def test_gap_is_ours_minus_published_with_the_interval_of_our_seeds() -> None:
    """By hand: 83, 84, 85 against 82.60: +1.40, half-width 4.303 / sqrt(3) = 2.484."""
    ours = ReferenceRow("PromptKD", 3, (None, None, estimate([83.0, 84.0, 85.0])))
    single = ReferenceRow("ComKD-CLIP", 1, (None, None, estimate([82.93])))
    found = {each.published.method: each for each in gaps("base_to_novel", "sun397", [ours, single])}
    gap = found["PromptKD"].gap
    assert gap is not None
    assert gap.low is not None
    assert (gap.n, gap.mean) == (3, pytest.approx(1.40))
    assert (gap.low, gap.high) == (
        pytest.approx(1.40 - 2.484, abs=1e-3),
        pytest.approx(1.40 + 2.484, abs=1e-3),
    )
    assert found["ComKD-CLIP"].gap == (1, pytest.approx(0.0), None, None, None)
    assert found["CoOp"].gap is None


def test_the_table_shows_every_published_row_beside_ours(tmp_path: Path) -> None:
    tree = fake_run.rows_tree(("base_to_novel", "strict"), **SUN)
    arms = results.read_arms(fake_run.write(tmp_path, fake_run.rows_arms(tree)))
    built = study_file.build(tree, "fake")
    found = comparison(built, {"test": 19_850}, reference_rows(arms, built))
    assert "favours them" in found.words[-1]
    head, lines = published_table(found.gaps, Scores("base_to_novel", "strict"))
    assert head[1] == "published: base / novel / harmonic mean"
    rows = {line[0]: line for line in lines}
    assert list(rows) == [row.method for row in published_for("base_to_novel", "sun397")]
    assert [rows["ComKD-CLIP"][place] for place in (1, -2)] == [
        "84.19 / 81.71 / 82.93",
        "NOTE / COMPUTED / NOTE",
    ]
    assert rows["CLIP"][2:6] == ["74.00 / 70.00 / 71.94", "1", "\u22120.29", "n = 1: no interval"]
    assert rows["CLIP"][6:] == ["VERIFIED", "PAPER 4.9"]
    assert rows["CoOp"][2:6] == ["\N{EN DASH}"] * 4


def test_a_star_marks_what_does_not_follow() -> None:
    cars = {row.method: row for row in published_for("base_to_novel", "stanford_cars")}
    assert printed(cars["PromptKD"].values) == "82.80 / 83.37 / 83.13*"
    assert printed(cars["ComKD-CLIP"].values) == "\N{EN DASH} / \N{EN DASH} / \N{EN DASH}"
