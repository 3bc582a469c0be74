"""The one error a person may cause: what is wrong, where, and what to do, in one line."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. The command line prints the message as one line and exits with code 2."""
