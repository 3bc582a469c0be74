"""The command line: what it says for help, and how every mistake ends before anything is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import fake_run
import outer
import pytest
from click.testing import CliRunner, Result

from comkd_ray import cli, cli_end, cluster, results

Tree = dict[str, Any]
SPLIT = "split_zhou_Caltech101.json"
HOLD = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print('held', flush=True); "


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return outer.world(tmp_path_factory.mktemp("cli"))


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache and a working folder of the test's own; what a command does to the process is undone."""

    def reached(*_: object) -> None:
        raise AssertionError("Ray was started")

    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "connect", reached)
    os.environ["COMKD_CACHE"] = str(tmp_path / "cache")
    with warnings.catch_warnings():
        yield
    os.environ.clear()
    os.environ.update(before)


class Tune(NamedTuple):
    """How `comkd-ray -q tune` ended."""

    result: Result
    run: Path

    @property
    def refusal(self) -> str:
        """The one line on stderr of a run that was refused and wrote nothing to stdout."""
        assert self.result.exit_code == 2, (self.result.output, self.result.exception)
        assert self.result.stdout == ""
        assert self.result.stderr.startswith("comkd-ray: ")
        assert self.result.stderr.count("\n") == 1
        return self.result.stderr


@pytest.fixture
def tune(world: Path, tmp_path: Path) -> Callable[..., Tune]:
    """Run the tiny study with settings and flags, up to where Ray would start."""

    def tune(*words: str, content: Tree | None = None) -> Tune:
        path = outer.write_yaml(tmp_path / "tiny.yaml", content or outer.tree(world))
        command = ["tune", str(path), "--quiet", "--reports", str(tmp_path / "reports"), *words]
        return Tune(CliRunner().invoke(cli.main, command), tmp_path / "reports" / "tiny")

    return tune


def began(run: Path, world: Path) -> Path:
    """A run directory whose study has begun."""
    run.mkdir(parents=True)
    outer.write_yaml(run / "study.yaml", outer.tree(world))
    return run


# Help -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_commands_with_examples(flag: str) -> None:
    result = CliRunner().invoke(cli.main, [flag])
    assert result.exit_code == 0
    commands = result.output.partition("Commands:")[2].split()
    assert {"tune", "report"} <= set(commands)
    assert "comkd-ray tune STUDY.yaml --resume" in result.output
    assert "130 interrupted" in result.output


@pytest.mark.parametrize("group", [(), ("bank",), ("bench",), ("data",), ("teacher",)])
def test_every_line_of_the_list_of_commands_is_whole(group: tuple[str, ...]) -> None:
    commands = CliRunner().invoke(cli.main, [*group, "--help"]).output.partition("Commands:")[2]
    assert commands
    assert "..." not in commands


@pytest.mark.parametrize("command", sorted(cli.main.commands))
def test_every_command_and_option_says_what_it_does(command: str) -> None:
    result = CliRunner().invoke(cli.main, [command, "--help"])
    assert result.exit_code == 0
    one = cli.main.commands[command]
    assert one.help
    options = [option for option in one.params if option.param_type_name == "option"]
    assert [option.name for option in options if not getattr(option, "help", None)] == []


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.main, ["--version"])
    assert result.output == f"comkd-ray, version {cli.__version__}\n"


def test_it_runs_as_a_program(tmp_path: Path) -> None:
    done = outer.comkd(["--help"], tmp_path / "cache", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["tun"], ["tune", "--reusme"], ["tune", "a.yaml", "b.yaml"], ["report"]])
def test_a_mistyped_command_is_bad_input(words: list[str]) -> None:
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


# The study file ---------------------------------------------------------------------------------


