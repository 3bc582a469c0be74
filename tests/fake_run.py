"""A run directory as a study leaves it, with made-up but plausible numbers: no torch, no Ray."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from comkd_ray import results, study_file
from comkd_ray.config import Study
from comkd_ray.protocols import PROTOCOLS, objective_of

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
ROWS: dict[str, Any] = {
    "student.prompt_length": {"choice": [0, 4]},
    "student.ifalign": {"choice": [False, True], "when": {"student.prompt_length": 4}},
    "student.edu_attention": {"choice": [False, True], "when": {"student.prompt_length": 4}},
    "train.seed": {"choice": [1, 2, 3]},
}
"""The eight rows: projector only, and the 2x2 with prompts."""
PAIR = {
    "teacher": {"model": "ViT-L-14", "pretrained": "openai"},
    "student": {"model": "ViT-B-16", "pretrained": "openai", "ifalign": False, "edu_attention": False},
}
"""The paper's towers, and PromptKD where nothing else is said."""
KINDS = [
    ("base_to_novel", "strict"),
    ("base_to_novel", "promptkd"),
    ("cross_dataset", "strict"),
    ("domain_generalization", "promptkd"),
    ("all_classes", "strict"),
]
"""Protocols and selections that differ in their scores or in their words."""
CLASSES = [
    "Leopards",
    "<b>crab & co</b>",
    "Größe",
    "象",
    'it\'s "quoted"',
    "</script><script>alert(1)",
]


def study_tree(
    space: Row,
    sampler: str = "tpe",
    note: str = "",
    epochs: int = 9,
    kind: tuple[str, str] = KINDS[0],
    **sections: Any,
) -> Row:
    """A resolved study as plain values; `kind` is protocol and selection."""
    tree = {
        "study": "fake-study",
        "note": note,
        "protocol": kind[0],
        "selection": kind[1],
        "data": {"root": "/data/photographs"},
        "teacher": {"model": "assets:mini_teacher"},
        "student": {"model": "ViT-B-32"},
        "train": {"epochs": epochs},
        "search": {"sampler": sampler, "arms": None if sampler == "grid" else 24, "space": space},
        **sections,
    }
    if PROTOCOLS[kind[0]].has_source:
        tree["source"] = {"dataset": "imagenet", "root": "/data/imagenet"}
    return tree


