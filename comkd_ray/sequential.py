"""Adding seeds until a question is decided, with an error that counts every look.

Testing anew after each seed and stopping at the first p < 0.05 is wrong more often than 5 %. Here
every claim carries two e-processes, one a direction. Given the sizes |d| of a claim's differences,
their signs s are fair coins where there is no effect; a gambler who stakes the share b of the purse
on a sign, b depending on sizes and earlier signs alone, then owns a nonnegative martingale,

    E(n) = prod_i (1 + b_i s_i),     P(E(n) >= 1 / a for any n) <= a     (Ville 1939),

so that p = 1 / max E is valid at every look, however the number of seeds was chosen, and also where
it is raised later (Ramdas et al. 2023, arXiv 2210.01948). The stake is what the likelihood ratio of
normal differences would put on a sign, b_i = tanh(theta |d_i| / rms(d_1..d_i)), averaged over theta =
1 and 2. The halves are joined by p = 2 min, the claims by Holm, which needs valid p values only.

Chosen over alpha spending on planned looks: no look has to be planned, every seed may be looked at,
`--max-seeds` may grow afterwards, and large effects stop earlier. The price is power for small effects
(docs/statistics.md has both).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comkd_ray.comparison import Claim, Comparison, Direction, bca, require_finite
from comkd_ray.planner import LEVEL
from comkd_ray.stats import estimate, holm

_THETAS = (1.0, 2.0)

Standing = Literal["supported", "refuted", "open", "not decidable"]


class Question(NamedTuple):
    """Where a claim stands after the seeds so far."""

    claim: str
    n: int
    p: float
    """Valid at every look."""
    p_holm: float
    standing: Standing
    """`open` wants another seed; `not decidable` has used up its seeds."""


def decide(claims: Sequence[Claim], seeds_left: bool) -> list[Question]:
    """Every claim of a family, differences in the order of their seeds.

    seeds_left: whether a question may get one more. n does not tell: the arm of a seed may have failed. An
    open question wants one; decided ones may stop. Call it again after each seed, or after several. Raises
    UserError where a difference is not a finite number.
    """
    for claim in claims:
        require_finite(claim.name, claim.differences)
    found = [anytime_p(claim.differences) for claim in claims]
    adjusted = holm([p for p, _ in found])
    questions = []
    for claim, (p, direction), p_holm in zip(claims, found, adjusted, strict=True):
        standing: Standing = "open" if seeds_left else "not decidable"
        if p_holm < LEVEL:
            standing = "supported" if direction == claim.direction else "refuted"
        questions.append(Question(claim.name, len(claim.differences), p, p_holm, standing))
    return questions


def compare_at_any_look(claims: Sequence[Claim], seeds_left: bool) -> list[Comparison]:
    """The claims of a family as `comparison.compare` gives them, with the p and the standing of `decide`.

    The intervals are those of a fixed n: they describe, and no verdict follows from them.
    """
    return [
        Comparison(
            claim.name,
            claim.direction,
            question.n,
            estimate(claim.differences),
            bca(claim.differences),
            question.p,
            anytime_p([1.0] * question.n)[0],
            question.p_holm,
            True,
            question.standing,
            None,
            True,
        )
        for claim, question in zip(claims, decide(claims, seeds_left), strict=True)
    ]


def anytime_p(differences: Sequence[float]) -> tuple[float, Direction]:
    """Two-sided p of paired differences that is valid at every look, and the direction it speaks for.

    It never rises as differences are added, and depends on their order. 1.0 for n = 0.
    """
    if not len(differences):
        return 1.0, "above"
    most = evidence(np.asarray(differences, dtype=np.float64)[None]).max(axis=(1, 2))
    above, below = float(most[0]), float(most[1])
    return min(1.0, 2.0 / max(above, below, 1.0)), "above" if above >= below else "below"


def evidence(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """E-processes of rows of differences [B, n]: [2, B, n], for above and for below zero.

    A difference of exactly zero has no sign and leaves the purse as it is.
    """
    sizes, signs = np.abs(differences), np.sign(differences)
    rms = np.sqrt(np.cumsum(sizes**2, axis=1) / np.arange(1, sizes.shape[1] + 1))
    relative = np.divide(sizes, rms, out=np.zeros_like(sizes), where=rms > 0)
    purses = []
    for direction in (1.0, -1.0):
        stakes = [direction * signs * np.tanh(theta * relative) for theta in _THETAS]
        purses.append(np.mean([np.cumprod(1.0 + stake, axis=1) for stake in stakes], axis=0))
    return np.stack(purses)


def fewest_seeds(claims: int = 1) -> int:
    """Seeds after which equal differences of one sign decide the first of a family of claims."""
    seeds = 1
    while claims * anytime_p([1.0] * seeds)[0] >= LEVEL:
        seeds += 1
    return seeds
