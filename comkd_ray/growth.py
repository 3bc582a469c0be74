"""`--until-decided`: which cells are wanted now, by a rule that follows from the records alone.

All settings get the first seeds. Then, seed by seed, a claim that `sequential.decide` leaves open gets
one more pair: its setting and its reference, with the next seed. So a killed command that is given
again comes to the same decisions, and every look at the data is counted. A seed is used up also where an
arm of it failed.
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
Identify = Callable[[Overrides], str]
"""A cell's values to its arm."""


def wanted_arms(study: Study, identify: Identify, records: Ledger) -> set[str] | None:
    """Arms that the ablation asks for by now; None for all, where seeds are fixed.

    While one of them has no record the answer stays; after that it may grow.
    """
    block = study.ablate
    if block is None or block.max_seeds is None:
        return None
    seeds, arms = block.seed_values, _arms(study, identify)
    pairs = claim_pairs(study)
    first = len(block.first_seeds)
    wanted = {arm for own in arms for arm in own[:first]}
    seen = dict.fromkeys(pairs, first)
    score = Scores(study.protocol, study.selection).headline
    while wanted <= records.keys():
        claims = {
            pair: Claim(str(pair), _differences(arms, pair, seen[pair], records, score), block.direction)
            for pair in pairs
        }
        still = [pair for pair in _open(claims) if seen[pair] < len(seeds)]
        if not still:
            return wanted
        for pair in still:
            wanted |= {arms[setting][seen[pair]] for setting in pair}
            seen[pair] += 1
    return wanted


def passed_arms(study: Study, identify: Identify, records: Ledger) -> set[str]:
    """Arms that have a later seed of their setting in use; none where seeds are fixed.

    One of them that failed stays missing: its difference would come between others that were looked at, and
    p depends on their order.
    """
    if study.ablate is None or study.ablate.max_seeds is None:
        return set()
    score = Scores(study.protocol, study.selection).headline
    found: set[str] = set()
    for own in _arms(study, identify):
        used = [place for place, arm in enumerate(own) if _score(records, arm, score) is not None]
        found |= set(own[: max(used, default=0)])
    return found


def _arms(study: Study, identify: Identify) -> list[list[str]]:
    """The arms of every setting in order, each with all seeds."""
    assert study.ablate is not None
    count = len(study.ablate.seed_values)
    named = [identify(cell) for cell in cells(study)]
    return [named[start : start + count] for start in range(0, len(named), count)]


def _open(claims: Mapping[tuple[int, int], Claim]) -> list[tuple[int, int]]:
    """Claims that want another seed; those with one reference are a family, as in the report."""
    found = []
    for reference in dict.fromkeys(reference for _, reference in claims):
        family = {pair: claim for pair, claim in claims.items() if pair[1] == reference}
        questions = decide(list(family.values()), seeds_left=True)
        found += [pair for pair, one in zip(family, questions, strict=True) if one.standing == "open"]
    return found


def _differences(
    arms: list[list[str]], pair: tuple[int, int], count: int, records: Ledger, score: str
) -> tuple[float, ...]:
    """Setting minus reference over those of the first `count` seeds that both have a score for, in order."""
    known = [[_score(records, arm, score) for arm in arms[one][:count]] for one in pair]
    ours, theirs = ({place: value for place, value in enumerate(own) if value is not None} for own in known)
    return paired(ours, theirs)


def _score(records: Ledger, arm: str, score: str) -> float | None:
    row = records[arm]["arm"] if arm in records else {}
    value = row.get(score) if row.get("status") == "complete" else None
    return float(value) if value is not None and math.isfinite(value) else None
