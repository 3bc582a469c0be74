"""A run directory as a study leaves it, with made-up but plausible numbers: no torch, no Ray."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from comkd_ray import results, study_file

Row = dict[str, Any]

SPACE: dict[str, Any] = {
    "student.ifalign": {"choice": [True, False]},
    "student.edu_attention": {"choice": [True, False]},
    "student.attention_scale": {
        "choice": [1.0, 4.0, "sqrt_width"],
        "when": {"student.edu_attention": True},
    },
    "loss.temperature": {"float": [0.5, 8.0], "log": True},
    "loss.kd_weight": {"float": [0.25, 4.0], "log": True},
    "loss.align_weight": {"float": [0.1, 10.0], "log": True, "when": {"student.ifalign": True}},
    "train.lr": {"float": [0.001, 0.1], "log": True},
}
GRID: dict[str, Any] = {
    "student.ifalign": {"choice": [True, False]},
    "student.edu_attention": {"choice": [True, False]},
    "train.seed": {"choice": [1, 2, 3, 4, 5]},
}
CLASSES = [
    "Leopards",
    "<b>crab & co</b>",
    "Größe",
    "象",
    'it\'s "quoted"',
    "</script><script>alert(1)",
]


def study_tree(space: Row, sampler: str = "tpe", note: str = "", epochs: int = 9) -> Row:
    """A resolved study as plain values."""
    return {
        "study": "fake-study",
        "note": note,
        "data": {"root": "assets:caltech20"},
        "teacher": {"model": "assets:mini_teacher"},
        "student": {"model": "ViT-B-32"},
        "train": {"epochs": epochs},
        "search": {"sampler": sampler, "arms": None if sampler == "grid" else 24, "space": space},
    }


def arm(number: int, overrides: Row, status: str = "complete", epochs: int = 9) -> tuple[Row, list[Row]]:
    """One arm and its epochs. A little of every knob shows in its scores; the seed adds noise."""
    study = study_file.resolve(study_file.build(study_tree({**SPACE, **GRID}), "fake"), overrides)
    flat = study_file.flatten(study.model_dump(mode="json"))
    values: Row = {k: v for k, v in flat.items() if k.startswith(("student.", "loss.", "train."))}
    draw = random.Random(f"{number} {overrides}")
    gain = 0.6 * values["student.ifalign"] + 0.4 * values["student.edu_attention"]
    gain -= 1.5 * abs(values["loss.temperature"] - 2) / 2 + draw.gauss(0, 0.5)
    done = epochs if status == "complete" else (2 if status == "pruned" else 1)
    rows = [_epoch(identity(number), epoch, gain, draw) for epoch in range(1, done + 1)]
    best = max(rows, key=lambda row: row["val_harmonic_mean"])
    scores = {k: None if status == "failed" else best[k] for k in best if k.startswith(("val_", "test_"))}
    edu = values["student.edu_attention"]
    trainable = 41_000 + 590_000 + 790_000 * edu
    row = {
        "arm": identity(number),
        "cohort": f"cohort{number // 8}",
        "number": number,
        "status": status,
        "error": "RuntimeError: out of memory <script>alert('x')</script>" if status == "failed" else None,
        "seed": values["train.seed"],
        "epochs_done": 0 if status == "failed" else done,
        "best_epoch": None if status == "failed" else best["epoch"],
        **scores,
        **_references(),
        "seconds": done * draw.uniform(3.0, 4.0),
        "teacher_seconds_saved": done * 11.0,
        "trainable_parameters": trainable,
        "total_parameters": 5_600_000 + trainable,
        "teacher_parameters": 86_000_000,
        "searched": sorted(overrides),
        **values,
    }
    return row, [] if status == "failed" else rows


def identity(number: int) -> str:
    """A 12-digit name as results.py gives arms."""
    return study_file.digest("fake", number)


def _epoch(name: str, epoch: int, gain: float, draw: random.Random) -> Row:
    level = 80 + gain - 9 * 0.7**epoch + draw.gauss(0, 0.3)
    base, novel = level + 4 + draw.gauss(0, 0.4), level - 4 + draw.gauss(0, 0.4)
    mean = 2 * base * novel / (base + novel)
    return {
        "arm": name,
        "epoch": epoch,
        "lr": 0.005,
        "loss": (1.4 - gain / 8) * 0.8**epoch + 0.3 + draw.gauss(0, 0.02),
        "loss_kd": 0.2,
        "loss_align": None,
        "alpha": 0.1,
        "seconds": 3.5,
        "val_base_accuracy": base,
        "val_novel_agreement": novel,
        "val_harmonic_mean": mean,
        "test_base_accuracy": base - 1,
        "test_novel_accuracy": novel - 2,
        "test_harmonic_mean": mean - 1.5,
    }


def _references() -> Row:
    levels = {"teacher": (86.0, 79.0), "teacher_zero_shot": (80.0, 78.0), "zero_shot": (74.0, 70.0)}
    row: Row = {}
    for name, (base, novel) in levels.items():
        mean = 2 * base * novel / (base + novel)
        for score, value in zip(results.SCORES, (base, novel, mean), strict=True):
            row[f"{name}_test_{score}"] = value
    return row


def drawn(number: int) -> Row:
    """Overrides as a sampler draws them from SPACE; conditional keys only where active."""
    draw = random.Random(number)
    values: Row = {
        "student.ifalign": draw.random() < 0.6,
        "student.edu_attention": draw.random() < 0.6,
        "loss.temperature": round(0.5 * 16 ** draw.random(), 3),
        "loss.kd_weight": round(0.25 * 16 ** draw.random(), 3),
        "train.lr": round(0.001 * 100 ** draw.random(), 5),
    }
    if values["student.edu_attention"]:
        values["student.attention_scale"] = draw.choice([1.0, 4.0, "sqrt_width"])
    if values["student.ifalign"]:
        values["loss.align_weight"] = round(0.1 * 100 ** draw.random(), 3)
    return values


def searched_arms(count: int = 22) -> list[tuple[Row, list[Row]]]:
    """A TPE-like study: about a fifth pruned, two failed."""
    statuses = {3: "failed", 11: "failed", 5: "pruned", 8: "pruned", 13: "pruned", 17: "pruned"}
    return [arm(n, drawn(n), statuses.get(n, "complete")) for n in range(count)]


def grid_arms(seeds: int = 5) -> list[tuple[Row, list[Row]]]:
    """2x2 modules times seeds, all complete."""
    cells = [(a, b, s) for s in range(1, seeds + 1) for a in (True, False) for b in (True, False)]
    return [
        arm(n, {"student.ifalign": a, "student.edu_attention": b, "train.seed": s})
        for n, (a, b, s) in enumerate(cells)
    ]


def provenance(**changes: Any) -> Row:
    """What the command line records beside the tables."""
    return {
        "created": "2026-11-02T10:00:00+00:00",
        "finished": "2026-11-02T11:14:00+00:00",
        "command": "comkd-ray tune search_spaces/quickstart.yaml",
        "demo_weights": True,
        "sample": True,
        "versions": {"comkd-ray": "0.1.0", "torch": "2.12.0", "ray": "2.60.0", "optuna": "5.0.0"},
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "machine": {"cpu": "AMD EPYC", "cores": 2, "memory_gib": 15.6, "gpus": []},
        "hashes": {"data": "aaaabbbbcccc", "teacher": "ddddeeeeffff", "bank": "000011112222"},
        "stages": {"pixels": 4.2, "teacher": 190.0, "bank": 61.0, "search": 880.0},
        "wall_seconds": 1140.0,
        "peak_memory_bytes": 3 * 2**30,
        "arms_asked": 24,
        "data": {"name": "caltech20", "split": "zhou", "classes": CLASSES, "base": 3, "train": 160,
                 "val": 80, "test": 240, "shots": 16, "views": 9},
        "notes": ["Novel-class images are used without labels: transductive."],
        **changes,
    }  # fmt: skip


def write(
    run: Path,
    arms: list[tuple[Row, list[Row]]],
    study: Row | None = None,
    facts: Row | None = None,
) -> Path:
    """Write records, tables and, where given, study.yaml and provenance.json; returns `run`."""
    for row, epochs in arms:
        results.write_record(run, row, epochs)
    results.compact(run)
    if study is not None:
        study_file.dump(study_file.build(study, "fake"), run / "study.yaml")
    if facts is not None:
        (run / "provenance.json").write_text(json.dumps(facts), encoding="utf-8")
    return run
