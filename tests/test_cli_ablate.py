"""`comkd-ray ablate` up to where Ray would start: what it says beforehand, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import outer
import pytest
from click.testing import CliRunner, Result
from test_ledger import earlier, trained

from comkd_ray import cli, results, study_file

Tree = dict[str, Any]
FLAGS: Tree = {"student.ifalign": [False, True], "student.edu_attention": [False, True]}
FIVE: Tree = FLAGS | {key: [1.0, 2.0] for key in ("loss.temperature", "loss.kd_weight", "loss.align_weight")}

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return outer.world(tmp_path_factory.mktemp("ablate"))


def ablate(folder: Path, world: Path, *words: str, block: Tree | None = None, tuned: bool = False) -> Result:
    """Run the command on a file with this block, in `folder`/reports; `tuned` keeps its search."""
    tree = outer.tree(world) | {
        "ablate": {"design": "factorial", "factors": FLAGS, "seeds": 8} | (block or {})
    }
    if not tuned:
        del tree["search"]
    path = outer.write_yaml(folder / "tiny.yaml", tree)
    return CliRunner().invoke(cli.main, ["ablate", str(path), "--reports", str(folder / "reports"), *words])


def refusal(result: Result, folder: Path) -> str:
    """The one line of a command that wrote nothing."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert not (folder / "reports").exists()
    return result.stderr


# Before anything runs ---------------------------------------------------------------------------


def test_a_dry_run_says_what_is_compared_and_what_it_can_show(tmp_path: Path, world: Path) -> None:
    result = ablate(tmp_path, world, "--dry-run")
    assert result.exit_code == 0, result.output
    said = {line[:26].strip(): line[26:].strip() for line in result.stdout.splitlines()}
    assert said["ablation"] == f"tiny, into {tmp_path / 'reports' / 'tiny'}"
    assert said["design"] == "factorial: 4 settings, each against the first levels of all factors"
    assert said["cells"] == "32 arms"
    assert said["seeds"] == "8 seeds: 1, 2, 3, 4, 5, 6, 7, 8"
    assert said["a seed varies"].startswith("train.seed draws the initial prompts")
    assert "smallest p 0.0078, 0.023 after Holm; effects from 1.5 sd" in said["can find"]
    assert said["arms"] == "32"
    assert not (tmp_path / "reports").exists()


def test_a_dry_run_counts_cells_of_earlier_studies(tmp_path: Path, world: Path) -> None:
    space = {**outer.GRID, "train.seed": {"choice": [1, 2]}}
    before = outer.study(world, {"sampler": "grid", "space": space})
    run, _ = earlier(tmp_path / "reports")
    study_file.dump(before, run / "study.yaml")
    trained(run, before)
    said = ablate(tmp_path, world, "--dry-run").stdout
    assert "32 arms; 8 of 32 cells are taken from reports/before" in said


def test_a_machine_reads_the_design_as_one_object(tmp_path: Path, world: Path) -> None:
    told = json.loads(ablate(tmp_path, world, "--dry-run", "--json").stdout)
    assert told["arms"] == 32
    assert told["can_find"]["claims"] == 3
    assert told["ablation"]["design"] == "factorial"
    assert told["ablation"]["settings"][0] == {"student.ifalign": False, "student.edu_attention": False}


def test_until_decided_says_how_far_it_may_go(tmp_path: Path, world: Path) -> None:
    said = ablate(tmp_path, world, "--dry-run", "--until-decided", "--max-seeds", "20").stdout
    assert "then one more at a time, where a claim is open, up to 20" in said
    assert "up to 20 seeds, 3 claims: every look counted" in said
    assert "up to 80 arms" in said


def test_a_file_that_can_be_tuned_is_ablated_beside_it(tmp_path: Path, world: Path) -> None:
    said = ablate(tmp_path, world, "--dry-run", tuned=True).stdout
    assert f"tiny-ablate, into {tmp_path / 'reports' / 'tiny-ablate'}" in said


