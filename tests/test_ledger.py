"""The ledger of cells: failed ones are tried again, and those of an earlier study are taken from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import outer
import pytest

from comkd_ray import results, study_file
from comkd_ray.config import Study
from comkd_ray.designs import compile_study, until_decided, with_block
from comkd_ray.errors import UserError
from comkd_ray.ledger import (
    TAKEN_FROM,
    arms_of,
    find_shared,
    foretell_shared,
    seeds_of,
    set_failed_aside,
    take_shared,
)
from comkd_ray.material import Card, write_card
from comkd_ray.starting_point import remarks, start_from
from comkd_ray.weights import FILES

Tree = dict[str, Any]
FLAGS: Tree = {"student.ifalign": [False, True], "student.edu_attention": [False, True]}


def ablation(seeds: int = 4, **sections: Tree) -> Study:
    block = {"ablate": {"design": "factorial", "factors": FLAGS, "seeds": seeds}}
    one = study_file.build(outer.tree(Path("/world"), **sections) | block, "tiny.yaml")
    return compile_study(one, "tiny-ablate", "tiny.yaml")


def earlier(
    reports: Path, identity: str = "material", name: str = "before", **sections: Tree
) -> tuple[Path, Study]:
    """A run directory of a study that was tuned: the same 2x2 with two of its seeds."""
    space = {**outer.GRID, "train.seed": {"choice": [1, 2]}}
    one = outer.study(Path("/world"), {"sampler": "grid", "space": space}, **sections)
    run = reports / name
    run.mkdir(parents=True)
    study_file.dump(one, run / "study.yaml")
    write_card(run, card(identity))
    return run, one


def card(identity: str) -> Card:
    return Card(identity, "data", "teacher", "text", "train", "val", None, 100.0, 1, {}, {}, "digest")


def trained(run: Path, study: Study, identity: str = "material", **changes: Any) -> dict[str, Tree]:
    """Complete records of all cells of a study, or whatever `changes` makes of them."""
    for number, (arm, cell) in enumerate(arms_of(study, identity).items()):
        row = {
            "cohort": "c0",
            "number": number,
            "searched": sorted(cell),
            "train.epochs": study.train.epochs,
            **cell,
            **changes,
        }
        record = outer.record(arm, 50.0 + number, **row)
        results.write_record(run, record["arm"], record["epochs"])
    return results.read_records(run)


# Cells that are there already -------------------------------------------------------------------


def test_cells_of_an_earlier_study_are_taken_with_where_they_come_from(tmp_path: Path) -> None:
    before, tuned = earlier(tmp_path)
    records = trained(before, tuned)
    one, run = ablation(), tmp_path / "tiny-ablate"
    kept = next(iter(records))
    (before / "students" / kept).mkdir(parents=True)
    for name in FILES:
        (before / "students" / kept / name).write_text(f"its {name}")
    (before / "students" / list(records)[1]).mkdir()  # that run is deleting it just now
    assert foretell_shared(one, run).in_words(16) == f"8 of 16 cells are taken from {tmp_path.name}/before"
    assert len(take_shared(one, run, "material").records) == 8
    taken, cells = results.read_records(run), arms_of(one, "material")
    assert taken.keys() == records.keys() <= cells.keys()
    for arm, record in taken.items():
        row = record["arm"]
        assert record["epochs"] == records[arm]["epochs"]
        assert row[TAKEN_FROM] == "before"
        assert row["number"] == list(cells).index(arm)
        assert row["searched"] == sorted(cells[arm])
        assert row["objective"] == records[arm]["arm"]["objective"]
    assert [path.name for path in (run / "students").iterdir()] == [kept]
    assert [(run / "students" / kept / name).read_text() for name in FILES] == [
        f"its {name}" for name in FILES
    ]
    assert take_shared(one, run, "material").records == {}
    assert foretell_shared(one, run).in_words(16) == ""


def test_only_what_claims_ask_for_by_now_is_taken(tmp_path: Path) -> None:
    """The earlier study trained one setting with ten seeds to the end and the others with two, as halving may
    leave it: of the ten the claim takes the first two, and a third as soon as it is open.
    """
    block = {"ablate": {"design": "factorial", "factors": FLAGS, "seeds": 2}}
    one = study_file.build(outer.tree(Path("/world")) | block, "tiny.yaml")
    one = compile_study(until_decided(one, "x", 10), "tiny-ablate", "x")
    before, _ = earlier(tmp_path)
    for arm, cell in arms_of(one, "material").items():
        good = cell["student.ifalign"] and cell["student.edu_attention"]
        if good or cell["train.seed"] <= 2:
            row = {"cohort": "c0", "train.epochs": 2, "test_harmonic_mean": 80.0 + bool(good), **cell}
            results.write_record(before, outer.record(arm, **row)["arm"], [])
    run = tmp_path / "tiny-ablate"
    assert len(foretell_shared(one, run).records) == 4 * 2
    assert len(take_shared(one, run, "material").records) == 4 * 2 + 1
    taken = {record["arm"]["seed"] for record in results.read_records(run).values()}
    assert taken == seeds_of(run) == {1, 2, 3}
    assert take_shared(one, run, "material").records == {}


@pytest.mark.parametrize("changes", [{"status": "pruned"}, {"status": "failed"}, {"train.epochs": 9}])
def test_what_was_pruned_or_failed_is_nobodys(tmp_path: Path, changes: Tree) -> None:
    """Nor what has fewer epochs than it should."""
    before, tuned = earlier(tmp_path)
    trained(before, tuned, **changes)
    assert find_shared(ablation(), tmp_path / "tiny-ablate", "material").records == {}


def test_another_material_or_another_value_shares_nothing(tmp_path: Path) -> None:
    before, tuned = earlier(tmp_path, identity="other")
    trained(before, tuned, identity="other")
    rate, of_rate = earlier(tmp_path, name="rate", train={"lr": 0.01})
    trained(rate, of_rate)
    assert find_shared(ablation(), tmp_path / "tiny-ablate", "material").records == {}
    shots, of_shots = earlier(tmp_path / "else", name="shots", data={"shots": 3})
    trained(shots, of_shots)
    assert foretell_shared(ablation(), tmp_path / "else" / "tiny-ablate").records == {}


def test_a_broken_neighbour_is_passed_over(tmp_path: Path) -> None:
    before, tuned = earlier(tmp_path)
    for arm in trained(before, tuned):
        (before / "records" / f"{arm}.json").write_text("{")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "material.json").write_text("[]")
    assert foretell_shared(ablation(), tmp_path / "tiny-ablate").records == {}


def test_a_table_with_taken_rows_is_read_like_any_other(tmp_path: Path) -> None:
    before, tuned = earlier(tmp_path)
    trained(before, tuned)
    run = tmp_path / "tiny-ablate"
    take_shared(ablation(), run, "material")
    own = next(arm for arm in arms_of(ablation(), "material") if arm not in results.read_records(run))
    record = outer.record(own)
    results.write_record(run, record["arm"], record["epochs"])
    assert results.compact(run) == 9
    assert sorted(results.read_arms(run)[TAKEN_FROM].fill_null("own").unique()) == ["before", "own"]


# Cells that failed ------------------------------------------------------------------------------


def test_failed_cells_are_tried_again_and_finished_ones_are_not(tmp_path: Path) -> None:
    for arm, status in (("a", "complete"), ("b", "failed"), ("c", "pruned")):
        results.write_record(tmp_path, outer.record(arm, status=status)["arm"], [])
    assert set_failed_aside(tmp_path) == 1
    assert results.read_records(tmp_path).keys() == {"a", "c"}
    assert json.loads((tmp_path / "records" / "b.failed").read_text())["arm"]["status"] == "failed"
    assert set_failed_aside(tmp_path) == 0


def test_failed_cells_that_later_seeds_have_passed_stay(tmp_path: Path) -> None:
    for arm in "ab":
        results.write_record(tmp_path, outer.record(arm, status="failed")["arm"], [])
    assert set_failed_aside(tmp_path, but={"a"}) == 1
    assert results.read_records(tmp_path).keys() == {"a"}


# --from -----------------------------------------------------------------------------------------


def ablated(**sections: Tree) -> Study:
    block = {"ablate": {"design": "factorial", "factors": FLAGS}}
    return study_file.build(outer.tree(Path("/world"), **sections) | block, "tiny.yaml")


def searched(reports: Path) -> Path:
    """A study whose best complete arm has IFAlign off and a temperature of 2; a better one was pruned."""
    run, _ = earlier(reports)
    for number, (value, status, temperature) in enumerate(
        [(70.0, "complete", 3.0), (80.0, "complete", 2.0), (90.0, "pruned", 4.0)]
    ):
        values = {"loss.temperature": temperature, "student.ifalign": False, "train.seed": 7}
        record = outer.record(f"arm{number}", value, status, number=number, searched=sorted(values), **values)
        results.write_record(run, record["arm"], record["epochs"])
    return run


def test_an_ablation_starts_from_the_best_complete_arm(tmp_path: Path) -> None:
    """Its searched values, the seed apart, become the study's own."""
    started = start_from(ablated(train={"lr": 0.03}), searched(tmp_path), None)
    assert started.loss.temperature == 2.0
    assert started.train.lr == 0.03
    assert started.train.seed == 1
    assert started.ablate is not None
    assert started.ablate.start == "before/arm1"
    lines = remarks(started, tmp_path / "before")
    assert lines[0] == "of this file, not of before: train.lr 0.03 (there 0.02)"
    assert lines[1].startswith("the best arm has student.ifalign off")


