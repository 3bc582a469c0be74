"""`--until-decided`: which cells are wanted now, by a rule that follows from the records alone.

All settings get the first seeds. Then, seed by seed, a claim that `sequential.decide` leaves open gets
one more pair: its setting and its reference, with the next seed. So a killed command that is given
again comes to the same decisions, and every look at the data is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from comkd_ray.arms import Scores
from comkd_ray.comparison import Claim, paired
from comkd_ray.config import Study
from comkd_ray.designs import claim_pairs
from comkd_ray.results import Row
from comkd_ray.search_space import Overrides
from comkd_ray.sequential import decide
from comkd_ray.study_file import cells

Ledger = Mapping[str, Row]
"""Records by arm."""


def wanted_arms(study: Study, identify: Callable[[Overrides], str], records: Ledger) -> set[str] | None:
    """Arms that the ablation asks for by now; None for all, where seeds are fixed.

    While one of them has no record the answer stays; after that it may grow.
    """
    block = study.ablate
    if block is None or block.max_seeds is None:
        return None
    seeds = block.seed_values
    named = [identify(cell) for cell in cells(study)]  # settings in order, each with all seeds
    arms = [named[start : start + len(seeds)] for start in range(0, len(named), len(seeds))]
    pairs = claim_pairs(study)
    first = len(block.first_seeds)
    wanted = {arm for own in arms for arm in own[:first]}
    seen = dict.fromkeys(pairs, first)
    score = Scores(study.protocol, study.selection).headline
    while wanted <= records.keys():
        claims = {
            pair: Claim(
                str(pair), _differences(arms, pair, seeds[: seen[pair]], records, score), block.direction
            )
            for pair in pairs
        }
        still = [pair for pair in _open(claims, len(seeds)) if seen[pair] < len(seeds)]
        if not still:
            return wanted
        for pair in still:
            wanted |= {arms[setting][seen[pair]] for setting in pair}
            seen[pair] += 1
    return wanted


def _open(claims: Mapping[tuple[int, int], Claim], max_seeds: int) -> list[tuple[int, int]]:
    """Claims that want another seed; those with one reference are a family, as in the report."""
    found = []
    for reference in dict.fromkeys(reference for _, reference in claims):
        family = {pair: claim for pair, claim in claims.items() if pair[1] == reference}
        questions = decide(list(family.values()), max_seeds)
        found += [pair for pair, one in zip(family, questions, strict=True) if one.standing == "open"]
    return found


def _differences(
    arms: list[list[str]], pair: tuple[int, int], seeds: tuple[int, ...], records: Ledger, score: str
) -> tuple[float, ...]:
    """Setting minus reference over the seeds that both have a score for, in the order of the seeds."""
    known = [[_score(records, arm, score) for arm in arms[one][: len(seeds)]] for one in pair]
    ours, theirs = ({place: value for place, value in enumerate(own) if value is not None} for own in known)
    return paired(ours, theirs)


def _score(records: Ledger, arm: str, score: str) -> float | None:
    row = records[arm]["arm"] if arm in records else {}
    value = row.get(score) if row.get("status") == "complete" else None
    return float(value) if value is not None and math.isfinite(value) else None