def test_a_start_is_told_with_what_it_leaves_to_the_file(tmp_path: Path, world: Path) -> None:
    run, _ = earlier(tmp_path / "before")
    study_file.dump(outer.study(world, train={"lr": 0.04}), run / "study.yaml")
    values = {"loss.temperature": 2.0, "train.seed": 7}
    record = outer.record("best", 80.0, searched=sorted(values), **values)
    results.write_record(run, record["arm"], record["epochs"])
    said = ablate(tmp_path, world, "--dry-run", "--from", str(run)).stdout
    assert "arm best of before, its best" in said
    assert "train.lr 0.02 (there 0.04)" in said


def test_re_tuning_is_told_with_what_it_takes(tmp_path: Path, world: Path) -> None:
    tree = outer.tree(world, outer.tpe(8)) | {"ablate": {"design": "factorial", "factors": FLAGS, "seeds": 8}}
    path = outer.write_yaml(tmp_path / "tiny.yaml", tree)
    words = ["ablate", str(path), "--reports", str(tmp_path / "reports"), "--dry-run", "--retune", "5"]
    said = CliRunner().invoke(cli.main, words).stdout
    assert (
        "4 settings with tpe, 20 arms in all, over loss.temperature, train.lr, student.attention_scale"
        in said
    )
    assert not (tmp_path / "reports").exists()


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "words", "message"),
    [
        ({"factors": {"student.ifalgin": [False, True]}}, [], "did you mean 'student.ifalign'?"),
        ({"factors": {"student.ifalign": ["no", "yes"]}}, [], "ifalign: input should be a valid boolean"),
        ({"seeds": 1}, [], "seeds: a test needs two seeds or more"),
        ({"design": "fractional"}, [], "use factorial"),
        ({"design": "fractional", "factors": FIVE, "max_seeds": 20}, [], "max_seeds: the effects of a frac"),
        ({}, ["--max-seeds", "20"], "go together"),
        ({}, ["--until-decided"], "go together"),
        ({}, ["--until-decided", "--max-seeds", "8"], "are 8 already"),
        ({}, ["--set", "ablate.factors.train.lr=[0.1]"], "train.lr: a factor needs two levels"),
        ({"factors": {"train.seed": [1, 2]}}, [], "seeds are no factor"),
        ({"design": "one_knob", "factors": {"student.attention_scale": [0.1, 1.0]}},
         ["--set", "student.edu_attention=false"], "no setting has the module on that it belongs to"),
        ({}, ["--retune", "4"], "--retune asks a sampler over search.space"),
        ({}, ["--from", "none"], "--from none: no study.yaml there"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_written(
    tmp_path: Path, world: Path, block: Tree, words: list[str], message: str
) -> None:
    assert message in refusal(ablate(tmp_path, world, *words, block=block), tmp_path)


def test_an_ablation_that_began_otherwise_is_refused_and_more_seeds_are_not(
    tmp_path: Path, world: Path
) -> None:
    run = tmp_path / "reports" / "tiny"
    run.mkdir(parents=True)
    tree = outer.tree(world) | {"ablate": {"design": "factorial", "factors": FLAGS, "seeds": 8}}
    study_file.dump(study_file.build(tree, "x"), run / "study.yaml")
    more = ablate(tmp_path, world, "--dry-run", "--set", "ablate.seeds=12")
    assert more.exit_code == 0, more.output
    other = ablate(tmp_path, world, "--set", "loss.temperature=2.0")
    assert other.exit_code == 2
    assert "this ablation has begun with other values of loss.temperature; --set study=NAME" in other.stderr


def test_tune_on_a_file_without_a_search_points_to_ablate(tmp_path: Path, world: Path) -> None:
    ablate(tmp_path, world, "--dry-run")
    result = CliRunner().invoke(cli.main, ["tune", str(tmp_path / "tiny.yaml")])
    assert "its ablate block is for: comkd-ray ablate" in refusal(result, tmp_path).lower()
