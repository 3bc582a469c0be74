"""`comkd-ray teacher`: build a study's teacher, list those in the cache, show one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from comkd_ray.exits import plain_errors

COLUMNS = ("key", "created", "model", "dataset", "learns", "shots", "seed", "keep", "val", "test")


@click.group()
def teacher() -> None:
    """Teachers in the cache: build one, list them, show one."""


@teacher.command(short_help="List the teachers of the cache.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array of all cards.")
@plain_errors
def ls(as_json: bool) -> None:
    """List the teachers that the cache holds, oldest first; accuracies in percent."""
    from comkd_ray.cache import cache_root, teacher_cards

    cards = teacher_cards(cache_root())
    if as_json:
        click.echo(json.dumps(cards))
    elif not cards:
        click.echo(f"no teachers in {cache_root()}; comkd-ray teacher build STUDY.yaml makes one")
    else:
        click.echo(_aligned([COLUMNS, *map(_row, cards)]))


@teacher.command(short_help="Show the card of a teacher.")
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="The card as one JSON object.")
@plain_errors
def show(key: str, as_json: bool) -> None:
    """Show the card of the teacher whose key begins with KEY."""
    from comkd_ray.cache import cache_root, find_teacher

    _tell(find_teacher(cache_root(), key), as_json)


@teacher.command(short_help="Tune the teacher of STUDY, nothing of what follows.")
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key of the study file.")
@click.option("--json", "as_json", is_flag=True, help="Progress and the card as JSON lines on stdout.")
@plain_errors
def build(study: Path, sets: tuple[str, ...], as_json: bool) -> None:
    """Tune the teacher of STUDY and store it in the cache, and nothing of what follows.

    Runs in this process, on its GPU if there is one; `comkd-ray tune` uses the teacher it leaves.
    """
    from comkd_ray.study_file import load

    loaded = load(study, sets)  # before the heavy imports: a mistake is answered at once
    from comkd_ray.cluster import set_environment
    from comkd_ray.progress import Screen, quiet_libraries

    quiet_libraries(verbose=False)
    set_environment(None)
    from comkd_ray.cache import cache_root, find_teacher
    from comkd_ray.ray_train import tune_teacher

    screen = Screen("json" if as_json else "rich" if sys.stderr.isatty() else "plain")
    with screen:
        key = tune_teacher(loaded, cache_root(), lambda s, d, n: screen.show(s, d, n, f"{d}/{n}"))
    _tell(find_teacher(cache_root(), key), as_json)


def _tell(card: dict[str, Any], as_json: bool) -> None:
    from comkd_ray.study_file import flatten

    if as_json:
        click.echo(json.dumps(card))
    else:
        click.echo(_aligned([(name, _text(value)) for name, value in flatten(card).items()]))


def _row(card: dict[str, Any]) -> tuple[str, ...]:
    known = card | {
        "created": str(card.get("created", "-"))[:10],
        "val": card.get("val_base_accuracy", card.get("val_accuracy")),
        "test": card.get("test_harmonic_mean", card.get("test_accuracy")),
    }
    return tuple(_text(known.get(name)) for name in COLUMNS)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def _aligned(rows: list[tuple[str, ...]]) -> str:
    """Columns as wide as their widest value."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in row).rstrip() for row in cells)
