"""The cache that studies share: where it is, and which teachers it holds. Needs no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from comkd_ray.errors import UserError

CardTree = dict[str, Any]
"""A teacher's `card.json`."""


def cache_root() -> Path:
    """Where stores, teachers and banks live: $COMKD_CACHE, else the user's cache directory."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("COMKD_CACHE") or Path(home) / "comkd-ray").expanduser().absolute()


def teacher_cards(cache: Path) -> list[CardTree]:
    """Cards of all teachers, oldest first; one that cannot be read is left out."""
    cards: list[CardTree] = []
    for path in (cache / "teachers").glob("*/card.json"):
        if path.parent.suffix == ".part":  # a build that was killed
            continue
        try:
            name = {"key": path.parent.name}  # stands first, and counts
            cards.append(name | json.loads(path.read_text(encoding="utf-8")) | name)
        except (OSError, ValueError, TypeError):
            continue
    return sorted(cards, key=lambda card: (str(card.get("created", "")), card["key"]))


def find_teacher(cache: Path, prefix: str) -> CardTree:
    """The card of the one teacher whose key begins so. UserError for none, and for several."""
    cards = teacher_cards(cache)
    found = [card for card in cards if card["key"].startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"teacher {prefix}: none of the {len(cards)} teachers in {cache} has a key like this")
    keys = ", ".join(card["key"] for card in found[:5])
    raise UserError(f"teacher {prefix}: {len(found)} keys begin so ({keys}); add digits")
