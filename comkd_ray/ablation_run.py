"""An ablation from block to report: re-tune the settings where that is asked for, then train the cells."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from comkd_ray import cluster, joint_report, retune
from comkd_ray.ablation_plan import can_find, describe
from comkd_ray.config import Study
from comkd_ray.designs import (
    compile_study,
    keep_begun,
    materials_of,
    run_directory,
    settings,
    with_block,
)
from comkd_ray.errors import UserError
from comkd_ray.ledger import foretell_shared, seeds_of, set_failed_aside
from comkd_ray.plan import count_arms
from comkd_ray.progress import Screen
from comkd_ray.retune import Tuning, tunings
from comkd_ray.starting_point import remarks, remember_start, remembered_start, start_from
from comkd_ray.study_file import flatten, has_effect, load, resolve
from comkd_ray.study_life import check_run, has_begun
from comkd_ray.study_run import Outcome, run_study
from comkd_ray.words import shown


@dataclass(frozen=True)
class Ablation:
    """What one command is about to do."""

    run: Path
    origin: str
    """The study file, for messages."""
    study: Study
    """As the file says, with what the command added to its block, and at its starting point."""
    compiled: Study
    """Its arms are the cells that are known by now."""
    searches: list[Tuning]
    """What is re-tuned first."""
    source: Path | None
    """The run directory that it starts from."""

    def described(self) -> list[tuple[str, str]]:
        """(what, in words): what is compared, what is there already, and what the seeds can show."""
        shared = foretell_shared(self.compiled, self.run)
        done = len(list((self.run / "records").glob("*.json")))
        lines = describe(self.compiled, count_arms(self.compiled), done, shared)
        if self.source is not None:
            lines += [("starts with", line) for line in remarks(self.study, self.source)]
        if self.searches:
            lines.append(("re-tuned first", retune.in_words(self.searches)))
        return [*lines, ("can find", can_find(self.compiled))]


def open_ablations(study: Study, origin: str, reports: Path, source: Path | None) -> list[Ablation]:
    """One ablation, or one for each of the block's materials, in the folder of the first.

    Everything that can be wrong with a command is found here, before anything is written. UserError.
    """
    run, materials = run_directory(reports, study), materials_of(study, origin)
    if not materials:
        return [open_ablation(study, origin, run, source)]
    if source is not None:
        raise UserError(f"{origin}: --from: ablate.materials have a best arm each; give them one by one")
    return [open_ablation(one, origin, run / name, None) for name, one in materials.items()]


def open_ablation(study: Study, origin: str, run: Path, source: Path | None) -> Ablation:
    """One ablation in the directory `run`. UserError for all that is wrong with it."""
    begun = load(run / "study.yaml") if has_begun(run) else None
    started = keep_begun(study, begun, seeds_of(run))
    if source is not None:
        started = start_from(started, source, remembered_start(run, begun))
    compiled = compile_study(started, run.name, origin, confirmed=True)
    require_effects(compiled, origin)
    check_run(compiled, run, begun is not None)
    assert started.ablate is not None
    budget = started.ablate.retune
    searches = [] if budget is None else tunings(started, run, budget, origin)
    retune.check_begun(searches)
    return Ablation(run, origin, started, compiled, searches, source)


def require_effects(study: Study, origin: str) -> None:
    """Refuse a factor whose level changes nothing in any setting: what it belongs to is off. UserError."""
    assert study.ablate is not None
    for key, levels in study.ablate.factors.items():
        flats = (flatten(resolve(study, one).model_dump(mode="json")) for one in settings(study))
        if not any(has_effect(key, flat) for flat in flats):
            raise UserError(
                f"{origin}: ablate.factors: {key}: no setting has the module on that it belongs to, so"
                f" {', '.join(map(shown, levels))} are all the same"
            )


def run_ablations(
    ablations: list[Ablation], screens: Callable[[], Screen], address: str | None, verbose: bool
) -> list[Outcome]:
    """Run what is left of each, all in one Ray; how each ended, up to the first that was interrupted."""
    ended: list[Outcome] = []
    several = len(ablations) > 1 or any(one.searches for one in ablations)
    with cluster.connect(address, verbose) if several else contextlib.nullcontext():
        for ablation in ablations:
            ended.append(_run(ablation, screens, address, verbose))
            if ended[-1].interrupted:
                break
    return ended


def join_ablations(ablations: list[Ablation]) -> str:
    """Where the report over all materials is, or why there is none: a line."""
    runs = [one.run for one in ablations if (one.run / "results").is_dir()]
    try:
        if len(runs) < len(ablations):
            raise UserError(f"{len(runs)} of {len(ablations)} materials have arms")
        return f"all {len(runs)} together: {joint_report.build(runs, runs[0].parent / 'report.html')}"
    except UserError as error:
        return f"no joint report: {error}"


def _run(ablation: Ablation, screens: Callable[[], Screen], address: str | None, verbose: bool) -> Outcome:
    """How the last run of an ablation ended: that of its cells, or of a search that has arms left."""
    run, compiled = ablation.run, ablation.compiled
    for search in ablation.searches:
        if search.study is None or search.is_done():
            continue
        screen = screens()
        screen.say(f"re-tuning {search.run.name}")
        begun, beginning = has_begun(search.run), partial(_begin_search, ablation, search.run)
        ended = run_study(search.study, search.run, screen, begun, address, verbose, beginning=beginning)
        if ended.interrupted or ended.left:
            return ended
    if ablation.searches:
        found = tuple(search.found() for search in ablation.searches)
        compiled = compile_study(with_block(ablation.study, retuned=found), run.name, ablation.origin, True)
    return run_study(compiled, run, screens(), has_begun(run), address, verbose)


def _begin_search(ablation: Ablation, search: Path) -> None:
    """Keep what it starts from before the first search knows anything; failed arms are tried again, once."""
    remember_start(ablation.run, ablation.study)
    set_failed_aside(search)
