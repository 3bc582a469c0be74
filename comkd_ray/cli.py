"""The command line: parse, call one function, print. Heavy imports stay inside the commands."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from comkd_ray import __version__
from comkd_ray.budget import Budget
from comkd_ray.cli_ablate import ablate
from comkd_ray.cli_bank import bank
from comkd_ray.cli_bench import bench
from comkd_ray.cli_data import data
from comkd_ray.cli_end import exit_code, tell
from comkd_ray.cli_teacher import teacher
from comkd_ray.errors import UserError
from comkd_ray.exits import plain_errors

QUICKSTART = "quickstart"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="comkd-ray")
def main() -> None:
    """Turn a large CLIP into a small one, and know which part of the method earned it.

    \b
    Examples:
      comkd-ray tune                                  the quickstart, on what ships inside
      comkd-ray tune search_spaces/caltech101.yaml --set data.root=DIR
      comkd-ray tune STUDY.yaml --resume              go on after Ctrl-C or a crash
      comkd-ray tune STUDY.yaml --fork NAME           a changed study that begins with the results so far
      comkd-ray ablate search_spaces/ablation.yaml --set data.root=DIR
      comkd-ray report reports/quickstart             rebuild the HTML from the results
      comkd-ray report reports/a reports/b            rank methods over several data sets
      comkd-ray teacher ls                            teachers that the cache holds
      comkd-ray data check dtd --root DIR             is a data set on disk the published one?
      comkd-ray bank ls                               teacher banks that the cache holds

    \b
    Exit codes: 0 done, 1 no arm finished, 2 bad input, 3 some arms failed,
    5 faults were found in a data set or a bank, 130 interrupted.
    """


@main.command(short_help="Search STUDY for its best student.")
@click.argument("study", required=False, type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key of the study file.")
@click.option("--reports", default="reports", type=click.Path(path_type=Path), show_default=True,
              help="Folder of run directories.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with a study that has begun.")
@click.option("--add-arms", type=click.IntRange(min=1), metavar="N",
              help="With --resume: N arms more than the study has.")  # fmt: skip
@click.option("--fork", metavar="NAME", help="Begin a study NAME with the results of STUDY's run.")
@click.option("--budget-hours", "hours", type=click.FloatRange(min=0, min_open=True), metavar="H",
              help="Stop asking when arms have taken H hours of GPUs (of CPUs without).")  # fmt: skip
@click.option("--max-arms", type=click.IntRange(min=1), metavar="N", help="Stop asking at N arms in all.")
@click.option("--until", type=click.IntRange(min=1), metavar="N",
              help="Stop asking when N arms at full budget were no better than the best.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Train a grid of more than 10,000 arms.")
@click.option("--dry-run", is_flag=True, help="Say who learns from what and what it takes; start nothing.")
@click.option("--probe", is_flag=True,
              help="With --dry-run: measure for half a minute, and expect a wall time.")  # fmt: skip
@click.option("--slots", type=click.IntRange(min=1), metavar="N",
              help="With --dry-run: cohorts at once; without --probe at a stated rate.")  # fmt: skip
@click.option("--address", help="Ray cluster to join; else $RAY_ADDRESS, else a local Ray starts.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per event on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Show what Ray says.")
@plain_errors
def tune(
    study: Path | None,
    sets: tuple[str, ...],
    reports: Path,
    resume: bool,
    add_arms: int | None,
    fork: str | None,
    hours: float | None,
    max_arms: int | None,
    until: int | None,
    yes: bool,
    dry_run: bool,
    probe: bool,
    slots: int | None,
    address: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Search STUDY (default: the quickstart) and write reports/<study>/report.html."""
    from comkd_ray.study_file import check_size, load, require_search, search_spaces

    path = study or search_spaces() / f"{QUICKSTART}.yaml"
    loaded = require_search(load(path, sets), path)  # before the heavy imports: mistakes are answered at once
    check_size(loaded, yes)
    _check_flags(resume, add_arms, fork, dry_run, bool(probe or slots))
    from comkd_ray.progress import quiet_libraries

    quiet_libraries(verbose)
    from comkd_ray.cluster import set_environment

    set_environment(None if dry_run else address)
    loaded, run, forked = _settled(loaded, reports.absolute(), resume, add_arms, fork)
    changes = forked.lines() if forked else []
    if dry_run:
        _show_plan(loaded, run, resume, as_json, changes, probe, slots)
        return
    from comkd_ray.progress import Screen
    from comkd_ray.study_life import begin_fork
    from comkd_ray.study_run import run_study

    screen = Screen("json" if as_json else "quiet" if quiet else "rich" if sys.stderr.isatty() else "plain")
    for line in (f"study {loaded.study}: {path}", *changes):
        screen.say(line)
    limit = Budget(hours, max_arms, until)
    beginning = partial(begin_fork, forked) if forked else None
    outcome = run_study(loaded, run, screen, resume, address, verbose, limit, beginning)
    tell(outcome, as_json, quiet, _how_to_go_on(forked, add_arms, run))
    sys.exit(exit_code(outcome))


