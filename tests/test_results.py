"""Records and tables: durable, atomic, typed, and rebuilt from the records alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import fake_run
import outer
import polars as pl
import pytest

from comkd_ray import quarantine, results, run
from comkd_ray.errors import UserError
from comkd_ray.results import ARMS, EPOCHS


def write(run: Path, *arms: tuple[fake_run.Row, list[fake_run.Row]]) -> Path:
    for row, epochs in arms:
        results.write_record(run, row, epochs)
    return run


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# Records ----------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    row, epochs = fake_run.arm(3, {"loss.temperature": 0.1 + 0.2})
    write(tmp_path, (row, epochs))
    assert results.read_records(tmp_path) == {row["arm"]: {"arm": row, "epochs": epochs}}


def test_a_record_leaves_no_other_file(tmp_path: Path) -> None:
    row, epochs = fake_run.arm(3, {})
    for _ in range(2):
        write(tmp_path, (row, epochs))
    assert names(tmp_path / "records") == [f"{row['arm']}.json"]


def test_a_record_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File, name and folder are synced, in this order: a power cut leaves the old state or the new."""
    seen: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(number: int) -> None:
        seen.append(f"sync {Path(f'/proc/self/fd/{number}').readlink().name[:1]}")
        real_fsync(number)

    def replace(self: Path, target: Path) -> Path:
        seen.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write(tmp_path, fake_run.arm(1, {}))
    assert seen == ["sync .", "rename", "sync r"]


def test_a_record_that_cannot_be_written_whole_does_not_touch_the_old_one(tmp_path: Path) -> None:
    row, epochs = fake_run.arm(1, {})
    write(tmp_path, (row, epochs))
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path, (row | {"val_harmonic_mean": float("nan")}, epochs))
    assert results.read_records(tmp_path)[row["arm"]]["arm"] == row


def test_what_a_killed_writer_left_is_no_record(tmp_path: Path) -> None:
    write(tmp_path, fake_run.arm(1, {}))
    (tmp_path / "records" / ".abc.json.123").write_text('{"arm": {"ar')
    assert len(results.read_records(tmp_path)) == 1


@pytest.mark.parametrize(
    "content", ['{"arm": {"ar', "", "[]", "{}", '{"arm": 5}', "null", "\x00\x00", '{"arm": {"arm": "other"}}']
)
def test_a_damaged_record_is_moved_aside_so_that_its_arm_runs_again(tmp_path: Path, content: str) -> None:
    write(tmp_path, fake_run.arm(1, {}), fake_run.arm(2, {}))
    damaged = fake_run.identity(2)
    (tmp_path / "records" / f"{damaged}.json").write_text(content)
    assert list(results.read_records(tmp_path)) == [fake_run.identity(1)]
    left = {path.name for path in (tmp_path / "records").iterdir()}
    assert left == {f"{fake_run.identity(1)}.json"}
    assert quarantine.held(tmp_path) == [f"{damaged}.json"]


def test_one_record_is_read_by_name(tmp_path: Path) -> None:
    write(tmp_path, fake_run.arm(1, {}), fake_run.arm(2, {}))
    assert list(results.read_records(tmp_path, fake_run.identity(2))) == [fake_run.identity(2)]
    assert results.read_records(tmp_path, "none") == {}
    assert results.read_records(tmp_path / "nowhere") == {}


# Tables -----------------------------------------------------------------------------------------


def test_tables_have_the_declared_types_and_the_order_of_the_search(tmp_path: Path) -> None:
    arms = [fake_run.arm(n, {"train.lr": 0.01}, status) for n, status in
            ((5, "complete"), (2, "pruned"), (9, "failed"))]  # fmt: skip
    assert results.compact(write(tmp_path, *arms)) == 3
    table, epochs = results.read_arms(tmp_path), results.read_epochs(tmp_path)
    assert table["number"].to_list() == [2, 5, 9]
    assert {key: table.schema[key] for key in ARMS} == ARMS
    assert {key: epochs.schema[key] for key in EPOCHS} == EPOCHS
    assert table.filter(pl.col("status") == "failed")["val_harmonic_mean"].to_list() == [None]
    assert len(epochs) == sum(len(rows) for _, rows in arms)


