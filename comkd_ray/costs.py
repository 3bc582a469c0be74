"""What a study took, by arm, variant and seed, and what bank and halving spared; with how each is computed.

A device is what one worker of a cohort holds (`compute.gpus`, else `compute.cpus`), and an arm's
device-seconds are its `seconds`: its share of the wall time of its cohort's epochs, training and
evaluation, and of the look at the test images when it ended, while its worker held the device. Start of
processes and reading of data are not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import polars as pl

from comkd_ray.arms import METHODS, full_budget, has_modules, of_method
from comkd_ray.config import Study
from comkd_ray.tables import VARIANTS, Table
from comkd_ray.variants import named
from comkd_ray.words import DASH, duration, shown

EPOCHS = "train.epochs"
"""Column of an arm's full budget."""


class Cost(NamedTuple):
    """Arms that belong together, and their device-seconds."""

    what: str
    arms: int
    seconds: float
    epochs: int

    @property
    def an_arm(self) -> float | None:
        """Mean device-seconds of an arm."""
        return self.seconds / self.arms if self.arms else None

    @property
    def an_epoch(self) -> float | None:
        """Mean device-seconds of an epoch of one arm, its share of the last look at test images included."""
        return self.seconds / self.epochs if self.epochs else None


class Saving(NamedTuple):
    """Device-seconds that were not spent; None where nothing that is stored tells."""

    what: str
    seconds: float | None
    how: str


def device(study: Study | None) -> str:
    """What a device-second is a second of."""
    if study is None:
        return "one worker's devices"
    if study.compute.gpus:
        return f"{shown(study.compute.gpus)} GPU"
    return f"{shown(study.compute.cpus)} CPU core{'s' * (study.compute.cpus != 1)}"


def costs(arms: pl.DataFrame, enumerated: bool | None) -> list[Cost]:
    """All arms, then by status, by variant (or method, in a search), and by seed where there are several."""
    return [
        Cost(what, len(rows), float(rows["seconds"].sum()), int(rows["epochs_done"].sum()))
        for what, rows in _groups(arms, enumerated)
        if len(rows)
    ]


def _groups(arms: pl.DataFrame, enumerated: bool | None) -> Iterator[tuple[str, pl.DataFrame]]:
    yield "all arms", arms
    yield "full budget", full_budget(arms)
    for status in ("pruned", "failed"):
        yield status, arms.filter(pl.col("status") == status)
    if enumerated:
        for name, _, rows in named(arms)[:VARIANTS]:
            yield f"variant {name}", rows
    elif has_modules(arms):
        for method, name in METHODS.items():
            yield f"method {name}", of_method(arms, method)
    if arms["seed"].n_unique() > 1:
        for (seed,), rows in arms.sort("seed").group_by("seed", maintain_order=True):
            yield f"seed {seed}", rows


def savings(arms: pl.DataFrame, epochs: pl.DataFrame, stages: Mapping[str, Any]) -> list[Saving]:
    """What the bank, halving and the cohort each spared; what is not stored says what measures it."""
    return [_bank(arms, stages), _halving(arms, epochs), _cohort()]


def _bank(arms: pl.DataFrame, stages: Mapping[str, Any]) -> Saving:
    spared = float(arms["teacher_seconds_saved"].sum() or 0.0)
    built = stages.get("bank")
    how = (
        "teacher forwards that no step ran: images that the arms trained on \u00d7 the teacher's seconds an "
        "image when the bank was built (teacher_seconds_saved), as if every arm ran its own teacher"
    )
    if not spared:
        return Saving("bank", None, f"{how}; nothing was recorded")
    if built is None:
        return Saving(
            "bank", spared, f"{how}; what the bank took to build is not recorded and not subtracted"
        )
    return Saving(
        "bank", spared - built, f"{how}: {duration(spared)}, minus {duration(built)} of this run's bank stage"
    )


def _halving(arms: pl.DataFrame, epochs: pl.DataFrame) -> Saving:
    """By the seconds of the epochs themselves: a pruned arm looks at test images once, as all others do."""
    how = "epochs that pruned arms did not run \u00d7 their own seconds an epoch until then"
    if EPOCHS not in arms.columns:
        return Saving("halving", None, f"{how}; the full budget, {EPOCHS}, is not in the rows")
    each = epochs.group_by("arm").agg(pl.col("seconds").mean().alias("each"))
    pruned = arms.filter(pl.col("status") == "pruned", pl.col("epochs_done") > 0).join(each, "arm", "left")
    if pruned["each"].null_count():
        return Saving("halving", None, f"{how}; the rows of their epochs are missing")
    left = pruned[EPOCHS] - pruned["epochs_done"]
    seconds = float((left * pruned["each"]).sum())
    return Saving("halving", seconds, f"{how}: {int(left.sum())} epochs of {len(pruned)} pruned arms")


def _cohort() -> Saving:
    how = "takes the same arms trained one by one, which no study runs: comkd-ray bench sweep measures it"
    return Saving("cohort", None, how)


def cost_table(found: list[Cost], study: Study | None) -> Table:
    """Device-seconds of every group: in all, an arm, an epoch of one arm."""
    rows = [
        [cost.what, str(cost.arms), _number(cost.seconds), _number(cost.an_arm), _number(cost.an_epoch)]
        for cost in found
    ]
    return Table(
        [f"device-seconds ({device(study)})", "arms", "in all", "an arm", "an epoch of an arm"], rows
    )


def saving_table(found: list[Saving]) -> Table:
    """Device-seconds spared, each with how it is computed."""
    rows = [[one.what, one.how, _number(one.seconds)] for one in found]
    return Table(["spared by", "how it is computed", "device-seconds"], rows)


def _number(seconds: float | None) -> str:
    if seconds is None:
        return DASH
    words = f"{abs(seconds):,.0f}" if abs(seconds) >= 100 else f"{abs(seconds):.1f}"
    return f"\u2212{words}" if seconds < 0 and words != "0.0" else words