def test_a_missing_study_file_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.main, ["tune", "none.yaml"])
    refusal = Tune(result, tmp_path / "reports").refusal
    assert refusal.startswith("comkd-ray: none.yaml: cannot be read")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.epcohs=3", "tiny.yaml with --set: train.epcohs: unknown key; did you mean 'train.epochs'?"),
        ("train.epochs=many", "train.epochs: input should be a valid integer"),
        ("train.epochs", "--set train.epochs: expected KEY=VALUE"),
        ("student.model=ViT-B-33", "ViT-B-33: no model of open_clip has this name; did you mean ViT-B-3"),
        ("teacher.model=ViT-B-32", "ViT-B-32: pretrained: which weights? A file, or a tag of open_clip"),
        ("student.model=local-dir:none", "/none: no open_clip_config.json in "),
        ("student.model=assets:none", "assets:none: no open_clip_config.json"),
        ("student.prompt_depth=9", "student.prompt_depth: "),
        ("teacher.text_prompt_depth=9", "teacher.text_prompt_depth: "),
        ("student.image_size=64", "image_size"),
        ("data.root=none", "none: no such folder; root must be the folder of the data set"),
        ("data.dataset=caltech101", f"{SPLIT}: no such split file"),
        ("data.shots=6", "training images, data.shots asks for 6"),
        ("train.batch_size=21", "20 training images, fewer than train.batch_size: 21"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--dry-run",)], ids=["tune", "plan"])
def test_a_setting_that_cannot_work_is_refused(
    tune: Callable[..., Tune], setting: str, words: str, flags: tuple[str, ...]
) -> None:
    ended = tune("--set", setting, *flags)
    assert words in ended.refusal
    assert not ended.run.exists()


# Weights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["other architecture", "truncated", "none"])
def test_weights_that_do_not_fit_are_refused(
    tune: Callable[..., Tune], world: Path, tmp_path: Path, damage: str
) -> None:
    folder = shutil.copytree(world / "student", tmp_path / "student")
    weights = folder / "open_clip_model.safetensors"
    if damage == "none":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:100_000])
    else:
        shutil.copy(world / "teacher" / weights.name, weights)
    ended = tune("--set", f"student.model=local-dir:{folder}")
    assert f"local-dir:{folder}" in ended.refusal
    assert not ended.run.exists()


# Photographs ------------------------------------------------------------------------------------


def parts(root: Path) -> Path:
    for part in ("train", "test"):
        outer.photographs(root / part)
    return root


def truncate(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:60])


def one_class(root: Path) -> None:
    outer.photographs(root, classes=outer.CLASSES[:1])


def no_class(root: Path) -> None:
    root.mkdir()


def empty_class(root: Path) -> None:
    (outer.photographs(root) / "fig").mkdir()


def few_images(root: Path) -> None:
    outer.photographs(root, images=2)


def class_missing_in_test(root: Path) -> None:
    shutil.rmtree(parts(root) / "test" / "cherry")


def class_missing_in_train(root: Path) -> None:
    shutil.rmtree(parts(root) / "train" / "cherry")


def broken_image(root: Path) -> None:
    truncate(outer.photographs(root) / "berry" / "03.png")


def text_as_image(root: Path) -> None:
    (outer.photographs(root) / "berry" / "03.png").write_text("<html>not found</html>")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (one_class, "only one class; a classifier needs at least two"),
        (no_class, "no class folders; expected root/<class>/<image>"),
        (empty_class, "fig: no images; add some or remove the class"),
        (few_images, "class 'apple' has 2 images, 3 are needed"),
        (class_missing_in_test, "test/cherry: no such folder; each class of train has one"),
        (class_missing_in_train, "test/cherry: class is not in train"),
        (broken_image, "03.png"),
        (text_as_image, "03.png"),
    ],
)
def test_photographs_that_cannot_work_are_refused(
    tune: Callable[..., Tune], tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path / "photographs")
    ended = tune("--set", f"data.root={tmp_path / 'photographs'}")
    assert words in ended.refusal
    assert not ended.run.exists()
    assert not list(tmp_path.glob("cache/pixels/*/store.json"))


def test_a_truncated_jpeg_is_refused_or_left_out_as_the_study_says(
    tune: Callable[..., Tune], tmp_path: Path
) -> None:
    from PIL import Image

    root = outer.photographs(tmp_path / "photographs", images=12)
    image = root / "berry" / "03.jpg"
    Image.open(root / "berry" / "03.png").save(image)
    (root / "berry" / "03.png").unlink()
    truncate(image)
    settings = ("--set", f"data.root={root}")
    assert "berry/03.jpg" in tune(*settings).refusal
    left_out = tune(*settings, "--set", "data.skip_broken=true")
    assert isinstance(left_out.result.exception, AssertionError)
    assert str(left_out.result.exception) == "Ray was started"


