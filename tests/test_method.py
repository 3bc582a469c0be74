"""docs/method.md is true: what the code cites is there, its numbers follow, its tests exist."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from comkd_ray.config import Student, Study
from comkd_ray.data.datasets import ROWS as DATA_SETS
from comkd_ray.metrics import harmonic_mean

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
ROWS: dict[str, list[str]] = {
    line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
    for line in PAGE.splitlines()
    if re.match(r"\| \d\.\d+ \|", line)
}
SETS = [row.split(" | ") for row in re.findall(r"^\| (\w+ \| \d+ \| (?:200|1000) \| .*) \|$", PAGE, re.M)]

IDS = r"\d\.\d+(?:(?:-|, | and |, and | to )\d\.\d+)*"
Prepared = Callable[[Study], tuple[Any, Any]]


def number(text: str) -> float:
    return float(text.replace(",", ""))


# What the code cites ----------------------------------------------------------------------------


def sources() -> list[Path]:
    folders = {"comkd_ray": "py", "tests": "py", "tools": "py", "search_spaces": "yaml", "docs": "md"}
    return [path for folder, kind in folders.items() for path in (ROOT / folder).rglob(f"*.{kind}")]


def expanded(cited: str) -> Iterator[str]:
    """The rows of "1.2, 2.7-2.9 and 5.1", ranges in full."""
    for part in re.split(r", and |, | and ", cited):
        first, *last = re.split("-| to ", part)
        chapter, low = first.split(".")
        high = last[0].split(".")[1] if last else low
        yield from (f"{chapter}.{n}" for n in range(int(low), int(high) + 1))


def cited_rows() -> dict[str, str]:
    """Every row that a file names after the word PAPER, or config.py in brackets, and one such file."""
    found: dict[str, str] = {}
    for path in sources():
        text = re.sub(r"\s*\n\s*#? *", " ", path.read_text(encoding="utf-8"))
        places = re.findall(rf"PAPER ({IDS})", text)
        if path.name == "config.py":
            places += re.findall(rf"\(({IDS})\)", text)
        found |= {row: path.name for place in places for row in expanded(place)}
    return found


def test_every_row_that_is_cited_is_there() -> None:
    cited = cited_rows()
    assert len(cited) > 80
    assert {row: file for row, file in cited.items() if row not in ROWS} == {}


def test_every_table_that_is_cited_is_there() -> None:
    headings = set(re.findall(r"^##+ (\d[A-D]?) ", PAGE, flags=re.M))
    for path in sources():
        for letters in re.findall(r"PAPER (?:section )?(\d[A-D]?)\b(?!\.)", path.read_text(encoding="utf-8")):
            assert letters in headings, path


def test_no_row_stands_twice_and_rows_are_in_order() -> None:
    ids = [tuple(map(int, row.split("."))) for row in re.findall(r"^\| (\d\.\d+) \|", PAGE, flags=re.M)]
    assert ids == sorted(set(ids))


def test_links_lead_somewhere() -> None:
    local = [link for link in re.findall(r"\]\(([^)]+)\)", PAGE) if not link.startswith("http")]
    headings = re.findall(r"^#+ (.+)$", PAGE, flags=re.M)
    anchors = {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for link in local:
        assert link in anchors if link.startswith("#") else (ROOT / "docs" / link).exists(), link


def test_the_tests_that_hold_the_golden_numbers_exist() -> None:
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", PAGE)
    assert {row for row in ROWS if row.startswith("7.") and "::" not in ROWS[row][-1]} == set()
    assert len(named) >= 10
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), test


# Readings ---------------------------------------------------------------------------------------


def test_the_readings_are_the_switches_of_the_student_with_their_defaults() -> None:
    """`student.key`: **default**, other values."""
    told = {}
    for cells in ROWS.values():
        for key, values in re.findall(r"^`student\.(\w+)`: (.+)$", cells[1] if len(cells) > 1 else ""):
            told[key] = values.split(", ")
    assert set(told) == {
        "align_axis", "align_reduction", "align_features", "attention_layers", "attention_scale",
        "attention_keys", "renormalize", "alpha",
    }  # fmt: skip
    for key, values in told.items():
        field = Student.model_fields[key]
        kinds = [one for kind in (field.annotation, *get_args(field.annotation)) for one in get_args(kind)]
        known = [one for one in (*kinds, *get_args(field.annotation)) if isinstance(one, str)]
        (default,) = [value.strip("*") for value in values if value.startswith("**")]
        assert default == str(field.default).lower(), key
        plain = {value.strip("*") for value in values} - {"a number", "true", "false", "1.0"}
        assert plain == set(known), key


# Numbers ----------------------------------------------------------------------------------------


def test_kd_weights_and_steps_follow_from_promptkds_settings() -> None:
    """PAPER 3.6, 3.7, 3.18; classes and images as in tables 6.1 to 6.11, in their order."""
    assert len(SETS) == 11
    for place, (dataset, classes, w, weight, images, steps, total) in enumerate(SETS, start=1):
        assert number(w) == (200 if dataset in ("fgvc_aircraft", "oxford_flowers", "dtd") else 1000)
        assert number(weight) == pytest.approx(number(w) / int(classes), abs=5e-4)
        assert number(steps) == number(images) // 8
        assert number(total) == 20 * number(steps)
        row = ROWS[f"6.{place}"]
        assert (row[4].split(" ")[0], row[5].split(" / ")[0]) == (classes, images)


@pytest.mark.usefixtures("cpu")
def test_steps_of_an_epoch_are_those_of_promptkd(
    prepared: Prepared, make_study: Callable[..., Study]
) -> None:
    """PAPER 7.5 and 3.18: a real cohort on as many images, stopped after its first step."""
    from comkd_ray.cohort import Arm, Cohort

    class Enough(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Enough(total)

    cohort = Cohort(
        [Arm("one", make_study({"train.batch_size": 8, "train.epochs": 20}))], prepared(make_study())[1]
    )
    own = cohort.train_images
    for _, _, _, _, images, _, total in SETS:
        cohort.train_images = np.resize(own, int(number(images)))
        with pytest.raises(Enough) as stopped:
            cohort.train_epoch(1, stop)
        assert stopped.value.args == (int(number(total)),)


def test_data_sets_are_those_that_the_code_knows() -> None:
    """PAPER 6.1-6.15, in that order."""
    for place, row in enumerate(DATA_SETS.values(), start=1):
        _, folder, _, split, classes, images, halves, template = ROWS[f"6.{place}"]
        told = [None if count == "-" else int(number(count)) for count in re.findall(r"[\d,]+|-", images)]
        assert (folder, template, int(classes.split(" ")[0])) == (row.folder, row.template, row.classes)
        known = [row.test] if row.train is None else [row.train, row.val, row.test]
        assert told == known
        assert [int(number(half)) for half in re.findall(r"[\d,]+", halves)] == list(row.halves or ())
        assert row.layout != "split file" or split == row.split


def test_halves_and_test_images_of_the_data_sets_add_up() -> None:
    for place in range(1, 12):
        classes, base, novel = map(int, re.findall(r"\d+", ROWS[f"6.{place}"][4]))
        assert (base, novel) == ((classes + 1) // 2, classes // 2)
        test = number(ROWS[f"6.{place}"][5].split(" / ")[2])
        assert test == sum(number(half) for half in ROWS[f"6.{place}"][6].split(" / "))


def test_published_harmonic_means_follow_but_for_two() -> None:
    """PAPER 4.13 and 4.14."""
    wrong = []
    for place in range(1, 13):
        for cell in ROWS[f"4.{place}"][1:]:
            if cell != "unknown":
                base, novel, mean = map(float, cell.split(" ")[0].split("/"))
                if abs(harmonic_mean(base, novel) - mean) > 0.03:
                    wrong.append((place, mean))
    assert wrong == [(5, 83.13), (12, 86.10)]


def test_averages_are_those_of_their_rows() -> None:
    """PAPER 4.1 over 4.2 to 4.12, and the last column of 4B and of PromptKD in 4C."""
    for column in range(1, 8):
        cells = [ROWS[f"4.{place}"][column].split(" ")[0].split("/") for place in range(1, 13)]
        for part in (0, 1):
            average, *values = (float(cell[part]) for cell in cells)
            assert average == pytest.approx(sum(values) / 11, abs=0.0151)
    for row in (*(f"4.{place}" for place in range(17, 23)), "4.27", "4.28"):
        *values, average = map(float, ROWS[row][1:])
        assert average == pytest.approx(sum(values) / len(values), abs=0.0151), row


def test_the_gain_that_the_note_gives_to_clip_is_over_promptkd() -> None:
    """PAPER 0.6, 4.29."""
    comkd, promptkd, clip = 72.78, float(ROWS["4.28"][-1]), float(ROWS["4.24"][-1].split(" / ")[0])
    assert ROWS["4.29"][-1].startswith(str(comkd))
    assert (round(comkd - promptkd, 2), round(comkd - clip, 2)) == (1.31, 15.60)