def test_tables_hold_what_the_records_say(tmp_path: Path) -> None:
    row, rows = fake_run.arm(0, {"loss.temperature": 2.5})
    results.compact(write(tmp_path, (row, rows)))
    arm = results.read_arms(tmp_path).row(0, named=True)
    assert {key: arm[key] for key in row} == row
    found = results.read_epochs(tmp_path).select(rows[0].keys()).rows(named=True)
    assert found == rows


def test_a_table_is_rewritten_whole_and_leaves_no_other_file(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path, fake_run.arm(number, {}))
        assert results.compact(tmp_path) == number + 1
    for name in ("arms", "epochs"):
        assert names(tmp_path / "results" / name) == ["part-0.parquet"]
    assert len(results.read_arms(tmp_path)) == 3


def test_a_knob_that_is_a_number_in_one_arm_and_a_word_in_another_fits_one_column(tmp_path: Path) -> None:
    values = [0.5, "sqrt_width", 4.25]
    arms = [fake_run.arm(n, {"student.attention_scale": value}) for n, value in enumerate(values)]
    results.compact(write(tmp_path, *arms))
    found = results.read_arms(tmp_path)["student.attention_scale"].to_list()
    assert found == ["0.5", "sqrt_width", "4.25"]


def test_arms_that_all_failed_before_their_first_epoch_still_make_tables(tmp_path: Path) -> None:
    rows = [{"arm": f"a{n}", "status": "failed", "error": "RuntimeError: no", "epochs_done": 0, "number": n}
            for n in range(2)]  # fmt: skip
    results.compact(write(tmp_path, *((row, []) for row in rows)))
    assert results.read_arms(tmp_path)["error"].to_list() == ["RuntimeError: no"] * 2
    epochs = results.read_epochs(tmp_path)
    assert len(epochs) == 0
    assert {key: epochs.schema[key] for key in EPOCHS} == EPOCHS


def test_tables_of_several_parts_are_read_as_one(tmp_path: Path) -> None:
    for number in range(2):
        results.compact(write(tmp_path / str(number), fake_run.arm(number, {})))
    part = tmp_path / "1" / "results" / "arms" / "part-0.parquet"
    part.rename(tmp_path / "0" / "results" / "arms" / "part-1.parquet")
    assert results.read_arms(tmp_path / "0")["number"].to_list() == [0, 1]