def listed(root: Path, **change: list[list[object]]) -> Path:
    """A data set in CoOp's layout; `change` replaces lists of its split file."""
    images = root / "101_ObjectCategories"
    outer.photographs(images, images=6)
    places = {"train": (0, 1, 2), "val": (3,), "test": (4, 5)}
    split: Tree = {
        part: [
            [f"{name}/{n:02}.png", label, name] for label, name in enumerate(outer.CLASSES) for n in numbers
        ]
        for part, numbers in places.items()
    }
    (root / SPLIT).write_text(json.dumps(split | {key: split[key] + rows for key, rows in change.items()}))
    return root


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (["apple/99.png", 0, "apple"], "1 of 25 listed images are missing, the first is"),
        (["../../secret.png", 0, "apple"], "leaves the image folder; paths must stay inside it"),
        (["/etc/passwd", 0, "apple"], "leaves the image folder; paths must stay inside it"),
        (["apple/00.png", 0, "apple"], "keep it in one"),
    ],
)
def test_a_split_file_that_names_other_files_is_refused(
    tune: Callable[..., Tune], tmp_path: Path, row: list[object], words: str
) -> None:
    root = listed(tmp_path / "set", test=[row])
    ended = tune("--set", f"data.root={root}", "--set", "data.dataset=caltech101")
    assert words in ended.refusal
    assert not ended.run.exists()


def test_a_full_disk_is_noticed_before_decoding(
    tune: Callable[..., Tune], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100_000, 99_000, 1_000))
    ended = tune("--set", "data.pixels=store")
    assert "the decoded images need 122,880 bytes, 1,000 are free" in ended.refusal
    assert "COMKD_CACHE" in ended.refusal
    assert not ended.run.exists()
    assert not list(tmp_path.glob("cache/pixels/*/*"))


# Run directories --------------------------------------------------------------------------------


def test_a_study_that_has_begun_is_not_begun_again(
    tune: Callable[..., Tune], world: Path, tmp_path: Path
) -> None:
    run = began(tmp_path / "reports" / "tiny", world)
    before = (run / "study.yaml").read_bytes()
    assert "this study has begun; add --resume to go on, or --set study=NAME" in tune().refusal
    assert [path.name for path in run.iterdir()] == ["study.yaml"]
    assert (run / "study.yaml").read_bytes() == before


def test_what_a_study_takes_is_told_also_when_it_has_begun(
    tune: Callable[..., Tune], world: Path, tmp_path: Path
) -> None:
    run = began(tmp_path / "reports" / "tiny", world)
    words = tune("--dry-run", "--set", "train.epochs=3").result.output
    assert "has begun                  --resume goes on there; --set study=NAME makes another" in words
    assert "steps an arm" in words
    assert json.loads(tune("--dry-run", "--json").result.output)["begun"] is True
    (run / "records").mkdir()
    (run / "records" / "cut.json").write_text("{")  # a plan moves nothing
    words = tune("--dry-run", "--resume").result.output
    assert "has begun                  1 record of arms so far; what follows counts all arms" in words
    assert (run / "records" / "cut.json").read_text() == "{"
    assert {path.name for path in run.iterdir()} == {"study.yaml", "records"}


def test_results_without_a_study_file_are_not_overwritten(tune: Callable[..., Tune], tmp_path: Path) -> None:
    run = tmp_path / "reports" / "tiny"
    results.write_record(run, *fake_run.arm(0, {}))
    results.compact(run)
    assert "this study has begun" in tune().refusal


def test_where_nothing_has_begun_nothing_is_resumed(tune: Callable[..., Tune]) -> None:
    ended = tune("--resume")
    assert "nothing to resume here; run without --resume" in ended.refusal
    assert not ended.run.exists()


def test_a_sample_report_is_nothing_to_resume(tune: Callable[..., Tune], world: Path, tmp_path: Path) -> None:
    run = began(tmp_path / "reports" / "tiny", world)
    (run / "provenance.json").write_text(json.dumps({"sample": True}))
    assert "nothing to resume here" in tune("--resume").refusal
    passed = tune()
    assert str(passed.result.exception) == "Ray was started"
    assert (run / "study.yaml").exists()


def test_a_study_that_changed_is_not_resumed_and_the_keys_are_named(
    tune: Callable[..., Tune], world: Path, tmp_path: Path
) -> None:
    began(tmp_path / "reports" / "tiny", world)
    settings = ("--set", "train.lr=0.5", "--set", "data.shots=1", "--set", "compute.cpus=2")
    refusal = tune("--resume", *settings).refusal
    assert "--resume goes on with the same study, but data.shots, train.lr changed; " in refusal
    assert "tiny/study.yaml is the one that began, --fork NAME makes another of it" in refusal


@pytest.mark.parametrize(
    "setting", ["compute.cpus=2", "note=other", "search.arms_per_trial=auto", "data.pixels=stream"]
)
def test_what_does_not_change_the_search_may_change_on_the_way(
    tune: Callable[..., Tune], world: Path, tmp_path: Path, setting: str
) -> None:
    began(tmp_path / "reports" / "tiny", world)
    assert str(tune("--resume", "--set", setting).result.exception) == "Ray was started"


