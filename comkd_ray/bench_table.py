"""What `bench sweep` found: seconds, ratios, and whether all ways gave the same numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comkd_ray.config import Study

NOISE = 2 * math.sqrt(2)
"""Difference of two arms, in standard deviations of one, that chance seldom exceeds."""


@dataclass
class Way:
    """How one way did."""

    way: str
    arms_run: int
    seconds: float
    """Of all arms: scaled where fewer ran."""
    peak_memory_bytes: int
    teacher_images: int
    """Images that the teacher's image tower saw, for all arms."""
    teacher_images_in_trials: int
    """Of these, while arms trained."""
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Arm by its values -> objective and headline test score, in percent; full budget only."""
    loader: dict[str, Any] | None = None
    driver_bytes: int = 0
    """Peak of the process that a person started, without its workers."""
    stages: dict[str, float] = field(default_factory=dict)
    """Where the seconds of a study went; they add up to all of them. Empty where no study ran."""
    arm_seconds: float | None = None
    """What cohorts took by their records, added up: more than the search where several run at once."""


def seed_deviation(scores: Mapping[str, tuple[float, float]]) -> float | None:
    """Standard deviation of the test score between seeds, pooled over all else, in points.

    None where no two arms differ in their seed alone.
    """
    cells: dict[str, list[float]] = {}
    for name, (_, score) in scores.items():
        cells.setdefault(name.rpartition(" ")[0], []).append(score)
    variances = [statistics.variance(values) for values in cells.values() if len(values) > 1]
    return math.sqrt(statistics.fmean(variances)) if variances else None


def summary(study: Study, arms: int, ways: Sequence[Way]) -> dict[str, Any]:
    """Seconds, arms an hour and ratios by way; whether final numbers agree within seed noise."""
    first = ways[0]
    reference = next(way for way in ways if way.way == "one_by_one")
    noise = seed_deviation(reference.scores)
    found: dict[str, Any] = {"event": "bench sweep", "study": study.study, "arms": arms}
    found["epochs"], found["seed_deviation"] = study.train.epochs, noise
    found["seconds"] = {way.way: way.seconds for way in ways}
    found["arms_per_hour"] = {way.way: 3600 * arms / way.seconds for way in ways}
    found |= {f"ratio_{way.way}": first.seconds / way.seconds for way in ways[1:]}
    loop = min(ways[: ways.index(reference)], key=lambda way: way.seconds, default=first)
    found["fastest_loop"] = loop.way
    found["against_fastest_loop"] = {
        way.way: loop.seconds / way.seconds for way in ways[ways.index(reference) :]
    }
    found["ways"] = {way.way: told(way, reference, noise) for way in ways}
    found["same_numbers"] = all(one["same_numbers"] for one in found["ways"].values())
    return found


def told(way: Way, reference: Way, noise: float | None) -> dict[str, Any]:
    """One way's counts, and how far its arms are from the same arms trained one by one."""
    shared = way.scores.keys() & reference.scores.keys()
    apart = [abs(way.scores[name][1] - reference.scores[name][1]) for name in shared]
    largest = max(apart, default=None)
    return {
        "arms_run": way.arms_run,
        "peak_memory_bytes": way.peak_memory_bytes,
        "teacher_images": way.teacher_images,
        "teacher_images_in_trials": way.teacher_images_in_trials,
        "arms_compared": len(apart),
        "largest_difference": largest,
        "same_numbers": largest is not None and noise is not None and largest <= NOISE * noise,
        "scores": way.scores,
        "loader": way.loader,
        "stages": way.stages,
        "arm_seconds": way.arm_seconds,
    }


def grown(study: Study, ways: Mapping[int, Way]) -> dict[str, Any]:
    """Time and the driver's memory by number of arms, and how they grow from the fewest to the most."""
    few, many = ways[min(ways)], ways[max(ways)]
    return {
        "event": "bench growth",
        "study": study.study,
        "arms": sorted(ways),
        "seconds": {count: way.seconds for count, way in sorted(ways.items())},
        "driver_bytes": {count: way.driver_bytes for count, way in sorted(ways.items())},
        "peak_memory_bytes": {count: way.peak_memory_bytes for count, way in sorted(ways.items())},
        "ratio_arms": max(ways) / min(ways),
        "ratio_seconds": many.seconds / few.seconds,
        "ratio_driver_bytes": many.driver_bytes / few.driver_bytes,
    }


def growth_lines(found: Mapping[str, Any]) -> list[str]:
    """How cost grows with arms, for people."""
    rows = [
        f"{count:>6} {found['seconds'][count]:>9.0f} {found['driver_bytes'][count] / 2**30:>12.2f}"
        f" {found['peak_memory_bytes'][count] / 2**30:>11.2f}"
        for count in found["arms"]
    ]
    return [
        f"{found['study']}, cohorts, from an empty cache with a tuned teacher",
        "  arms   seconds   driver GiB   all in GiB",
        *rows,
        f"{found['ratio_arms']:g} times the arms: {found['ratio_seconds']:.2f} times the seconds,"
        f" {found['ratio_driver_bytes']:.2f} times the driver's memory",
    ]


def lines(found: Mapping[str, Any]) -> list[str]:
    """What a sweep found, for people."""
    rows = []
    for way, one in found["ways"].items():
        ratio = found.get(f"ratio_{way}", 1.0)
        scaled = "" if one["arms_run"] == found["arms"] else f"  (scaled from {one['arms_run']} arms)"
        rows.append(
            f"{way:<12} {found['seconds'][way]:>8.0f} {found['arms_per_hour'][way]:>10.1f} {ratio:>7.2f}"
            f" {one['peak_memory_bytes'] / 2**30:>9.2f} {one['teacher_images']:>10,}"
            f" {one['teacher_images_in_trials']:>10,} {number(one['largest_difference'])}{scaled}"
        )
    agree = "agree" if found["same_numbers"] else "DO NOT AGREE"
    return [
        f"{found['study']}: {found['arms']} arms of {found['epochs']} epochs;"
        " the teacher was tuned beforehand, in nobody's time",
        "way           seconds  arms/hour   ratio  peak GiB  teacher im  in trials  largest diff",
        *rows,
        *stage_lines(found["ways"]),
        f"against {found['fastest_loop']}, the fastest loop: "
        + ", ".join(f"{way} {ratio:.2f}" for way, ratio in found["against_fastest_loop"].items()),
        f"final numbers {agree} within seed noise: standard deviation between seeds "
        f"{number(found['seed_deviation']).strip()} points of the test score; differences are against"
        " one_by_one",
    ]


def stage_lines(ways: Mapping[str, Any]) -> list[str]:
    """Where the seconds of each way that is a study went."""
    return [
        f"{way:<12} spent "
        + ", ".join(f"{seconds:.0f} s in {stage}" for stage, seconds in one["stages"].items())
        + f"; its cohorts themselves {one['arm_seconds']:.0f} s, added up"
        for way, one in ways.items()
        if one["stages"]
    ]


def number(value: float | None) -> str:
    """A difference in points, or a dash."""
    return f"{'-' if value is None else f'{value:.2f}':>13}"
