"""Progress that crosses processes and nodes: small files in the run directory, and who shows them.

A worker's `Meter` rewrites `progress/<name>.json` at most twice a second; the driver's `Watch`
reads them. No actor, no queue, nothing that can hang or be throttled.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

FOLDER = "progress"
EVERY = 0.5  # seconds between two writings of one file
PLAIN_EVERY = 10.0  # seconds between two lines where the output is no terminal
STAGES = {
    "teacher": "tune teacher",
    "text": "class names",
    "bank": "teacher bank",
    "memory": "probe memory",
    "arms": "train arms",
}


class Meter:
    """Says how far a piece of work is; called as often as one likes."""

    def __init__(self, run: Path, name: str) -> None:
        self.path = run / FOLDER / f"{name}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.last = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say that `done` of `total` of a stage is over."""
        now = time.monotonic()
        if done < total and now - self.last < EVERY:
            return
        self.last = now
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"stage": stage, "done": done, "total": total}), encoding="utf-8")
        temporary.replace(self.path)


class State(TypedDict):
    """What a meter said: a stage, and how far it is."""

    stage: str
    done: int
    total: int


def read(run: Path) -> dict[str, State]:
    """What every meter last said, by its name."""
    states: dict[str, State] = {}
    for path in (run / FOLDER).glob("*.json"):
        try:
            states[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # just being replaced, or gone
    return states


def clear(run: Path, cohort: str | None = None) -> None:
    """Forget what meters of an earlier run said, or those of a cohort that is over."""
    for path in (run / FOLDER).glob("*" if cohort is None else f"{cohort}.*"):
        path.unlink(missing_ok=True)


class Screen:
    """What a person sees: bars on a terminal, plain lines in a log, JSON lines for machines."""

    def __init__(self, style: str) -> None:
        """style: "rich", "plain", "json" or "quiet"."""
        self.style = style
        self.console = Console(stderr=True, highlight=False)
        self.bars: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.shown: dict[str, float] = {}
        self.begun: dict[str, float] = {}

    def __enter__(self) -> Screen:
        if self.style == "rich":
            columns = (
                TextColumn("{task.description:<14}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[detail]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self.bars = Progress(*columns, console=self.console, expand=True, speed_estimate_period=120)
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def say(self, text: str, **fields: object) -> None:
        """One message."""
        if self.style == "json":
            print(json.dumps({"event": "message", "text": text, **fields}), flush=True)
        elif self.bars is not None:
            self.bars.console.print(text)
        elif self.style == "plain":
            print(text, file=sys.stderr, flush=True)

    def show(self, stage: str, done: float, total: float, detail: str) -> None:
        """How far a stage is. Stages appear in the order in which they begin."""
        now = time.monotonic()
        self.begun.setdefault(stage, now)
        if self.bars is not None:
            if stage not in self.tasks:
                name = STAGES.get(stage, stage)
                self.tasks[stage] = self.bars.add_task(name, total=total, detail="")
            self.bars.update(self.tasks[stage], completed=done, total=total, detail=detail)
            return
        if done < total and self.shown.get(stage) == float("inf"):  # its next piece: another bank
            del self.shown[stage]
            self.begun[stage] = now
        due = now - self.shown.get(stage, -PLAIN_EVERY) >= PLAIN_EVERY
        if not due and not (done >= total and self.shown.get(stage) != float("inf")):
            return
        if self.shown.get(stage) == float("inf"):
            return
        self.shown[stage] = float("inf") if done >= total else now
        self._line(stage, done, total, detail, now - self.begun[stage])

    def _line(self, stage: str, done: float, total: float, detail: str, spent: float) -> None:
        left = spent / done * (total - done) if done else None
        if self.style == "json":
            event = {"event": "progress", "stage": stage, "done": round(done, 2), "total": total}
            print(json.dumps(event | {"seconds_left": left and round(left, 1)}), flush=True)
        elif self.style == "plain":
            tail = f", {clock(left)} left" if left else ""
            name = STAGES.get(stage, stage)
            print(f"{name}: {100 * done / total:.0f} %  {detail}{tail}", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def quiet_libraries(verbose: bool) -> None:
    """open_clip and its kin warn and log at import; a person asked for a study. Call it before."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not verbose:
        logging.basicConfig(level=logging.ERROR)
        warnings.filterwarnings("ignore")


class Watch:
    """A thread that calls `look` every so many seconds while a block runs, and once at its end."""

    def __init__(self, look: Callable[[], None], seconds: float = EVERY) -> None:
        self.look, self.seconds = look, seconds
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self.look()

    def _run(self) -> None:
        while not self.stop.wait(self.seconds):
            self.look()
