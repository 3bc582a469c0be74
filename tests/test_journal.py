"""A damaged journal: what is lost goes to quarantine, and what the records know is told again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import outer
import pytest

from comkd_ray import journal, quarantine
from comkd_ray.optuna_search import OptunaArms

Tree = dict[str, Any]
GARBAGE = b"\x00\xff no line of a journal\n"


def opened(run: Path) -> OptunaArms:
    first: list[Tree] = [{"student.ifalign": False}]
    return OptunaArms(outer.study(run, outer.tpe(9, first)), run / "optuna.journal")


def searched(run: Path) -> tuple[bytes, dict[str, Tree]]:
    """A journal of two cohorts, one resumed in between: complete, pruned, failed and repeated arms."""
    records: dict[str, Tree] = {}
    for statuses in (("complete", "pruned", "complete"), ("failed", "complete")):
        arms = opened(run)
        asked = [arms.ask() for _ in statuses]
        repeat = arms.ask()
        arms.tell(repeat.number, None, same_as="arm0")
        for proposal, status in zip(asked, statuses, strict=True):
            name = f"arm{proposal.number}"
            arms.assign(proposal.number, name)
            arms.note(proposal.number, 1, 49.0 + proposal.number)
            own = {"number": proposal.number, "searched": sorted(proposal.overrides), **proposal.overrides}
            epochs = {"complete": 2, "pruned": 1, "failed": 0}[status]
            records[name] = outer.record(name, 48.0 + proposal.number + epochs, status, epochs, **own)
            if status == "complete":
                arms.note(proposal.number, 2, 50.0 + proposal.number)
            arms.tell(proposal.number, records[name])
    return (run / "optuna.journal").read_bytes(), records


def ended(arms: OptunaArms) -> dict[str, Tree]:
    """Arm -> its trial, as far as a search goes by it. A failed arm's epochs are nobody's business."""
    found = {}
    for trial in arms.known():
        if trial.state.is_finished() and "arm" in trial.user_attrs:
            failed = trial.state == optuna.trial.TrialState.FAIL
            told = {} if failed else trial.intermediate_values
            assert trial.user_attrs["arm"] not in found
            found[trial.user_attrs["arm"]] = {
                "number": trial.number, "state": trial.state, "values": trial.values,
                "params": trial.params, "intermediate": told, "distributions": trial.distributions,
            }  # fmt: skip
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Tree], dict[str, Tree]]:
    """A sound journal, the records, and the trials it holds."""
    run = tmp_path_factory.mktemp("whole")
    content, records = searched(run)
    return content, records, ended(opened(run))


def test_wherever_the_journal_is_damaged_every_result_is_told_again(
    tmp_path: Path, whole: tuple[bytes, dict[str, Tree], dict[str, Tree]]
) -> None:
    """Each line in turn: same numbers, states, values and parameters as before."""
    content, records, expected = whole
    lines = content.splitlines(keepends=True)
    assert len(expected) == 5
    for index in range(len(lines)):
        run = tmp_path / str(index)
        run.mkdir()
        (run / "optuna.journal").write_bytes(b"".join([*lines[:index], GARBAGE, *lines[index + 1 :]]))
        arms = opened(run)
        arms.reconcile(records)
        assert ended(arms) == expected, index
        assert b"".join(path.read_bytes() for path in (run / "quarantine").iterdir()).startswith(GARBAGE)


def test_after_damage_the_search_goes_on_as_far_as_it_was_to_go(
    tmp_path: Path, whole: tuple[bytes, dict[str, Tree], dict[str, Tree]]
) -> None:
    content, records, _ = whole
    (tmp_path / "optuna.journal").write_bytes(GARBAGE + content)
    arms = opened(tmp_path)
    assert arms.reconcile(records) == 0
    assert arms.left() == 9 - 5
    known = [record["arm"] for record in records.values()]
    numbers = []
    while arms.left():
        one = arms.ask()
        numbers.append(one.number)
        if any(all(row.get(key) == value for key, value in one.overrides.items()) for row in known):
            arms.tell(one.number, None, same_as="known")  # the named arm is asked for once more
            continue
        arms.assign(one.number, f"arm{one.number}")
        arms.tell(one.number, outer.record(f"arm{one.number}"))
    assert min(numbers) > max(row["number"] for row in known)


def test_a_journal_that_is_gone_is_told_again_from_the_records(
    tmp_path: Path, whole: tuple[bytes, dict[str, Tree], dict[str, Tree]]
) -> None:
    _, records, expected = whole
    arms = opened(tmp_path)
    arms.reconcile(records)
    assert ended(arms) == expected
    assert quarantine.held(tmp_path) == []


def test_damage_is_named_with_its_line_and_where_it_lies(
    tmp_path: Path, whole: tuple[bytes, dict[str, Tree], dict[str, Tree]]
) -> None:
    lines = whole[0].splitlines(keepends=True)
    path = tmp_path / "optuna.journal"
    path.write_bytes(b"".join([*lines[:6], GARBAGE, *lines[7:]]))
    words = journal.mend(path)
    assert words is not None
    assert words.startswith(f"optuna.journal: damaged in line 7 of {len(lines)}: ")
    assert "quarantine/optuna.journal" in words
    assert path.read_bytes() == b"".join(lines[:6])
    assert (tmp_path / "quarantine" / "optuna.journal").read_bytes() == GARBAGE + b"".join(lines[7:])
    assert journal.mend(path) is None


@pytest.mark.parametrize(
    "damage",
    [b'{"op_code": 4, "worker_id": "half a li', b"[1, 2]\n", b"{}\n", b"\x00" * 512 + b"\n", b"\xff\xfe\n"],
)
def test_a_torn_or_foreign_end_is_cut_off_and_kept(
    tmp_path: Path, whole: tuple[bytes, dict[str, Tree], dict[str, Tree]], damage: bytes
) -> None:
    path = tmp_path / "optuna.journal"
    path.write_bytes(whole[0] + damage)
    assert "damaged in line" in (journal.mend(path) or "")
    assert path.read_bytes() == whole[0]
    assert (tmp_path / "quarantine" / "optuna.journal").read_bytes() == damage


def test_entries_that_make_no_sense_together_are_damage_too(
    tmp_path: Path, whole: tuple[bytes, dict[str, Tree], dict[str, Tree]]
) -> None:
    content, records, expected = whole
    path = tmp_path / "optuna.journal"
    path.write_bytes(content + b'{"op_code": 77, "worker_id": "x"}\n')
    assert "damaged in line 1 of" in (journal.mend(path) or "")
    arms = opened(tmp_path)
    arms.reconcile(records)
    assert ended(arms) == expected


def test_damage_after_damage_overwrites_nothing(
    tmp_path: Path, whole: tuple[bytes, dict[str, Tree], dict[str, Tree]]
) -> None:
    path = tmp_path / "optuna.journal"
    for number in range(3):
        path.write_bytes(whole[0] + b"bad %d\n" % number)
        journal.mend(path)
    assert quarantine.held(tmp_path) == ["optuna.journal", "optuna.journal.1", "optuna.journal.2"]
    assert (tmp_path / "quarantine" / "optuna.journal.2").read_bytes() == b"bad 2\n"
    (tmp_path / "quarantine" / "optuna.journal").unlink()  # somebody tidies up
    for number in (3, 4):
        path.write_bytes(whole[0] + b"bad %d\n" % number)
        journal.mend(path)
    kept = [(tmp_path / "quarantine" / name).read_bytes() for name in quarantine.held(tmp_path)]
    assert kept == [b"bad %d\n" % number for number in (3, 1, 2, 4)]


def test_an_arm_whose_record_is_lost_is_asked_again_and_once(
    tmp_path: Path, whole: tuple[bytes, dict[str, Tree], dict[str, Tree]]
) -> None:
    content, records, _ = whole
    (tmp_path / "optuna.journal").write_bytes(content)
    gone = records["arm0"]["arm"]
    left = {name: one for name, one in records.items() if name != "arm0"}
    arms = opened(tmp_path)
    assert arms.reconcile(left) == 1
    assert arms.reconcile(left) == 1  # it waits still
    assert arms.left() == 9 - 4
    again = arms.ask()
    assert again.overrides == {key: gone[key] for key in gone["searched"]}
    assert again.protected
    arms.assign(again.number, "arm0")
    arms.tell(again.number, outer.record("arm0"))
    resumed = opened(tmp_path)
    assert resumed.reconcile(left | {"arm0": outer.record("arm0")}) == 0
    assert resumed.left() == 9 - 5


def test_senseless_entries_before_a_bad_line_are_no_trap(
    tmp_path: Path, whole: tuple[bytes, dict[str, Tree], dict[str, Tree]]
) -> None:
    content, records, expected = whole
    path = tmp_path / "optuna.journal"
    path.write_bytes(b'{"op_code": 77, "worker_id": "x"}\n' + content + GARBAGE)
    words = journal.mend(path) or ""
    assert words.count("damaged in line") == 2
    arms = opened(tmp_path)
    arms.reconcile(records)
    assert ended(arms) == expected