def test_two_processes_never_work_on_one_study(tune: Callable[..., Tune], tmp_path: Path) -> None:
    lock = tmp_path / "reports" / ".tiny.lock"
    lock.parent.mkdir()
    words = [sys.executable, "-c", HOLD + "time.sleep(600)", str(lock)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            ended = tune()
            assert "another comkd-ray works on this study" in ended.refusal
            assert not ended.run.exists()
        finally:
            holder.kill()
    assert str(tune().result.exception) == "Ray was started"


def test_ctrl_c_before_the_search_ends_with_130_and_leaves_nothing(
    tune: Callable[..., Tune], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "connect", interrupted)
    ended = tune()
    assert ended.result.exit_code == 130
    assert not ended.run.exists()


# Reports ----------------------------------------------------------------------------------------


def test_a_report_is_rebuilt_from_the_results_alone(tmp_path: Path) -> None:
    tree = fake_run.study_tree(fake_run.SPACE)
    run = fake_run.write(tmp_path / "run", fake_run.searched_arms(), tree, fake_run.provenance())
    shutil.rmtree(run / "records", ignore_errors=True)
    result = CliRunner().invoke(cli.main, ["report", str(run)])
    assert (result.exit_code, result.output) == (0, f"{run / 'report.html'}\n")
    assert (run / "report.html").stat().st_size > 100_000


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    result = CliRunner().invoke(cli.main, ["report", str(tmp_path / "run")])
    assert "run `comkd-ray tune` first" in Tune(result, tmp_path).refusal
    assert CliRunner().invoke(cli.main, ["report", "nowhere"]).exit_code == 2


def ended(run: Path, **how: Any) -> SimpleNamespace:
    """How a study ended; all went well unless something else is said."""
    well = {"best": None, "arms": 4, "failed": 0, "left": 0, "unasked": 0, "stopped": None}
    return SimpleNamespace(run=run, seconds=9.0, **{**well, "interrupted": False, **how})


@pytest.mark.parametrize("kind", fake_run.KINDS)
def test_the_last_words_are_in_the_scores_of_the_protocol(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: tuple[str, str]
) -> None:
    best, _ = fake_run.arm(0, {"train.seed": 1}, tree=fake_run.rows_tree(kind))
    outcome = ended(tmp_path, best=best, arms=1)
    cli_end.tell(outcome, as_json=False, quiet=False, how_to_go_on="")
    _, line, *warned = capsys.readouterr().out.splitlines()
    chosen = {"strict": "val_", "promptkd": "test_"}[kind[1]]
    assert line.startswith(f"best by {chosen}")
    assert line.endswith("%")
    assert ("test base" in line, "test accuracy" in line) == (
        kind[0] == "base_to_novel",
        kind[0] != "base_to_novel",
    )
    assert bool(warned) == (kind[1] == "promptkd")


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ({"best": {}}, 0),
        ({"best": {}, "left": 5, "unasked": 5, "stopped": "--max-arms 4"}, 0),
        ({"best": {}, "left": 5, "unasked": 4, "stopped": "--max-arms 4"}, 3),
        ({"best": {}, "left": 1}, 3),
        ({"best": {}, "failed": 1}, 3),
        ({}, 1),
        ({"best": {}, "interrupted": True, "left": 2}, 130),
    ],
)
def test_a_budget_is_no_failure_and_a_lost_arm_is(tmp_path: Path, how: Tree, code: int) -> None:
    assert cli_end.exit_code(ended(tmp_path, **how)) == code


def test_a_study_that_a_budget_ended_says_why_and_how_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = ended(tmp_path, left=5, unasked=5, stopped="--max-arms 4: 4 arms ended, 0 run")
    cli_end.tell(outcome, False, False, cli._how_to_go_on(None, None, tmp_path))
    assert capsys.readouterr().out.splitlines() == [
        "4 arms ended, 0 failed, 5 left, 9 s",
        "stopped by --max-arms 4: 4 arms ended, 0 run",
        "the same command with --resume goes on",
    ]
    cli_end.tell(outcome, True, False, "")
    assert json.loads(capsys.readouterr().out)["stopped"] == "--max-arms 4: 4 arms ended, 0 run"


def test_more_arms_are_not_added_twice_by_repeating_the_command() -> None:
    assert (
        cli._how_to_go_on(None, 5, Path("r"))
        == "the same command with --resume and without --add-arms goes on"
    )


