"""A study that is killed again and again, held against the same study undisturbed.

What: the study runs once to its end. Then it runs once more, in another folder of reports, and is killed with
SIGKILL, its whole process group at once, at random moments of its own progress; after each kill
`--resume` goes on. Both have the same cache, so both know the same teacher and banks.

Compared are the sets of arms, how each ended, its numbers, and what Optuna's journal says of each.
Numbers are compared to a relative 1e-4: which arms share a cohort may differ after a kill, and sums of
float32 with it.

Command::

    python tools/kill_study.py search_spaces/quickstart.yaml --kills 10 --set search.arms=48 \\
        --set train.epochs=4 --set search.arms_per_trial=2

Prints one line a kill, then what differs; exit code 1 where anything does.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comkd_ray import study_file
from comkd_ray.cluster import set_environment
from comkd_ray.optuna_search import OWNER, OptunaArms
from comkd_ray.results import read_records

NEAR = 1e-4
WAIT = (10.0, 26.0)  # seconds that a part lives: some die while Ray starts, some between two cohorts


def command(study: Path, sets: Sequence[str], reports: Path, resume: bool) -> list[str]:
    """What a person types."""
    words = [sys.executable, "-m", "comkd_ray.cli", "tune", str(study), "--quiet", "--reports", str(reports)]
    words += [word for one in sets for word in ("--set", one)]
    return [*words, "--resume"] if resume else words


def kill_after(words: list[str], wait: float | None) -> float | None:
    """Start, and kill after `wait` seconds; seconds that it lived, or None where it ended by itself."""
    start = time.monotonic()
    process = subprocess.Popen(words, start_new_session=True)  # noqa: S603  (our own program)
    try:
        code = process.wait(wait)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(3.0)  # Ray's processes see that their driver is gone
        return time.monotonic() - start
    if code not in (0, 3):
        raise SystemExit(f"the study ended with code {code}")
    return None


def found(run: Path) -> dict[str, dict[str, Any]]:
    """Arm -> its values, how it ended, its numbers, and its trial's state."""
    study = study_file.load(run / "study.yaml")
    trials = OptunaArms(study, run / "optuna.journal").known()
    kept = [trial for trial in trials if not {"lost", "same_as"} & trial.user_attrs.keys()]
    states = {trial.user_attrs.get(OWNER): (trial.state.name, trial.value) for trial in kept}
    arms = {}
    for name, record in read_records(run).items():
        row = record["arm"]
        state, value = states.pop(name, (None, None))
        arms[name] = {
            "status": row["status"],
            "epochs": row["epochs_done"],
            "objective": row.get("objective"),
            "test": row.get("test_harmonic_mean"),
            "state": state,
            "value": value,
        }
    arms |= {str(lost): {"state": state} for lost, (state, _) in states.items()}
    return arms


def differences(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> list[str]:
    """What two runs of a study do not share, in words."""
    lines = [f"arm {arm} is in one of them only" for arm in sorted(one.keys() ^ other.keys())]
    for arm in sorted(one.keys() & other.keys()):
        for key, value in one[arm].items():
            theirs = other[arm].get(key)
            if isinstance(value, float) and isinstance(theirs, float):
                same = math.isclose(value, theirs, rel_tol=NEAR)
            else:
                same = value == theirs
            if not same:
                lines.append(f"arm {arm}: {key} {value} and {theirs}")
    return lines


def main() -> int:
    """Run both, compare."""
    parser = argparse.ArgumentParser(description="A study that is killed again and again.")
    parser.add_argument("study", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--wait", type=float, nargs=2, default=WAIT, metavar=("LEAST", "MOST"))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    set_environment(None)
    name, stream = study_file.load(options.study, options.set).study, random.Random(options.seed)  # noqa: S311
    with tempfile.TemporaryDirectory(prefix="comkd-kills-") as folder:
        whole, hurt = Path(folder) / "whole", Path(folder) / "hurt"
        start = time.monotonic()
        subprocess.run(command(options.study, options.set, whole, False), check=False)  # noqa: S603
        alone = time.monotonic() - start
        print(f"undisturbed: {alone:.0f} s, {len(found(whole / name))} arms", flush=True)
        kills, start = 0, time.monotonic()
        while True:
            wait = stream.uniform(*options.wait) if kills < options.kills else None
            resume = (hurt / name / "study.yaml").exists()
            words = command(options.study, options.set, hurt, resume)
            lived = kill_after(words, wait)
            if lived is None:
                break
            kills += 1
            records = len(read_records(hurt / name))
            print(f"kill {kills} after {lived:.0f} s: {records} arms have ended", flush=True)
        lines = differences(found(whole / name), found(hurt / name))
        print(f"{kills} kills, {time.monotonic() - start:.0f} s in all: {len(lines)} differences", flush=True)
        print(*lines, sep="\n")
    return 1 if lines or kills < options.kills else 0


if __name__ == "__main__":
    sys.exit(main())
