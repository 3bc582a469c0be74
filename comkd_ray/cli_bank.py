"""`comkd-ray bank`: list the banks in the cache, build a study's, read them whole, remove old ones."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from comkd_ray.errors import UserError
from comkd_ray.exits import FAULTS, plain_errors

if TYPE_CHECKING:
    from comkd_ray.bank_care import Entry
    from comkd_ray.progress import Screen

COLUMNS = ("key", "state", "images", "views", "width", "shards", "size", "created", "used", "of")

_as_json = click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")


@click.group(short_help="List, check, build and remove banks in the cache.")
def bank() -> None:
    """Banks in the cache: what frozen towers said of every image and view."""


@bank.command(short_help="List the banks, the last used first.")
@_as_json
@plain_errors
def ls(as_json: bool) -> None:
    """List the banks, the last used first. `damaged` ones are mended by the next study that needs them."""
    from comkd_ray.bank_care import entries
    from comkd_ray.cache import cache_root

    found = entries(cache_root())
    if as_json:
        click.echo(json.dumps([vars(entry) for entry in found]))
    elif not found:
        click.echo(f"no banks in {cache_root()}; comkd-ray bank build STUDY.yaml makes some")
    else:
        click.echo(_table(found))


@bank.command(short_help="Read banks whole; name every damaged file.")
@click.argument("keys", nargs=-1)
@_as_json
@plain_errors
def verify(keys: tuple[str, ...], as_json: bool) -> None:
    """Read banks whole (those whose keys begin with KEYS, or all) and name every damaged file.

    A damaged shard is set aside, and the next study that needs the bank makes it again. Exit code 5
    where there is damage.
    """
    from comkd_ray.bank_care import chosen, verify
    from comkd_ray.cache import cache_root

    cache, damaged = cache_root(), []
    with _screen(as_json) as screen:
        for entry in chosen(cache, keys):
            damages = verify(cache, entry, lambda s, d, n: screen.show(s, d, n, _size(d)))
            damaged += damages
            if as_json:
                rows = [{"file": str(d.file), "expected": d.expected, "actual": d.actual} for d in damages]
                click.echo(json.dumps({"event": "bank", "key": entry.key, "damages": rows}))
                continue
            click.echo(f"{entry.key}: {'damaged' if damages else f'{entry.shards} shards, as written'}")
            for damage in damages:
                click.echo(f"  {damage.file}: expected {damage.expected}, found {damage.actual}")
    if damaged:
        sys.exit(FAULTS)


@bank.command(short_help="Remove unfinished and old banks.")
@click.option("--keep-days", default=30.0, show_default=True, type=click.FloatRange(min=0), metavar="N",
              help="Keep banks that were opened within N days.")  # fmt: skip
@click.option("--force", is_flag=True, help="Allow less than one day: no study may be running.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@_as_json
@plain_errors
def gc(keep_days: float, force: bool, dry_run: bool, as_json: bool) -> None:
    """Remove unfinished banks, and those not opened for N days. One that is being built stays.

    A study opens its banks whenever a cohort begins, so keep more days than a cohort lasts.
    """
    if keep_days < 1 and not force:
        raise UserError(
            f"--keep-days: {keep_days:g} may take banks that a study is using; keep 1 at least, or --force"
        )
    from comkd_ray.bank_care import collect
    from comkd_ray.cache import cache_root

    removed = collect(cache_root(), keep_days, dry_run)
    if as_json:
        click.echo(json.dumps([vars(entry) for entry in removed]))
        return
    if removed:
        click.echo(_table(removed))
    total = _size(sum(entry.bytes for entry in removed))
    click.echo(f"{len(removed)} banks, {total}: {'would be removed' if dry_run else 'removed'}")


@bank.command(short_help="Prepare STUDY as far as its banks.")
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key of the study file.")
@_as_json
@plain_errors
def build(study: Path, sets: tuple[str, ...], as_json: bool) -> None:
    """Prepare STUDY as far as its banks: pixels, teacher, features; train no student.

    Runs in this process, on its GPU if there is one. Several at once share the work, on any nodes that
    share the cache. `comkd-ray tune` uses what it leaves.
    """
    from comkd_ray.study_file import load

    loaded = load(study, sets)  # before the heavy imports: a mistake is answered at once
    from comkd_ray.cluster import set_environment
    from comkd_ray.progress import quiet_libraries

    quiet_libraries(verbose=False)
    set_environment(None)
    from comkd_ray.cache import cache_root
    from comkd_ray.ray_train import prepare_here

    with _screen(as_json) as screen:
        card = prepare_here(loaded, cache_root(), lambda s, d, n: screen.show(s, d, n, f"{d}/{n}"))
    banks = {"train": card.train_bank, "val": card.val_bank}
    if card.student_banks is not None:
        banks |= {"student train": card.student_banks[0], "student val": card.student_banks[1]}
    if as_json:
        click.echo(json.dumps({"event": "end", "banks": banks, "seconds": card.stages}))
        return
    for name, key in banks.items():
        click.echo(f"{name} bank: {key}")


def _screen(as_json: bool) -> Screen:
    from comkd_ray.progress import Screen

    return Screen("json" if as_json else "rich" if sys.stderr.isatty() else "plain")


def _table(entries: list[Entry]) -> str:
    """Columns as wide as their widest value."""
    rows = [COLUMNS, *map(_row, entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in row).rstrip() for row in cells)


def _row(entry: Entry) -> tuple[str, ...]:
    of = " ".join(f"{name}={value}" for name, value in entry.of.items())
    known: dict[str, Any] = vars(entry) | {
        "of": of,
        "size": _size(entry.bytes),
        "created": _day(entry.created),
        "used": _day(entry.used),
    }
    return tuple("-" if known[name] in (None, "") else str(known[name]) for name in COLUMNS)


def _day(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%d", time.localtime(seconds))


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