def test_missing_and_damaged_tables_are_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no results/arms/\*\.parquet; run `comkd-ray tune` first"):
        results.read_arms(tmp_path)
    with pytest.raises(UserError, match="no results/epochs"):
        results.read_epochs(tmp_path)
    folder = tmp_path / "results" / "arms"
    folder.mkdir(parents=True)
    (folder / "part-0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="results/arms: cannot be read"):
        results.read_arms(tmp_path)


@pytest.mark.parametrize("column", ["number", "protocol", "selection", "searched", "objective"])
def test_a_table_of_another_version_is_said_with_the_column(column: str, tmp_path: Path) -> None:
    part = fake_run.write(tmp_path, fake_run.searched_arms(2)) / "results" / "arms" / "part-0.parquet"
    arms = pl.read_parquet(part)
    arms.drop(column).write_parquet(part)
    with pytest.raises(UserError, match=rf"results/arms has no column {column}, so another version wrote it"):
        results.read_arms(tmp_path)
    arms.with_columns(pl.lit(True).alias(column)).write_parquet(part)
    with pytest.raises(UserError, match=rf"results/arms: column {column} is Boolean, not "):
        results.read_arms(tmp_path)


def test_the_short_records_of_these_tests_are_records(tmp_path: Path) -> None:
    one = outer.record("abc", 40.0)
    results.write_record(tmp_path, one["arm"], one["epochs"])
    assert results.read_records(tmp_path, "abc")["abc"] == json.loads(json.dumps(one))


def test_of_equal_arms_the_first_asked_for_is_best() -> None:
    records = {name: outer.record(name, 50.0, number=number) for name, number in (("zzz", 3), ("aaa", 7))}
    records["low"] = outer.record("low", 40.0, number=0)
    records["none"] = outer.record("none", number=1, objective=None)
    assert [row["arm"] for row in results.ranked(records)] == ["zzz", "aaa", "low"]


# Damage -----------------------------------------------------------------------------------------


def studied(folder: Path) -> Path:
    """A run of five arms with records and tables."""
    return fake_run.write(folder / "run", fake_run.searched_arms(5), fake_run.study_tree(fake_run.SPACE))


def spoil(path: Path) -> None:
    """Overwrite the middle of a file with zeros, as a lost block of a disk reads."""
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = bytes(third)
    path.write_bytes(content)


def test_a_sound_run_needs_no_mending(tmp_path: Path) -> None:
    folder = studied(tmp_path)
    assert results.mend(folder) == []
    assert quarantine.held(folder) == []


def test_a_damaged_record_is_named_and_the_rest_is_used(tmp_path: Path) -> None:
    folder = studied(tmp_path)
    path = folder / "records" / f"{fake_run.identity(2)}.json"
    spoil(path)
    assert results.mend(folder) == [
        f"records/{path.name}: cannot be read; it lies in quarantine/{path.name}, "
        "and --resume trains the arm again"
    ]
    assert not path.exists()
    assert (folder / "quarantine" / path.name).exists()
    assert len(results.read_records(folder)) == 4


@pytest.mark.parametrize("name", ["arms", "epochs"])
@pytest.mark.parametrize(
    "how", [spoil, lambda path: path.write_bytes(b"PAR1"), lambda path: path.write_bytes(b"")]
)
def test_a_damaged_table_is_named_and_rebuilt_from_the_records(
    tmp_path: Path, name: str, how: Callable[[Path], None]
) -> None:
    folder = studied(tmp_path)
    before = results.read_arms(folder), results.read_epochs(folder)
    how(folder / "results" / name / "part-0.parquet")
    assert results.mend(folder) == [
        f"results/{name}/part-0.parquet: cannot be read; it lies in quarantine/part-0.parquet, "
        "and was rebuilt from 5 records"
    ]
    assert results.read_arms(folder).equals(before[0])
    assert results.read_epochs(folder).equals(before[1])
    assert quarantine.held(folder) == ["part-0.parquet"]


def test_without_records_the_other_parts_of_a_damaged_table_are_used(tmp_path: Path) -> None:
    folder, other = studied(tmp_path), studied(tmp_path / "other")
    shutil.rmtree(folder / "records")
    part = folder / "results" / "arms" / "part-0.parquet"
    (other / "results" / "arms" / "part-0.parquet").rename(part.with_name("part-1.parquet"))
    part.write_bytes(b"no table")
    assert results.mend(folder)[0].endswith("and the other parts are used")
    assert len(results.read_arms(folder)) == 5


def test_a_report_says_what_lies_in_quarantine(tmp_path: Path) -> None:
    folder = studied(tmp_path)
    spoil(folder / "results" / "arms" / "part-0.parquet")
    results.mend(folder)
    assert "quarantine/ holds what could not be read: part-0.parquet." in run.read(folder).troubles


def test_what_cannot_be_moved_aside_is_the_persons_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = studied(tmp_path)
    (folder / "records" / f"{fake_run.identity(2)}.json").write_text("{")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=r"is damaged and cannot be moved to .*quarantine: No space left"):
        results.mend(folder)
