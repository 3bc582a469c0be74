"""An ablation over several materials: which there are, what each shares, and the page that joins them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_run
import outer
import pytest
from test_ledger import card

from comkd_ray import results, study_file
from comkd_ray.ablation_run import join_ablations, open_ablations
from comkd_ray.config import Study
from comkd_ray.designs import compile_study, materials_of
from comkd_ray.errors import UserError
from comkd_ray.ledger import arms_of, find_shared
from comkd_ray.material import write_card
from comkd_ray.report import page
from comkd_ray.run import read

Tree = dict[str, Any]
FLAGS: Tree = {"student.ifalign": [False, True], "student.edu_attention": [False, True]}


def study(materials: Tree, **block: Any) -> Study:
    tree = outer.tree(Path("/world"))
    del tree["search"]
    own = {"design": "factorial", "factors": FLAGS, "seeds": 2, "materials": materials} | block
    return study_file.build(tree | {"ablate": own}, "tiny.yaml")


def test_each_material_is_the_file_with_its_own_keys() -> None:
    one = study({"own": {}, "draw2": {"data.split_seed": 2, "teacher.seed": 3}})
    found = materials_of(one, "x")
    assert list(found) == ["own", "draw2"]
    assert (found["own"].data, found["own"].teacher) == (one.data, one.teacher)
    draw = found["draw2"]
    assert (draw.study, draw.data.split_seed, draw.teacher.seed) == ("draw2", 2, 3)
    assert draw.ablate is not None
    assert (draw.ablate.materials, draw.ablate.material) == ({}, "draw2")
    assert materials_of(study({}), "x") == {}


def test_paths_of_materials_count_from_where_the_command_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    block = {"design": "factorial", "factors": FLAGS, "materials": {"b": {"data.root": "there"}}}
    path = outer.write_yaml(tmp_path / "tiny.yaml", outer.tree(Path("/world")) | {"ablate": block})
    loaded = study_file.load(path)
    assert materials_of(loaded, "x")["b"].data.root == str(tmp_path / "there")
    assert study_file.load(path) == loaded


@pytest.mark.parametrize(
    ("materials", "words"),
    [
        ({"a": {"data.shotz": 2}}, r"ablate.materials.a: data.shotz: no key .*did you mean 'data.shots'"),
        ({"a": {"protocol": "all_classes"}}, "protocol: no key that a material sets"),
        ({"a": {"student.ifalign": True}}, "student.ifalign: no key that a material sets"),
        ({"a": {"train.seed": 4}}, "train.seed: no key that a material sets"),
        ({"a": {"data.shots": "many"}}, "ablate.materials.a: data.shots: input should be a valid integer"),
        ({"a b": {}}, "ablate.materials.a b: study: string should match"),
    ],
)
def test_a_material_that_cannot_be_is_refused(materials: Tree, words: str) -> None:
    with pytest.raises(UserError, match=words):
        materials_of(study(materials), "x")


def test_each_has_a_run_directory_in_one_folder_and_takes_cells_from_beside_it(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    ablations = open_ablations(study({"a": {}, "b": {"data.split_seed": 2}}), "x", reports, None)
    assert [one.run for one in ablations] == [reports / "tiny" / "a", reports / "tiny" / "b"]
    first = ablations[0]
    arm = next(iter(arms_of(first.compiled, "material")))
    for run in (reports / "earlier", reports / "other" / "a"):
        record = outer.record(arm, **{"train.epochs": 2, "cohort": "c"})
        results.write_record(run, record["arm"], record["epochs"])
        write_card(run, card("material"))
    found = find_shared(first.compiled, first.run, "material").records
    assert found[arm][0] == reports / "earlier"
    with pytest.raises(UserError, match=r"--from: ablate\.materials have"):
        open_ablations(study({"a": {}}), "x", reports, tmp_path)


def runs_of(folder: Path, datasets: list[str]) -> None:
    """A 2x2 of three seeds on each data set, as if all had been run."""
    for place, dataset in enumerate(datasets):
        tree = fake_run.study_tree({})
        tree["search"], tree["data"]["dataset"] = {}, dataset
        tree["ablate"] = {"design": "factorial", "factors": FLAGS, "seeds": 3}
        one = compile_study(study_file.build(tree, "fake"), f"m{place}", "fake")
        cells, asked = study_file.cells(one), one.model_dump(mode="json")
        arms = [fake_run.arm(100 * place + number, cell, tree=asked) for number, cell in enumerate(cells)]
        facts = fake_run.provenance(hashes={"data": dataset})
        fake_run.write(folder / f"m{place}", arms, asked, facts)


def test_data_sets_are_joined_and_draws_of_one_are_not(tmp_path: Path) -> None:
    ablations = open_ablations(study({"m0": {}, "m1": {"data.split_seed": 2}}), "x", tmp_path, None)
    assert join_ablations(ablations) == "no joint report: 0 of 2 materials have arms"
    runs_of(tmp_path / "tiny", ["dtd", "eurosat"])
    assert join_ablations(ablations) == f"all 2 together: {tmp_path / 'tiny' / 'report.html'}"
    assert "ComKD-CLIP" in (tmp_path / "tiny" / "report.html").read_text()
    runs_of(tmp_path / "tiny", ["dtd", "dtd"])
    assert "are on the same data set" in join_ablations(ablations)


def test_a_run_whose_arms_were_all_trained_elsewhere_has_a_report(tmp_path: Path) -> None:
    runs_of(tmp_path, ["dtd"])
    run = tmp_path / "m0"
    for record in results.read_records(run).values():
        results.write_record(run, record["arm"] | {"taken_from": "before"}, record["epochs"])
    results.compact(run)
    assert "ComKD-CLIP" in page(read(run))
