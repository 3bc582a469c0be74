"""A regular 2^(k - p) fraction of a factorial: fewer settings, and which effects they confuse.

Columns are off (0) and on (1), in balance; the construction is pydoe's (Fries and Hunter 1980; Chen
and Cheng 2006). What a fraction confuses is read off the columns themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FEWEST = 5
"""Factors below which the full factorial has at most 16 settings and no fraction is needed."""
_CLEAR = 4  # resolution IV: main effects are clear of interactions of two factors
_BEST = 6

Signs = NDArray[np.int64]


class Fraction(NamedTuple):
    """A design of k two-level factors."""

    rows: tuple[tuple[int, ...], ...]
    """[settings, k] of 0 and 1; the first has all off."""
    resolution: int
    """Length of the shortest word: V and more separates all interactions of two factors, too."""
    aliases: tuple[tuple[tuple[int, int], ...], ...]
    """Groups of interactions of two factors (by position) that cannot be told apart."""


@lru_cache(maxsize=8)
def fraction(factors: int) -> Fraction:
    """The smallest design whose main effects are clear of interactions of two factors.

    Of designs of this size the one of the highest resolution. Needs FEWEST factors or more.
    """
    from pydoe import fracfact_by_res

    smallest = fracfact_by_res(factors, _CLEAR)
    same = [fracfact_by_res(factors, sharper) for sharper in range(_CLEAR + 1, _BEST + 1)]
    design = [smallest, *(one for one in same if len(one) == len(smallest))][-1]
    signs = np.sign(design).astype(np.int64)  # [settings, k]
    signs = signs * -signs[0]  # turning a whole column confuses nothing else, and the first is all off
    rows = tuple(tuple(int(sign > 0) for sign in row) for row in signs)
    return Fraction(rows, resolution_of(signs), aliases_of(signs))


def resolution_of(signs: Signs) -> int:
    """Fewest columns of [settings, k], of -1 and +1, whose product is constant; k + 1 for a full grid."""
    factors = signs.shape[1]
    for size in range(1, factors + 1):
        if any(_is_constant(signs, chosen) for chosen in combinations(range(factors), size)):
            return size
    return factors + 1


def aliases_of(signs: Signs) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Interactions of two factors whose columns are the same but for their sign, in groups of two or more."""
    groups: dict[bytes, list[tuple[int, int]]] = {}
    for one, other in combinations(range(signs.shape[1]), 2):
        column = signs[:, one] * signs[:, other]
        groups.setdefault((column * column[0]).tobytes(), []).append((one, other))
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _is_constant(signs: Signs, chosen: Sequence[int]) -> bool:
    return abs(int(signs[:, list(chosen)].prod(axis=1).sum())) == len(signs)


def in_words(found: Fraction, names: Sequence[str]) -> str:
    """`resolution IV; not told apart: a x b = c x d`, with the names of the factors."""
    roman = {3: "III", 4: "IV", 5: "V", 6: "VI", 7: "VII"}
    words = f"resolution {roman.get(found.resolution, found.resolution)}: main effects are clear of "
    words += "interactions of two factors"
    if not found.aliases:
        return f"{words}, and these of each other"
    groups = [" = ".join(f"{names[a]} \u00d7 {names[b]}" for a, b in group) for group in found.aliases]
    return f"{words}; not told apart are {'; '.join(groups)}"