def test_a_start_whose_seed_is_one_of_the_ablations_is_told(tmp_path: Path) -> None:
    """That seed's noise was chosen for: seed 7 is none of 1 to 4, and one of 1 to 8."""
    run = searched(tmp_path)
    for count, is_told in ((4, False), (8, True)):
        one = with_block(ablated(), seeds=count)
        lines = remarks(start_from(one, run, None), run)
        assert any(line.startswith("seed 7 chose this arm") for line in lines) == is_told


def test_where_pixels_come_from_is_no_other_material(tmp_path: Path) -> None:
    """Stored or streamed, an arm's numbers are the same."""
    assert start_from(ablated(data={"pixels": "stream"}), searched(tmp_path), None).loss.temperature == 2.0


def test_an_ablation_that_has_begun_goes_on_from_the_same_arm(tmp_path: Path) -> None:
    run = searched(tmp_path)
    begun = start_from(ablated(), run, None)
    assert begun.ablate is not None
    better = outer.record("arm9", 99.0, number=9, searched=["loss.temperature"], **{"loss.temperature": 0.5})
    results.write_record(run, better["arm"], better["epochs"])
    assert start_from(ablated(), run, begun.ablate.start) == begun
    assert start_from(ablated(), run, None).loss.temperature == 0.5


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"data": {"shots": 3}}, "another study: data.shots is 2 there, 3 here"),
        ({"teacher": {"epochs": 2}}, "another study: teacher.epochs is 1 there, 2 here"),
        (
            {"student": {"model": "ViT-B-16"}},
            "another study: student.model is local-dir:/world/student there",
        ),
    ],
)
def test_a_study_of_other_images_teacher_or_towers_is_refused(
    tmp_path: Path, sections: Tree, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        start_from(ablated(**sections), searched(tmp_path), None)


def test_a_folder_without_a_study_or_without_a_complete_arm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no study\.yaml there"):
        start_from(ablated(), tmp_path / "none", None)
    run, _ = earlier(tmp_path)
    with pytest.raises(UserError, match="no complete arm among its records"):
        start_from(ablated(), run, None)
