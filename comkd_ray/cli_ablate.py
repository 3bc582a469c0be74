"""`comkd-ray ablate`: what each part of a study is worth, where `tune` finds its best values."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from comkd_ray.cli_end import exit_code, tell
from comkd_ray.errors import UserError
from comkd_ray.exits import plain_errors


@click.command(short_help="Compare settings of STUDY, each with the same seeds.")
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key of the study file.")
@click.option("--reports", default="reports", type=click.Path(path_type=Path), show_default=True,
              help="Folder of run directories.")  # fmt: skip
@click.option("--from", "source", type=click.Path(path_type=Path), metavar="RUN",
              help="Start from the best arm of this run directory.")  # fmt: skip
@click.option("--until-decided", is_flag=True,
              help="Add seeds to open claims, one at a time; needs --max-seeds.")  # fmt: skip
@click.option("--max-seeds", type=click.IntRange(min=2), metavar="M", help="Most seeds of a claim.")
@click.option("--retune", type=click.IntRange(min=1), metavar="N",
              help="First give every setting a search of N arms of its own, too.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what is compared, and what it takes and can show.")
@click.option(
    "--probe", is_flag=True, help="With --dry-run: measure for half a minute, and expect a wall time."
)
@click.option("--slots", type=click.IntRange(min=1), metavar="N",
              help="With --dry-run: cohorts at once; without --probe at a stated rate.")  # fmt: skip
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
    retune: int | None,
    dry_run: bool,
    probe: bool,
    slots: int | None,
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
    from comkd_ray.study_file import load, origin_of

    if not dry_run and (probe or slots):
        raise UserError("--probe and --slots belong to --dry-run: they say what to expect and start nothing")
    loaded, origin = load(study, sets), origin_of(study, sets)
    from comkd_ray.designs import asked_for

    loaded = asked_for(loaded, origin, until_decided, max_seeds, retune, yes)  # mistakes are told at once
    from comkd_ray.cluster import set_environment
    from comkd_ray.progress import quiet_libraries

    quiet_libraries(verbose)
    set_environment(None if dry_run else address)
    from comkd_ray.ablation_run import open_ablations

    ablations = open_ablations(loaded, origin, reports, source)
    if dry_run:
        for one in ablations:
            _show_plan(one, as_json, probe, slots)
        return
    _run(ablations, as_json, quiet, address, verbose)


def _run(ablations: list[Any], as_json: bool, quiet: bool, address: str | None, verbose: bool) -> None:
    """Say what begins, run it, and say how it ended."""
    from comkd_ray.ablation_run import join_ablations, run_ablations
    from comkd_ray.progress import Screen

    style = "json" if as_json else "quiet" if quiet else "rich" if sys.stderr.isatty() else "plain"
    for one in ablations:
        Screen(style).say(f"ablation {one.compiled.study}: {one.origin}")
        for what, words in one.described():
            Screen(style).say(f"{what}: {words}")
    outcomes = run_ablations(ablations, lambda: Screen(style), address, verbose)
    for outcome in outcomes:
        tell(outcome, as_json, quiet, "the same command goes on")
        if not quiet and not as_json:
            _tell_claims(outcome.run)
    if len(ablations) > 1:
        joined = join_ablations(ablations)
        if not quiet and not as_json:
            click.echo(joined)
    sys.exit(next(filter(None, map(exit_code, outcomes)), 0))


def _tell_claims(run: Path) -> None:
    """Where each claim stands."""
    if not (run / "results").is_dir():
        return
    from comkd_ray.claims import verdicts
    from comkd_ray.run import read

    found = read(run)
    for line in verdicts(found.fixed, found.study, found.rule):
        click.echo(line)


def _show_plan(ablation: Any, as_json: bool, probe: bool, slots: int | None) -> None:
    """Nothing is started: the ablation in words, then who learns from what and what it takes."""
    from comkd_ray.designs import settings
    from comkd_ray.plan import make_plan

    study, described = ablation.compiled, ablation.described()
    plan, found = make_plan(study), None
    if probe or slots:
        from comkd_ray.forecast import expect

        found = expect(study, plan, probe, slots)
    if as_json:
        block = study.ablate.model_dump(mode="json") | {"settings": settings(study)}
        more = {} if found is None else {"forecast": found.as_tree()}
        click.echo(plan.as_json(ablation=block | {"words": dict(described)}, **more))
        return
    known = {what for what, _ in described}
    expected = () if found is None else found.lines()
    lines = [*described, *((what, much) for what, much in (*plan.lines(), *expected) if what not in known)]
    click.echo(f"{'ablation':<26} {study.study}, into {ablation.run}")
    for what, much in lines:
        click.echo(f"{what:<26} {much}")