# Going on, forks, large grids -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["--add-arms", "4"], "--add-arms: goes on with a study that has begun; add --resume"),
        (["--fork", "other", "--resume"], "--fork: begins another study; without --resume"),
        (["--fork", "other"], "reports/tiny holds no records to take over"),
        (
            ["--set", "search.space={train.seed: {int: [1, 20000]}}"],
            "this grid has 20,000 arms, more than 10,000; search fewer values, or add --yes",
        ),
    ],
)
def test_flags_that_make_no_sense_together_are_refused(
    tune: Callable[..., Tune], words: list[str], refusal: str
) -> None:
    ended = tune(*words)
    assert refusal in ended.refusal
    assert not ended.run.exists()


@pytest.mark.parametrize(
    "words",
    [["--budget-hours", "0"], ["--max-arms", "0"], ["--until", "-1"], ["--resume", "--add-arms", "0"]],
)
def test_a_budget_of_nothing_is_bad_input(tune: Callable[..., Tune], words: list[str]) -> None:
    assert tune(*words).result.exit_code == 2


def test_a_large_grid_with_a_yes_is_taken_at_its_word(tune: Callable[..., Tune]) -> None:
    passed = tune("--set", "search.space={train.seed: {int: [1, 10001]}}", "--yes")
    assert str(passed.result.exception) == "Ray was started"


def test_a_grid_takes_no_more_arms(tune: Callable[..., Tune], world: Path, tmp_path: Path) -> None:
    began(tmp_path / "reports" / "tiny", world)
    assert "--add-arms: a grid has all its arms already" in tune("--resume", "--add-arms", "2").refusal


def test_a_sampled_study_goes_on_with_more_arms(
    tune: Callable[..., Tune], world: Path, tmp_path: Path
) -> None:
    content = outer.tree(world, outer.tpe(4))
    run = tmp_path / "reports" / "tiny"
    run.mkdir(parents=True)
    outer.write_yaml(run / "study.yaml", content)
    passed = tune("--resume", "--add-arms", "2", content=content)
    assert str(passed.result.exception) == "Ray was started"


def forkable(run: Path, world: Path) -> Path:
    """A run with one record."""
    began(run, world)
    one = outer.record("abc")
    results.write_record(run, one["arm"], one["epochs"])
    return run


def test_a_fork_shows_what_differs_before_anything_runs(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forkable(tmp_path / "reports" / "tiny", world)
    path = outer.write_yaml(tmp_path / "tiny.yaml", outer.tree(world))
    words = ["tune", str(path), "--fork", "other", "--set", "train.lr=0.5"]
    dry = CliRunner().invoke(cli.main, [*words, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    lines = [" ".join(line.split()) for line in dry.stdout.splitlines()]
    assert lines[:2] == [
        f"study other, into {tmp_path / 'reports' / 'other'}",
        "changed train.lr: 0.02 -> 0.5",
    ]
    begun = CliRunner().invoke(cli.main, words)
    assert str(begun.exception) == "Ray was started"
    assert "train.lr: 0.02 -> 0.5\n" in begun.stderr
    assert not (tmp_path / "reports" / "other").exists()


def test_a_fork_never_touches_a_study_that_is_there(
    tune: Callable[..., Tune], world: Path, tmp_path: Path
) -> None:
    forkable(tmp_path / "reports" / "tiny", world)
    other = tmp_path / "reports" / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    assert "other exists; nothing was written" in tune("--fork", "other", "--set", "train.lr=0.5").refusal
    assert [path.name for path in other.iterdir()] == ["notes.txt"]


def test_a_dry_run_says_what_chooses_the_arms(world: Path, tmp_path: Path) -> None:
    path = outer.write_yaml(tmp_path / "tiny.yaml", outer.tree(world, outer.tpe(9, space=outer.GRID)))
    plan = CliRunner().invoke(cli.main, ["tune", str(path), "--dry-run"])
    assert "all 4 of a finite space, each once: tpe is not asked" in plan.stdout
    assert "arms                       4\n" in plan.stdout


def test_a_damaged_table_is_mended_before_the_report(tmp_path: Path) -> None:
    tree = fake_run.study_tree(fake_run.SPACE)
    run = fake_run.write(tmp_path / "run", fake_run.searched_arms(), tree, fake_run.provenance())
    (run / "results" / "arms" / "part-0.parquet").write_bytes(b"PAR1 no")
    result = CliRunner().invoke(cli.main, ["report", str(run)])
    assert (result.exit_code, result.stdout) == (0, f"{run / 'report.html'}\n")
    assert "results/arms/part-0.parquet: cannot be read; it lies in quarantine/" in result.stderr
