"""An ablation over several materials: which there are, and the one page that joins their runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_run
import outer
import pytest
from click.testing import CliRunner

from comkd_ray import cli, joint_report, results, study_file
from comkd_ray.across_datasets import rank
from comkd_ray.cd_plots import cd_plot
from comkd_ray.config import Study
from comkd_ray.designs import compile_study, materials_of
from comkd_ray.errors import UserError
from comkd_ray.joint_report import announce, build, complete_scores, read_runs, scores_table

Tree = dict[str, Any]
FLAGS: Tree = {"student.ifalign": [False, True], "student.edu_attention": [False, True]}
NAMES = ["PromptKD", "PromptKD + EduAttention", "PromptKD + IFAlign", "ComKD-CLIP"]


def study(materials: Tree, **sections: Tree) -> Study:
    block = {"design": "factorial", "factors": FLAGS, "seeds": 2, "materials": materials}
    return study_file.build(outer.tree(Path("/world"), **sections) | {"ablate": block}, "tiny.yaml")


def folder_of(root: Path, names: list[str], left_out: int = 0, seeds: int = 3) -> Path:
    """Runs of a 2x2 on these materials; the last one lacks its last few arms."""
    announce(root, names)
    for place, name in enumerate(names):
        tree = fake_run.study_tree({})
        tree["search"] = {}
        tree["ablate"] = {"design": "factorial", "factors": FLAGS, "seeds": seeds}
        one = compile_study(study_file.build(tree, "fake"), name, "fake")
        cells, asked = study_file.cells(one), one.model_dump(mode="json")
        arms = [fake_run.arm(100 * place + number, cell, tree=asked) for number, cell in enumerate(cells)]
        kept = len(arms) - (left_out if name == names[-1] else 0)
        fake_run.write(root / name, arms[:kept], asked, fake_run.provenance())
    return root


# Materials --------------------------------------------------------------------------------------


def test_each_material_is_the_file_with_its_own_keys(tmp_path: Path) -> None:
    one = study({"own": {}, "draw2": {"data.split_seed": 2, "teacher.seed": 3}})
    found = materials_of(one, "x")
    assert list(found) == ["own", "draw2"]
    assert (found["own"].data, found["own"].teacher) == (one.data, one.teacher)
    draw = found["draw2"]
    assert (draw.study, draw.data.split_seed, draw.teacher.seed) == ("draw2", 2, 3)
    assert draw.ablate is not None
    assert draw.ablate.materials == {}
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


# The joint page ---------------------------------------------------------------------------------


def test_scores_of_settings_are_averaged_within_each_material(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "joint", ["caltech", "dtd", "pets"])
    joined = read_runs(folder)
    assert joined.names == NAMES
    scores = complete_scores(joined)
    assert scores is not None
    assert scores.datasets == ("caltech", "dtd", "pets")
    arms = results.read_arms(folder / "dtd")
    both = arms.filter(arms["student.ifalign"], arms["student.edu_attention"])
    place = scores.methods.index("ComKD-CLIP")
    assert scores.values[1, place] == pytest.approx(both["test_harmonic_mean"].mean())
    table = scores_table(joined)
    assert [row[0] for row in table.rows] == [
        "caltech",
        "dtd",
        "pets",
        "mean of 3 materials (minus the first)",
    ]
    assert table.rows[-1][1].endswith("(0.00)")


def test_the_page_ranks_settings_and_links_to_every_report(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "joint", ["caltech", "dtd", "pets"])
    words = build(folder).read_text()
    for part in ("Pairs of settings", "Wilcoxon p", "Friedman", 'href="dtd/report.html"', 'id="plot-ranks"'):
        assert part in words
    scores = complete_scores(read_runs(folder))
    assert scores is not None
    ranks = rank(scores)
    figure = cd_plot(ranks)
    assert tuple(figure.data[0].x) == ranks.average_ranks
    bars = [trace.hovertext for trace in figure.data[1:]]
    assert bars == [", ".join(clique) for clique in ranks.cliques]


def test_an_unfinished_material_is_named_and_takes_no_part_in_the_tests(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "joint", ["caltech", "dtd", "pets"], left_out=3)
    scores = complete_scores(read_runs(folder))
    assert scores is not None
    assert scores.datasets == ("caltech", "dtd")
    announce(folder, ["caltech", "dtd", "later"])
    assert read_runs(folder).missing == ["later"]
    assert "later has no score yet." in build(folder).read_text()
    announce(folder, ["caltech"])
    assert complete_scores(read_runs(folder)) is None
    assert "Pairs of settings" not in build(folder).read_text()


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "joint", ["caltech", "dtd"])
    other = fake_run.study_tree({}, kind=fake_run.KINDS[4])
    other["search"] = {}
    other["ablate"] = {"design": "factorial", "factors": FLAGS, "seeds": 2}
    one = compile_study(study_file.build(other, "fake"), "dtd", "fake").model_dump(mode="json")
    fake_run.write(folder / "all", [fake_run.arm(0, {"train.seed": 1}, tree=one)], one)
    announce(folder, ["caltech", "all"])
    with pytest.raises(UserError, match="differ in protocol, selection or settings"):
        build(folder)
    announce(folder, ["none"])
    with pytest.raises(UserError, match="none of none has arms yet"):
        build(folder)
    (folder / results.JOINT).write_text("[]")
    with pytest.raises(UserError, match=r"joint\.json: missing or damaged"):
        build(folder)


def test_report_rebuilds_the_joint_page(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "joint", ["caltech", "dtd"])
    said = CliRunner().invoke(cli.main, ["report", str(folder)])
    assert said.output == f"{folder / 'report.html'}\n"
    assert json.loads((folder / results.JOINT).read_text()) == {"materials": ["caltech", "dtd"]}
    assert joint_report.is_joint(folder)
    assert not joint_report.is_joint(folder / "dtd")
