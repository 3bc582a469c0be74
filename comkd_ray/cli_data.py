"""`comkd-ray data`: the data sets that a study may name, and whether one on disk is right."""

from __future__ import annotations

import difflib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from comkd_ray.errors import UserError
from comkd_ray.exits import FAULTS, plain_errors

if TYPE_CHECKING:
    from comkd_ray.data.inspection import Inspection

PATIENCE = 2.0
"""Seconds before progress is shown."""


@click.group()
def data() -> None:
    """List the known data sets, and check one on disk.

    \b
    Examples:
      comkd-ray data ls
      comkd-ray data check oxford_pets --root DATA/oxford_pets
    """


@data.command("ls", short_help="List the published data sets.")
@click.option("--json", "as_json", is_flag=True, help="One JSON list on stdout.")
@plain_errors
def list_data_sets(as_json: bool) -> None:
    """List the published data sets: folder, counts, what tells their parts, and template."""
    from comkd_ray.data.datasets import ROWS
    from comkd_ray.data.splits import base_count

    rows = []
    for name, row in ROWS.items():
        base = base_count(row.classes) if row.halves else None
        rows.append(
            {
                "name": name,
                "folder": row.folder,
                "classes": row.classes,
                "base": base,
                "novel": None if base is None else row.classes - base,
                "train": row.train,
                "val": row.val,
                "test": row.test,
                "split": row.split,
                "template": row.template,
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for line in _columns([tuple(rows[0]), *(tuple(map(_cell, row.values())) for row in rows)]):
        click.echo(line)
    click.echo(
        "also: folder (root/<class>/*, or root/{train,val,test}/<class>/*), split_file (data.split: FILE)"
    )


@data.command(short_help="Compare a data set on disk with the published one.")
@click.argument("name")
@click.option("--root", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Folder of the data set.")  # fmt: skip
@click.option("--make-split", is_flag=True, help="Where the split file is missing, try a split of our own.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@plain_errors
def check(name: str, root: Path, make_split: bool, as_json: bool) -> None:
    """Compare the data set NAME in DIR with the published one. Exit code 5 says that it has faults."""
    from comkd_ray.config import Data
    from comkd_ray.data.datasets import ROWS
    from comkd_ray.data.inspection import inspect
    from comkd_ray.progress import Screen

    if name not in ROWS:
        near = difflib.get_close_matches(name, ROWS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(ROWS)}"
        raise UserError(f"data set '{name}' is unknown; {hint}")
    asked = Data.model_validate({"dataset": name, "root": str(root), "make_split": make_split})
    begun = time.monotonic()
    with Screen("quiet" if as_json else "rich" if sys.stderr.isatty() else "plain") as screen:

        def show(stage: str, done: int, total: int) -> None:
            if time.monotonic() - begun > PATIENCE:
                screen.show(stage, done, total, f"{done:,}/{total:,} folders")

        found = inspect(asked, root, show)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=1))
    else:
        _tell(found)
    if found.faults:
        sys.exit(FAULTS)


def _tell(found: Inspection) -> None:
    click.echo(f"{found.dataset} in {found.root}")
    for name, there in found.there.items():
        click.echo(f"  {'there  ' if there else 'MISSING'}  {name}")
    if found.found:
        click.echo(f"  parts: {found.split}")
        click.echo(f"  {found.images:,} images listed, {found.missing:,} missing")
        for path in found.first_missing:
            click.echo(f"    {path}")
        table = [(name, _cell(count), _cell(found.published[name])) for name, count in found.found.items()]
        for line in _columns([("", "found", "published"), *table]):
            click.echo(f"  {line}")
    for fault in found.faults:
        click.echo(f"fault: {fault}")
    count = len(found.faults)
    click.echo(f"{count} fault{'s' if count > 1 else ''}" if count else "all is right")


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of equally wide columns; numbers stand to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [cell == "-" or cell[:1].isdigit() for cell in rows[1]]
    return [
        "  ".join(
            cell.rjust(width) if aligned else cell.ljust(width)
            for cell, width, aligned in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
