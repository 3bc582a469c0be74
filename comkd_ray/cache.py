"""The cache that studies share: where it is. Needs no torch."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Where stores, teachers and banks live: $COMKD_CACHE, else the user's cache directory."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("COMKD_CACHE") or Path(home) / "comkd-ray").expanduser().absolute()
