"""What a study found, on disk: one durable record an arm, compacted to two parquet tables.

    reports/<study>/records/<arm>.json      fsynced and renamed before anything is reported
    reports/<study>/results/arms/*.parquet      one row an arm
    reports/<study>/results/epochs/*.parquet    long: one row an arm and epoch

A record is the truth about its arm; the tables can be rebuilt from the records at any time. A file
that cannot be read goes to `quarantine/`, and what is left is used.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from comkd_ray import quarantine
from comkd_ray.errors import UserError

Row = dict[str, Any]

SCORES = ("base_accuracy", "novel_accuracy", "harmonic_mean", "accuracy")
"""Top-1 percent on base and novel classes and 2BN / (B + N) (PAPER 4.13), or on all classes at once.

Which of them a study has is said by its protocol; the others are null.
"""
REFERENCES = ("teacher", "teacher_zero_shot", "zero_shot")
"""Rows beside every arm: the tuned teacher, the teacher's and the student's zero-shot."""

VALIDATION = (
    "val_base_accuracy",
    "val_novel_agreement",
    "val_harmonic_mean",
    "val_accuracy",
    "val_agreement",
)

_SCORE_TYPES = {
    "objective": pl.Float64,  # what epochs and arms are chosen by; `protocols.py` names its column
    **dict.fromkeys(VALIDATION, pl.Float64),
    **{f"test_{score}": pl.Float64 for score in SCORES},
}

ARMS: dict[str, Any] = {
    "arm": pl.String,  # 12-digit hash of config, data, teacher and method version
    "cohort": pl.String,  # Tune trial it was trained in
    "number": pl.Int64,  # order in which the search asked for it
    "protocol": pl.String,
    "selection": pl.String,  # strict, or promptkd: chosen on the test set
    "status": pl.String,  # complete | pruned | failed
    "error": pl.String,  # why it failed, else null
    "seed": pl.Int64,
    "epochs_done": pl.Int64,
    "best_epoch": pl.Int64,  # epoch of all val_* and test_* here: highest objective
    **_SCORE_TYPES,
    **{f"{ref}_test_{score}": pl.Float64 for ref in REFERENCES for score in SCORES},
    "seconds": pl.Float64,  # the arm's share of its cohort's wall time: epochs, then test images
    "teacher_seconds_saved": pl.Float64,  # teacher forwards the bank spared this arm
    "trainable_parameters": pl.Int64,
    "total_parameters": pl.Int64,  # what runs at inference: tower, prompts, projector, EduAttention
    "teacher_parameters": pl.Int64,  # the teacher's image tower
    "searched": pl.List(pl.String),  # the searched keys, dotted
}
"""Types of the fixed columns; beside them stands every resolved student.*, loss.*, train.* key."""

EPOCHS: dict[str, Any] = {
    "arm": pl.String,
    "epoch": pl.Int64,  # 1 is the first
    "lr": pl.Float64,
    "loss": pl.Float64,  # mean over the epoch's steps
    "loss_kd": pl.Float64,
    "loss_align": pl.Float64,  # null where IFAlign is off
    "alpha": pl.Float64,  # mean absolute fusion weight; 0 where EduAttention is off
    "seconds": pl.Float64,  # training and evaluation
    **_SCORE_TYPES,  # test_* in the row of the best epoch alone, but where test images choose it
}

PART = "part-0.parquet"
"""The part of a table that is compacted from the records."""
_TABLES: dict[str, tuple[dict[str, Any], Callable[[Row], list[Row]]]] = {
    "arms": (ARMS, lambda record: [record["arm"]]),
    "epochs": (EPOCHS, lambda record: record["epochs"]),
}


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that is either whole or absent, even when the machine stops right after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")  # pods may share a process number
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:  # a full disk gets its room back
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_record(run: Path, arm: Row, epochs: list[Row]) -> None:
    """Store an ended arm for good: its row of `arms` and its rows of `epochs`."""
    record = json.dumps({"arm": arm, "epochs": epochs}, allow_nan=False)
    write_atomic(run / "records" / f"{arm['arm']}.json", record.encode())


def read_records(run: Path, arm: str = "*") -> dict[str, Row]:
    """Ended arms by identity, or one. A damaged record goes to quarantine, so that its arm runs again."""
    records: dict[str, Row] = {}
    for path in sorted((run / "records").glob(f"{arm}.json")):
        record = _parse_record(path)
        if record is None:
            quarantine.set_aside(run, path)
        else:
            records[path.stem] = record
    return records


def count_records(run: Path) -> int:
    """Arms that have a record, damaged ones included. Nothing is read or moved."""
    return sum(1 for _ in (run / "records").glob("*.json"))


def _parse_record(path: Path) -> Row | None:
    """A record, or None where it is damaged."""
    try:
        record: Row = json.loads(path.read_text(encoding="utf-8"))
        whole = record["arm"]["arm"] == path.stem and record["arm"]["status"] and record["epochs"] is not None
    except (ValueError, KeyError, TypeError):
        return None
    return record if whole else None


def mend(run: Path) -> list[str]:
    """Put damaged records and tables of a run into quarantine; says what was found, a line a file.

    The table whose part was damaged is rebuilt from the records, where there are any.
    """
    found = []
    for path in sorted((run / "records").glob("*.json")):
        if _parse_record(path) is None:
            place = quarantine.set_aside(run, path)
            found.append(
                f"records/{path.name}: cannot be read; it lies in {quarantine.FOLDER}/{place.name}, "
                "and --resume trains the arm again"
            )
    for name in _TABLES:
        for path in sorted((run / "results" / name).glob("*.parquet")):
            try:
                pl.read_parquet(path)
            except (pl.exceptions.PolarsError, OSError):
                place = quarantine.set_aside(run, path)
                found.append(
                    f"results/{name}/{path.name}: cannot be read; it lies in {quarantine.FOLDER}/"
                    f"{place.name}, {_replace_part(run, name, path)}"
                )
    return found


def _replace_part(run: Path, name: str, path: Path) -> str:
    """Put what the records know in the place of a lost part; says so."""
    records = list(read_records(run).values())
    if path.name != PART or not records:
        return "and the other parts are used"
    _write_table(run, name, records)
    return f"and was rebuilt from {len(records)} records"


def ranked(records: Mapping[str, Row]) -> list[Row]:
    """Rows of `arms` at full budget, best objective first; of equals, that asked for first."""
    rows = (record["arm"] for record in records.values())
    complete = [row for row in rows if row["status"] == "complete" and row["objective"] is not None]
    return sorted(complete, key=lambda row: (-row["objective"], row["number"]))


def compact(run: Path) -> int:
    """Rewrite both tables from the records; returns the number of arms."""
    records = list(read_records(run).values())
    for name in _TABLES:
        _write_table(run, name, records)
    return len(records)


def _write_table(run: Path, name: str, records: Sequence[Row]) -> None:
    types, rows_of = _TABLES[name]
    rows = [row for record in records for row in rows_of(record)]
    table = pl.from_dicts(rows, schema_overrides=types, infer_schema_length=None)
    missing = [pl.lit(None, dtype=kind).alias(key) for key, kind in types.items() if key not in table]
    table = table.with_columns(missing)
    folder = run / "results" / name
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{PART}.{os.getpid()}"
    table.write_parquet(temporary)
    temporary.replace(folder / PART)


def read_arms(run: Path) -> pl.DataFrame:
    """The `arms` table, in the order of `number`. UserError where there is none, or another's."""
    return _read_table(run, "arms", ARMS).sort("number", "arm")


def read_epochs(run: Path) -> pl.DataFrame:
    """The `epochs` table. UserError where there is none, or another's."""
    return _read_table(run, "epochs", EPOCHS).sort("arm", "epoch")


def _read_table(run: Path, name: str, types: Mapping[str, Any]) -> pl.DataFrame:
    parts = sorted((run / "results" / name).glob("*.parquet"))
    if not parts:
        raise UserError(f"{run}: no results/{name}/*.parquet; run `comkd-ray tune` first")
    try:
        table = pl.concat([pl.read_parquet(part) for part in parts], how="diagonal_relaxed")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{run}/results/{name}: cannot be read: {error}") from None
    for key, kind in types.items():
        if key not in table.columns:
            raise UserError(
                f"{run}/results/{name} has no column {key}, so another version wrote it: run the study again"
            )
        if table.schema[key] not in (kind, pl.Null):
            raise UserError(f"{run}/results/{name}: column {key} is {table.schema[key]}, not {kind}")
    return table
