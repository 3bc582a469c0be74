"""How a command that runs studies ends: what it says of them, and its exit code."""

from __future__ import annotations

import json
from typing import Any

import click

from comkd_ray.exits import FAILED, INTERRUPTED, SOME_FAILED


def tell(outcome: Any, as_json: bool, quiet: bool, how_to_go_on: str) -> None:
    """What became of a study, and which command goes on with it."""
    best, html = outcome.best, outcome.run / "report.html"
    if as_json:
        fields = {"arms": outcome.arms, "failed": outcome.failed, "left": outcome.left, "best": best}
        fields |= {"stopped": outcome.stopped}
        click.echo(json.dumps({"event": "end", "seconds": outcome.seconds, "report": str(html), **fields}))
        return
    if quiet:
        return
    click.echo(
        f"{outcome.arms} arms ended, {outcome.failed} failed, {outcome.left} left, {outcome.seconds:.0f} s"
    )
    if outcome.stopped:
        click.echo(f"stopped by {outcome.stopped}")
    if outcome.left or outcome.interrupted:
        click.echo(how_to_go_on)
    if best is not None:
        from comkd_ray.arms import Scores

        scores = Scores(best["protocol"], best["selection"])
        tested = ", ".join(
            f"{name} {best[key]:.1f}" for name, key in zip(scores.names, scores.tests, strict=True)
        )
        click.echo(f"best by {scores.objective}: arm {best['arm']}, test {tested} %")
        if scores.warning:
            click.echo(f"its scores are {scores.warning}")
    if html.exists():
        click.echo(f"report: {html}")


def exit_code(outcome: Any) -> int:
    """How a study ended; a search that a budget ended has done what it was asked for."""
    if outcome.interrupted:
        return INTERRUPTED
    if outcome.best is None:
        return FAILED
    return SOME_FAILED if outcome.failed or outcome.left > outcome.unasked else 0
