"""`comkd-ray teacher`: build, ls and show on the tiny world, without a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import outer
import pytest
from click.testing import CliRunner, Result

from comkd_ray import cli, cli_teacher

pytestmark = pytest.mark.usefixtures("cpu", "alone")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return outer.world(tmp_path_factory.mktemp("cli_teacher"))


@pytest.fixture
def build(world: Path, tmp_path: Path) -> Callable[..., Result]:
    """build("--set", "teacher.seed=2") -> how `teacher build` of the tiny study ended."""
    path = outer.write_yaml(tmp_path / "tiny.yaml", outer.tree(world))
    return lambda *words: teacher("build", str(path), *words)


def teacher(*words: str) -> Result:
    return CliRunner().invoke(cli.main, ["teacher", *words])


def shown(*words: str) -> Any:
    result = teacher(*words, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def refusal(result: Result) -> str:
    """The one line, after lines of progress."""
    assert (result.exit_code, result.stdout) == (2, "")
    *before, line = result.stderr.splitlines()
    assert all(" %  " in one for one in before)
    assert line.startswith("comkd-ray: ")
    return line


# Build ------------------------------------------------------------------------------------------


def test_build_leaves_a_teacher_and_no_run(
    build: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.chdir(tmp_path)
    result = build()
    assert result.exit_code == 0, (result.output, result.exception)
    (card,) = shown("ls")
    assert result.stdout.startswith(f"key                        {card['key']}\n")
    assert "test_harmonic_mean" in result.stdout
    assert "tune teacher: 100 %" in result.stderr
    assert not ray.is_initialized()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "tiny.yaml"]
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"pixels", "teachers", "banks"}


def test_build_again_tunes_nothing_and_another_seed_is_another_teacher(
    build: Callable[..., Result],
) -> None:
    first, again = build("--json"), build("--json")
    other = build("--json", "--set", "teacher.seed=2")
    cards = [json.loads(result.stdout.splitlines()[-1]) for result in (first, again, other)]
    assert cards[0] == cards[1]
    assert cards[2]["seed"] == 2
    told = [[json.loads(line).get("stage") for line in one.stdout.splitlines()] for one in (first, again)]
    assert "teacher" in told[0]
    assert "teacher" not in told[1]
    assert {card["key"] for card in shown("ls")} == {cards[0]["key"], cards[2]["key"]}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("teacher.average_mean=2", "teacher: average_mean: 2 lies outside epochs 1 to 1"),
        ("teacher.prompt_depth=9", "teacher.prompt_depth: "),
        ("data.shots=99", "has 5 training images"),
        ("teacher.keeep=best", "teacher.keeep: unknown key; did you mean 'teacher.keep'?"),
    ],
)
def test_a_mistake_is_one_line(build: Callable[..., Result], setting: str, message: str) -> None:
    assert message in refusal(build("--set", setting))
    assert shown("ls") == []


def test_a_missing_study_file_is_named() -> None:
    assert "none.yaml: cannot be read" in refusal(teacher("build", "none.yaml"))


# Look -------------------------------------------------------------------------------------------


def card(cache: Path, key: str, **more: Any) -> None:
    folder = cache / "teachers" / key
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(json.dumps(more))


def test_an_empty_cache_says_so(tmp_path: Path) -> None:
    result = teacher("ls")
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)
    assert result.stdout.startswith(f"no teachers in {tmp_path / 'cache'}; ")
    assert shown("ls") == []
    assert "none of the 0 teachers" in refusal(teacher("show", "ab"))


def test_the_list_is_aligned_and_tells_accuracies_of_either_protocol(tmp_path: Path) -> None:
    known = {"created": "2026-01-02T03:04:05+00:00", "model": "ViT-L-14", "learns": "base", "shots": 16}
    card(tmp_path / "cache", "ab12", **known, val_base_accuracy=91.234, test_harmonic_mean=80.0)
    card(tmp_path / "cache", "cd34", **known, dataset="imagenet", val_accuracy=None, test_accuracy=70.5)
    lines = teacher("ls").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["key", "created", "model", "dataset", "learns", "shots", "seed", "keep", "val", "test"],
        ["ab12", "2026-01-02", "ViT-L-14", "-", "base", "16", "-", "-", "91.23", "80"],
        ["cd34", "2026-01-02", "ViT-L-14", "imagenet", "base", "16", "-", "-", "-", "70.5"],
    ]
    assert {line.index(word) for line, word in zip(lines, ("test", "80", "70.5"), strict=True)} == {
        lines[0].index("test")
    }


def test_show_takes_a_unique_prefix(tmp_path: Path) -> None:
    card(tmp_path / "cache", "ab12", seed=3, config={"lr": 0.005})
    card(tmp_path / "cache", "ab34", seed=4)
    assert teacher("show", "ab1").stdout == "key        ab12\nseed       3\nconfig.lr  0.005\n"
    assert shown("show", "ab1") == {"key": "ab12", "seed": 3, "config": {"lr": 0.005}}
    assert "2 keys begin so (ab12, ab34)" in refusal(teacher("show", "ab"))


@pytest.mark.parametrize("command", sorted(cli_teacher.teacher.commands))
def test_every_command_and_option_says_what_it_does(command: str) -> None:
    result = teacher(command, "--help")
    assert result.exit_code == 0
    one = cli_teacher.teacher.commands[command]
    assert one.help
    assert [
        o.name for o in one.params if o.param_type_name == "option" and not getattr(o, "help", None)
    ] == []


def test_looking_loads_no_heavy_library(tmp_path: Path) -> None:
    code = "import sys; from comkd_ray.cli import main; main(['teacher', 'ls'], standalone_mode=False); "
    code += "print(sorted({'torch', 'ray', 'open_clip', 'polars'} & set(sys.modules)))"
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
