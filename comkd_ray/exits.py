"""How commands end: exit codes, and a person's mistake as one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from comkd_ray.errors import UserError

FAILED, USAGE, SOME_FAILED, FAULTS, INTERRUPTED = 1, 2, 3, 5, 130


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """A person's mistake is one line and exit code 2; Ctrl-C is 130."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            click.echo(f"comkd-ray: {error}", err=True)
            sys.exit(USAGE)
        except KeyboardInterrupt:
            click.echo("comkd-ray: interrupted", err=True)
            sys.exit(INTERRUPTED)

    return run
