"""`comkd-ray ablate`: what each part of a study is worth, where `tune` finds its best values."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from comkd_ray.cli_end import leave, tell
from comkd_ray.exits import plain_errors


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key of the study file.")
@click.option("--reports", default="reports", type=click.Path(path_type=Path), show_default=True,
              help="Folder of run directories.")  # fmt: skip
@click.option("--from", "source", type=click.Path(path_type=Path), metavar="RUN",
              help="Start from the best arm of this run directory.")  # fmt: skip
@click.option("--until-decided", is_flag=True,
              help="Add seeds to open claims, one at a time; needs --max-seeds.")  # fmt: skip
@click.option("--max-seeds", type=click.IntRange(min=2), metavar="M", help="Most seeds of a claim.")
@click.option("--dry-run", is_flag=True, help="Say what is compared, and what it takes and can show.")
@click.option("--yes", is_flag=True, help="Confirm a design of more than 10,000 cells.")
@click.option("--address", help="Ray cluster to join; else $RAY_ADDRESS, else a local Ray starts.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per event on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Show what Ray says.")
@plain_errors
def ablate(
    study: Path,
    sets: tuple[str, ...],
    reports: Path,
    source: Path | None,
    until_decided: bool,
    max_seeds: int | None,
    dry_run: bool,
    yes: bool,
    address: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Compare the settings of STUDY's `ablate` block, each with the same seeds.

    The same command goes on after Ctrl-C or a crash, with more seeds too: a cell that has a record is never
    trained again, one that failed is tried again, and one that an earlier study in the same folder of
    reports has trained is taken from there.
    """
    from comkd_ray.study_file import load

    loaded = load(study, sets)
    if until_decided or max_seeds is not None:
        from comkd_ray.designs import until_decided as grow

        loaded = grow(loaded, str(study), max_seeds if until_decided else None)
    from comkd_ray.progress import quiet_libraries

    quiet_libraries(verbose)
    from comkd_ray.cluster import set_environment

    set_environment(None if dry_run else address)
    run, compiled = _compile(loaded, study, reports, source, yes)
    if dry_run:
        _show_plan(compiled, run, source, as_json)
        return
    from comkd_ray.progress import Screen
    from comkd_ray.study_run import has_begun, run_study

    screen = Screen("json" if as_json else "quiet" if quiet else "rich" if sys.stderr.isatty() else "plain")
    screen.say(f"ablation {compiled.study}: {study}")
    for what, words in _described(compiled, run, source):
        screen.say(f"{what}: {words}")
    outcome = run_study(compiled, run, screen, has_begun(run), address, verbose)
    tell(outcome, as_json, quiet, "the same command")
    leave(outcome)


def _compile(
    loaded: Any, path: Path, reports: Path, source: Path | None, confirmed: bool
) -> tuple[Path, Any]:
    """The run directory, and the study whose arms are the cells. UserError before anything is written."""
    from comkd_ray.designs import compile_study, keep_rule, run_directory, run_name

    run = run_directory(reports, loaded)
    compile_study(loaded, run_name(loaded), str(path), confirmed)  # mistakes are answered at once
    from comkd_ray.study_file import load
    from comkd_ray.study_run import check_run, has_begun

    begun = load(run / "study.yaml") if has_begun(run) else None
    started = keep_rule(loaded, begun)
    if source is not None:
        from comkd_ray.starting_point import start_from

        started = start_from(started, source, begun)
    compiled = compile_study(started, run_name(loaded), str(path), confirmed)
    check_run(compiled, run, has_begun(run))
    return run, compiled


def _described(study: Any, run: Path, source: Path | None) -> list[tuple[str, str]]:
    """What is compared, what is there already, and what the seeds can show."""
    from comkd_ray.ablation_plan import can_find, describe
    from comkd_ray.ledger import foretell_shared
    from comkd_ray.plan import count_arms, reach_of

    lines = describe(study, count_arms(study), foretell_shared(study, run))
    if source is not None:
        from comkd_ray.starting_point import remarks

        lines += [("starts with", line) for line in remarks(study, source)]
    return [*lines, ("can find", can_find(study, reach_of(study)))]


def _show_plan(study: Any, run: Path, source: Path | None, as_json: bool) -> None:
    """Nothing is started: the ablation in words, then who learns from what and what it takes."""
    from comkd_ray.designs import settings
    from comkd_ray.plan import make_plan

    described, plan = _described(study, run, source), make_plan(study)
    if as_json:
        block = study.ablate.model_dump(mode="json") | {"settings": settings(study)}
        ablation = block | {"words": dict(described)}
        click.echo(json.dumps(json.loads(plan.as_json()) | {"ablation": ablation}))
        return
    known = {what for what, _ in described}
    lines = [*described, *((what, much) for what, much in plan.lines() if what not in known)]
    click.echo(f"{'ablation':<26} {study.study}, into {run}")
    for what, much in lines:
        click.echo(f"{what:<26} {much}")