def arm(
    number: int, overrides: Row, status: str = "complete", epochs: int = 9, tree: Row | None = None
) -> tuple[Row, list[Row]]:
    """One arm and its epochs. A little of every knob shows in its scores; the seed adds noise."""
    base = study_file.build(tree or study_tree({**SPACE, **GRID}), "fake")
    study = study_file.resolve(base, overrides)
    flat = study_file.flatten(study.model_dump(mode="json"))
    values: Row = {k: v for k, v in flat.items() if k.startswith(("student.", "loss.", "train."))}
    draw = random.Random(f"{number} {overrides}")
    gain = 0.6 * values["student.ifalign"] + 0.4 * values["student.edu_attention"]
    gain -= 1.5 * abs(values["loss.temperature"] - 2) / 2 + draw.gauss(0, 0.5)
    gain -= 2.0 * (values["student.prompt_length"] == 0)
    done = epochs if status == "complete" else (2 if status == "pruned" else 1)
    rows = [_epoch(identity(number), epoch, gain, draw, study) for epoch in range(1, done + 1)]
    best = max(rows, key=lambda row: row["objective"])
    kept = ("val_", "test_", "objective")
    scores = {k: None if status == "failed" else best[k] for k in best if k.startswith(kept)}
    edu = values["student.edu_attention"]
    trainable = 41_000 * (values["student.prompt_length"] > 0) + 590_000 + 790_000 * edu
    row = {
        "arm": identity(number),
        "cohort": f"cohort{number // 8}",
        "number": number,
        "protocol": study.protocol,
        "selection": study.selection,
        "status": status,
        "error": "RuntimeError: out of memory <script>alert('x')</script>" if status == "failed" else None,
        "seed": values["train.seed"],
        "epochs_done": 0 if status == "failed" else done,
        "best_epoch": None if status == "failed" else best["epoch"],
        **scores,
        **_references(study),
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


def _epoch(name: str, epoch: int, gain: float, draw: random.Random, study: Study) -> Row:
    level = 80 + gain - 9 * 0.7**epoch + draw.gauss(0, 0.3)
    base, novel = level + 4 + draw.gauss(0, 0.4), level - 4 + draw.gauss(0, 0.4)
    row = {
        "arm": name,
        "epoch": epoch,
        "lr": 0.005,
        "loss": (1.4 - gain / 8) * 0.8**epoch + 0.3 + draw.gauss(0, 0.02),
        "loss_kd": 0.2,
        "loss_align": None,
        "alpha": 0.1,
        "seconds": 3.5,
        **_scores("val_", base, novel, study, ("base_accuracy", "novel_agreement", "harmonic_mean")),
        **_scores("test_", base - 1, novel - 2, study),
    }
    halves = PROTOCOLS[study.protocol].has_halves
    row |= dict.fromkeys(("val_accuracy", "val_agreement"), None if halves else level)
    return row | {"objective": row[objective_of(study)]}


SCORES = ("base_accuracy", "novel_accuracy", "harmonic_mean")


def _scores(
    prefix: str, base: float, novel: float, study: Study, names: tuple[str, ...] = SCORES
) -> dict[str, float | None]:
    """Scores of both families; those that the protocol has not are None."""
    mean = 2 * base * novel / (base + novel)
    if PROTOCOLS[study.protocol].has_halves:
        found: dict[str, float | None] = dict(zip(names, (base, novel, mean), strict=True))
        found |= {"accuracy": None}
    else:
        found = {**dict.fromkeys(names), "accuracy": mean}
    return {f"{prefix}{name}": value for name, value in found.items()}


def _references(study: Study) -> Row:
    levels = {"teacher": (86.0, 79.0), "teacher_zero_shot": (80.0, 78.0), "zero_shot": (74.0, 70.0)}
    row: Row = {}
    for name, (base, novel) in levels.items():
        row |= _scores(f"{name}_test_", base, novel, study)
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


def searched_arms(count: int = 22, tree: Row | None = None) -> list[tuple[Row, list[Row]]]:
    """A TPE-like study: about a fifth pruned, two failed."""
    statuses = {3: "failed", 11: "failed", 5: "pruned", 8: "pruned", 13: "pruned", 17: "pruned"}
    return [arm(n, drawn(n), statuses.get(n, "complete"), tree=tree) for n in range(count)]


def grid_arms(seeds: int = 5) -> list[tuple[Row, list[Row]]]:
    """2x2 modules times seeds, all complete."""
    cells = [(a, b, s) for s in range(1, seeds + 1) for a in (True, False) for b in (True, False)]
    return [
        arm(n, {"student.ifalign": a, "student.edu_attention": b, "train.seed": s})
        for n, (a, b, s) in enumerate(cells)
    ]


def rows_tree(kind: tuple[str, str] = KINDS[0], **sections: Any) -> Row:
    """A grid over ROWS with the paper's towers."""
    return study_tree(ROWS, "grid", kind=kind, **{**PAIR, **sections})


def rows_arms(tree: Row, seeds: int = 3) -> list[tuple[Row, list[Row]]]:
    """Projector only and the 2x2 with prompts, times seeds, all complete."""
    cells: list[Row] = [{"student.prompt_length": 0}]
    cells += [
        {"student.prompt_length": 4, "student.ifalign": a, "student.edu_attention": b}
        for a in (False, True)
        for b in (False, True)
    ]
    points = [{**cell, "train.seed": seed} for seed in range(1, seeds + 1) for cell in cells]
    return [arm(n, point, tree=tree) for n, point in enumerate(points)]


def enumerated(name: str, seeds: int | None = None, **sections: Any) -> tuple[Row, list[Row]]:
    """A study file that ships, a grid or a list: its tree, and the cells that it asks for."""
    study = study_file.load(study_file.search_spaces() / f"{name}.yaml")
    tree = {**study.model_dump(mode="json"), **sections}
    if seeds is not None:
        tree["search"]["space"]["train.seed"]["choice"] = list(range(1, seeds + 1))
    return tree, study_file.cells(study_file.build(tree, name))


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
                 "val": 80, "test": 240, "teacher": 48, "shots": 16, "views": 9},
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
