"""How a command that runs studies ends: what it says of them, and its exit code."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from comkd_ray.exits import FAILED, INTERRUPTED, SOME_FAILED


def tell(outcome: Any, as_json: bool, quiet: bool, again: str) -> None:
    """What became of a study. again: which command goes on with it."""
    best, html = outcome.best, outcome.run / "report.html"
    if as_json:
        fields = {"arms": outcome.arms, "failed": outcome.failed, "left": outcome.left, "best": best}
        click.echo(json.dumps({"event": "end", "seconds": outcome.seconds, "report": str(html), **fields}))
        return
    if quiet:
        return
    click.echo(
        f"{outcome.arms} arms ended, {outcome.failed} failed, {outcome.left} left, {outcome.seconds:.0f} s"
    )
    if outcome.left or outcome.interrupted:
        click.echo(f"{again} goes on")
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


def leave(outcome: Any) -> None:
    """End the process with the exit code of a study, unless it is 0."""
    if outcome.interrupted:
        sys.exit(INTERRUPTED)
    if outcome.best is None:
        sys.exit(FAILED)
    if outcome.failed or outcome.left:
        sys.exit(SOME_FAILED)
