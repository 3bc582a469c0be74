"""`comkd-ray bench`: how fast this is on this machine, against the published loop and against its limits."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from comkd_ray.exits import plain_errors

QUICKSTART = "quickstart"


@click.group(short_help="Measure this machine against the published loop.")
def bench() -> None:
    """Measure this machine: whole searches against the published loop, or single steps.

    \b
    Examples:
      comkd-ray bench sweep                     16 arms in six ways, about 15 minutes on 2 cores
      comkd-ray bench sweep STUDY.yaml --set data.root=DIR --baseline-arms 16
      comkd-ray bench growth                    16 arms against 64
      comkd-ray bench step --json               steps, bank and pixels against the machine's limits
      comkd-ray bench scale --arms 1000         what a driver carries; ImageNet on 8, 64 and 1,000 GPUs
    """


def _load(study: Path | None, sets: tuple[str, ...]) -> Any:
    from comkd_ray.progress import quiet_libraries
    from comkd_ray.study_file import load, search_spaces

    loaded = load(study or search_spaces() / f"{QUICKSTART}.yaml", sets)
    quiet_libraries(verbose=False)
    return loaded


@bench.command(short_help="The same arms as published and in our ways, timed.")
@click.argument("study", required=False, type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key of the study file.")
@click.option("--arms", default=16, show_default=True, help="Arms of the grid, a multiple of 8.")
@click.option("--baseline-arms", default=2, show_default=True, type=click.IntRange(min=1),
              help="Arms that the published loop really runs; its time is scaled to all.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@plain_errors
def sweep(study: Path | None, sets: tuple[str, ...], arms: int, baseline_arms: int, as_json: bool) -> None:
    """Train the same arms as published and in our ways; STUDY gives data, towers and epochs."""
    loaded = _load(study, sets)
    from comkd_ray.bench_sweep import Sweep
    from comkd_ray.bench_table import lines

    with tempfile.TemporaryDirectory(prefix="comkd-bench-") as folder:
        found = Sweep(loaded, arms, baseline_arms, Path(folder), _say).run()
    _show(found, lines(found), as_json)


@bench.command(short_help="A search of few arms and one of many, timed.")
@click.argument("study", required=False, type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key of the study file.")
@click.option(
    "--arms", nargs=2, default=(16, 64), show_default=True, help="Few arms and many, multiples of 8."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@plain_errors
def growth(study: Path | None, sets: tuple[str, ...], arms: tuple[int, int], as_json: bool) -> None:
    """Time a search of few arms and one of many: how seconds and the driver's memory grow."""
    loaded = _load(study, sets)
    from comkd_ray.bench_sweep import Sweep
    from comkd_ray.bench_table import growth_lines

    with tempfile.TemporaryDirectory(prefix="comkd-bench-") as folder:
        found = Sweep(loaded, arms[0], 1, Path(folder), _say).growth(arms)
    _show(found, growth_lines(found), as_json)


@bench.command(short_help="A step, the bank and the pixels against their limits.")
@click.argument("study", required=False, type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key of the study file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@plain_errors
def step(study: Path | None, sets: tuple[str, ...], as_json: bool) -> None:
    """Time a student step, the bank and the pixel store against what this machine can do at best."""
    loaded = _load(study, sets)
    from comkd_ray.bench_step import bench_step, lines
    from comkd_ray.cache import cache_root

    found = bench_step(loaded, cache_root())
    _show(found, lines(found), as_json)


@bench.command(short_help="What the driver takes for many arms; ImageNet simulated.")
@click.argument("study", required=False, type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key of the study file.")
@click.option("--arms", default=1000, show_default=True, type=click.IntRange(min=1),
              help="Arms that the driver carries, and that the clusters search.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@plain_errors
def scale(study: Path | None, sets: tuple[str, ...], arms: int, as_json: bool) -> None:
    """Measure what the driver takes for many arms of STUDY, and simulate ImageNet on 8, 64 and 1,000 GPUs."""
    loaded = _load(study, sets)
    from dataclasses import asdict

    from comkd_ray.cluster import set_environment

    set_environment(None)
    from comkd_ray.bench_scale import bench_scale, lines
    from comkd_ray.scale import all_scales, table

    with tempfile.TemporaryDirectory(prefix="comkd-bench-") as folder:
        found = bench_scale(loaded, arms, Path(folder) / "run")
    clusters = all_scales(arms)
    told = [*lines(found), "", *table(clusters)]
    _show(found | {"clusters": [asdict(one) for one in clusters]}, told, as_json)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _show(found: dict[str, Any], told: list[str], as_json: bool) -> None:
    click.echo(json.dumps(found) if as_json else "\n".join(told))