def _check_flags(resume: bool, add_arms: int | None, fork: str | None, dry_run: bool, expects: bool) -> None:
    if add_arms and not resume:
        raise UserError("--add-arms: goes on with a study that has begun; add --resume")
    if fork and resume:
        raise UserError("--fork: begins another study; without --resume")
    if expects and not dry_run:
        raise UserError("--probe and --slots belong to --dry-run: they say what to expect and start nothing")


def _settled(study: Any, reports: Path, resume: bool, add_arms: int | None, fork: str | None) -> Any:
    """(study, run directory, fork or None) as the flags make them of a study file."""
    from comkd_ray.study_life import grown, plan_fork

    if fork:
        forked = plan_fork(study, reports, fork)
        return forked.study, forked.run, forked
    run = reports / study.study
    return (grown(study, run, add_arms or 0) if resume else study), run, None


def _how_to_go_on(forked: Any, add_arms: int | None, run: Path) -> str:
    if forked:
        return f"comkd-ray tune {run / 'study.yaml'} --reports {run.parent} --resume goes on"
    return f"the same command with --resume{' and without --add-arms' if add_arms else ''} goes on"


def _show_plan(
    study: Any, run: Path, resume: bool, as_json: bool, changes: list[str], probe: bool, slots: int | None
) -> None:
    from comkd_ray.plan import make_plan
    from comkd_ray.study_life import check_run, has_begun

    begun = has_begun(run)
    if resume:
        check_run(study, run, resume)
    plan, found = make_plan(study), None
    if probe or slots:
        from comkd_ray.forecast import expect

        found = expect(study, plan, probe, slots)
    if as_json:
        click.echo(plan.as_json(begun=begun, **({} if found is None else {"forecast": found.as_tree()})))
        return
    click.echo(f"{'study':<26} {study.study}, into {run}")
    if begun:
        click.echo(f"{'has begun':<26} {_begun(run, resume)}")
    for line in changes:
        click.echo(f"{'changed':<26} {line}")
    for what, much in (*plan.lines(), *(() if found is None else found.lines())):
        click.echo(f"{what:<26} {much}")


def _begun(run: Path, resume: bool) -> str:
    if not resume:
        return "--resume goes on there; --set study=NAME makes another"
    from comkd_ray.results import count_records
    from comkd_ray.words import counted

    return f"{counted(count_records(run), 'record')} of arms so far; what follows counts all arms"


@main.command(short_help="Rebuild the HTML of a run, or rank several.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...",
                type=click.Path(path_type=Path, exists=True, file_okay=False))  # fmt: skip
@click.option("--into", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Of several runs: the file; by default joint.html beside the first.")  # fmt: skip
@click.option("--markdown", is_flag=True, help="Print the tables as Markdown instead.")
@plain_errors
def report(runs: tuple[Path, ...], into: Path | None, markdown: bool) -> None:
    """Rebuild RUN/report.html from RUN/results, its study.yaml and its provenance.json.

    Of several runs on as many data sets: one file that ranks and tests the methods they share.
    """
    from comkd_ray.results import mend

    for found in (line for run in runs for line in mend(run)):
        click.echo(found, err=True)
    if len(runs) > 1:
        _joint_report(runs, into, markdown)
        return
    if into is not None:
        raise click.UsageError("--into names the file of several runs; one run is written to RUN/report.html")
    if markdown:
        from comkd_ray.markdown import tables
        from comkd_ray.run import read

        click.echo(tables(read(runs[0])))
        return
    from comkd_ray.report import build

    click.echo(build(runs[0]))


def _joint_report(runs: tuple[Path, ...], into: Path | None, as_markdown: bool) -> None:
    from comkd_ray.joint_report import build, markdown

    click.echo(markdown(runs) if as_markdown else build(runs, into or runs[0].parent / "joint.html"))


main.add_command(ablate)
main.add_command(bank)
main.add_command(bench)
main.add_command(data)
main.add_command(teacher)


if __name__ == "__main__":
    main()
