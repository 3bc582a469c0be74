"""Who may import whom, how large a room may be, and what a light command may not load.

Reading order is import order: a room stands below everything that it may not know. The table is
complete, so a new room has to be put into it, and an import that hides inside a function counts.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

import comkd_ray

PACKAGE = Path(comkd_ray.__file__).parent
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "assets" not in path.parts
}
HEAVY = {
    "open_clip", "optuna", "pandas", "plotly", "polars", "ray", "safetensors", "scipy", "timm", "torch",
    "torchvision",
}  # fmt: skip

# room: rooms it may import | heavy libraries it may import
ALLOWED = {
    "__init__": "|",
    "errors": "|",
    "markup": "|",
    "search_space": "|",
    "quarantine": "errors |",
    "config": "search_space |",
    "study_tree": "errors |",
    "study_file": "config errors protocols search_space study_tree |",
    "cache": "errors |",
    "protocols": "config |",
    # data
    "data.__init__": "|",
    "data.splits": "errors |",
    "data.folders": "errors |",
    "data.layouts": "data.folders data.splits errors |",
    "data.raw": "data.folders data.layouts data.splits errors | scipy",
    "data.datasets": "config data.folders data.layouts data.raw data.splits errors |",
    "data.inspection": "config data.datasets data.folders data.layouts data.splits errors |",
    "data.views": "data.splits | torch",
    "data.decoding": "|",
    "data.storing": "data.datasets data.decoding data.folders errors |",
    "data.pixels": "data.datasets data.decoding data.storing data.views errors |",
    "data.stream": "config data.datasets data.decoding data.pixels data.storing errors | torch",
    # method
    "process": "| torch",
    "losses": "| torch",
    "metrics": "config protocols | torch",
    "precision": "| torch",
    "optim": "precision | torch",
    "models": "config errors study_tree | open_clip safetensors torch",
    "prompts": "config errors models | open_clip torch",
    "student": "config losses models precision prompts | torch",
    "results": "errors quarantine | polars",
    "bank_store": "errors results |",
    "bank_care": "bank_store errors |",
    "bank": "bank_store data.pixels data.views errors study_file | torch",
    "photographs": "config data.datasets data.pixels data.splits data.stream errors models protocols"
    " study_file |",
    "material": "bank config errors models photographs results study_file | safetensors torch",
    "teacher": "config errors losses material models optim prompts results study_file"
    " | open_clip safetensors torch",
    "stage_one": "bank config data.datasets data.pixels errors losses material metrics models photographs"
    " prompts protocols study_file teacher | torch",
    "prepare": "bank bank_store config data.datasets data.pixels material models photographs prompts"
    " stage_one student study_file teacher | torch",
    "cohort": "bank config data.datasets losses material metrics models optim prompts protocols results"
    " student | torch",
    "train": "cohort config material protocols results | torch",
    "weights": "config errors losses models prompts results student study_file | safetensors torch",
    # Ray and Optuna
    "progress": "|",
    "provenance": "__init__ results |",
    "jobs": "cohort config material process progress protocols results search_space study_file train"
    " weights |",
    "cohort_size": "config search_space |",
    "memory_probe": "cohort cohort_size config data.datasets errors jobs material models process protocols"
    " results search_space study_file | torch",
    "budget": "config protocols |",
    "journal": "quarantine results | optuna",
    "samplers": "config search_space | optuna scipy",
    "optuna_search": "config journal protocols results samplers search_space study_file | optuna",
    "study_life": "config errors material protocols provenance results search_space study_file weights |",
    "ablation": "config optuna_search results search_space study_file |",
    "growth": "arms comparison config designs results search_space sequential study_file |",
    "ledger": "config errors growth jobs material results search_space study_file weights words |",
    "starting_point": "arms config designs errors ledger results study_file words |",
    "retune": "arms config designs errors jobs plan results search_space study_file study_life words |",
    "ablation_plan": "config designs fractional ledger planner sequential words |",
    "cluster": "config errors | ray",
    "ray_train": "config data.pixels errors jobs material memory_probe prepare process progress results"
    " stage_one study_file train | ray ray.train torch",
    "tune": "budget cluster config jobs material optuna_search progress protocols ray_train results"
    " search_space study_file train weights | ray ray.tune",
    # report
    "stats": "| scipy",
    "words": "|",
    "planner": "stats words | scipy",
    "comparison": "errors planner stats | scipy",
    "sequential": "comparison planner stats |",
    "factorial": "errors stats | polars",
    "across_datasets": "errors planner stats | polars scipy",
    "arms": "errors protocols search_space | polars",
    "fractional": "|",
    "designs": "arms config errors fractional search_space study_file words |",
    "collapse": "arms stats | polars",
    "pairing": "arms collapse comparison sequential study_file | polars",
    "variants": "arms collapse pairing search_space stats study_file words | polars",
    "claims": "arms config designs pairing search_space study_file words | polars",
    "retuned": "claims config designs pairing search_space study_file words | polars",
    "run": "arms config errors pairing protocols quarantine results retuned study_file study_tree | polars",
    "reference_rows": "arms collapse config search_space stats study_file words | polars",
    "components": "arms collapse config errors factorial pairing reference_rows search_space stats study_file"
    " | polars",
    "published": "|",
    "published_gap": "config published reference_rows stats |",
    "tables": "arms collapse comparison components factorial pairing published published_gap reference_rows"
    " retuned stats variants words |",
    "costs": "arms config tables variants words | polars",
    "markdown": "arms collapse components main_effects pairing published_gap reference_rows report_facts"
    " run tables variants |",
    "joint": "across_datasets arms collapse config errors reference_rows run stats study_file variants words"
    " | polars",
    "figure": "arms collapse words | plotly",
    "plots": "arms collapse figure protocols stats | plotly polars",
    "cost_plots": "arms collapse figure reference_rows stats | plotly polars",
    "search_study": "arms protocols search_space | optuna polars",
    "search_plots": "arms collapse figure protocols search_study | optuna plotly polars",
    "front_plot": "arms figure protocols search_plots search_study | optuna plotly polars",
    "importance": "arms figure protocols search_study | optuna plotly polars",
    "knob_plots": "arms claims config designs figure search_space stats words | plotly polars",
    "main_effects": "arms claims components config designs errors factorial search_space stats | polars",
    "retuned_plots": "figure pairing retuned stats | plotly",
    "rank_plot": "across_datasets figure | plotly",
    "findings": "arms collapse pairing protocols reference_rows words | polars",
    "report_tables": "arms collapse components findings markup pairing protocols stats tables words | polars",
    "report_facts": "arms findings markup words | polars",
    "document": "markup words | plotly",
    "report_figures": "arms collapse components cost_plots costs document figure findings front_plot"
    " importance markup plots reference_rows report_facts report_tables run search_plots variants | plotly",
    "report_ablation": "config document knob_plots main_effects markup report_figures report_tables"
    " retuned retuned_plots run tables |",
    "report": "claims document findings markup published published_gap reference_rows report_ablation"
    " report_facts report_figures report_tables results run tables variants |",
    "joint_report": "across_datasets collapse document joint markdown markup planner rank_plot"
    " report_facts report_figures report_tables results run tables words |",
    # top
    "plan": "arms cache cohort_size config data.datasets data.folders data.storing data.stream designs"
    " jobs models photographs planner prepare prompts protocols search_space student study_file words |"
    " torch",
    "simulate": "|",
    "stopwatch": "| torch",
    "rehearsal": "bank cohort config data.datasets data.folders losses material models photographs prompts"
    " search_space study_file | torch",
    "probe": "bank bank_store config data.datasets data.folders data.pixels errors material models"
    " photographs process protocols rehearsal stopwatch student teacher | open_clip torch",
    "lineup": "cohort cohort_size config jobs plan study_file |",
    "forecast": "bank_store cluster cohort config errors jobs lineup plan probe simulate teacher train words"
    " | torch",
    "study_run": "ablation budget cache cluster cohort_size config data.datasets errors growth jobs"
    " journal ledger material optuna_search photographs plan prepare progress protocols provenance"
    " ray_train report results search_space study_file study_life tune weights |",
    "ablation_run": "ablation_plan cluster config designs errors joint_report ledger plan progress retune"
    " starting_point study_file study_life study_run words |",
    # measuring
    "bench_files": "bank data.decoding data.views photographs | torch torchvision",
    "baseline": "bank bench_files cohort config data.datasets losses material metrics models optim"
    " photographs prepare process prompts results stage_one student study_file teacher | torch",
    "bench_step": "bank bank_store bench_files config data.datasets data.stream material models"
    " photographs process provenance rehearsal stage_one stopwatch teacher | torch",
    "bench_scale": "config errors jobs lineup optuna_search protocols provenance rehearsal report"
    " results study_file tune weights |",
    "scale": "bank_store config data.datasets data.splits forecast lineup plan study_file |",
    "bench_table": "config |",
    "bench_sweep": "bank_care bench_table config errors material prepare progress protocols provenance"
    " results search_space study_file | torch",
    "exits": "errors |",
    "cli_end": "arms exits |",
    "cli_ablate": "ablation_run claims cli_end cluster designs errors exits forecast plan progress run"
    " study_file |",
    "cli_bank": "bank_care cache cluster errors exits progress ray_train study_file |",
    "cli_bench": "bench_scale bench_step bench_sweep bench_table cache cluster exits progress scale"
    " study_file |",
    "cli_data": "config data.datasets data.inspection data.splits errors exits progress |",
    "cli_teacher": "cache cluster exits progress ray_train study_file |",
    "cli": "__init__ budget cli_ablate cli_bank cli_bench cli_data cli_end cli_teacher cluster errors"
    " exits forecast joint_report markdown plan progress report results run study_file study_life"
    " study_run words |",
}
REPORT_SIDE = (
    "stats", "words", "planner", "comparison", "sequential", "factorial", "across_datasets",
    "quarantine", "arms", "collapse", "pairing", "variants", "run", "reference_rows", "components",
    "published", "published_gap", "tables", "costs", "markdown", "joint", "figure", "plots", "cost_plots",
    "search_study", "search_plots", "front_plot", "importance", "rank_plot", "findings", "markup",
    "report_tables", "report_facts",
    "document", "report_figures", "report", "joint_report", "results",
)  # fmt: skip
VAGUE = {"utils", "util", "common", "base", "core", "misc", "helpers", "registry", "manager", "tools"}


@lru_cache
def imported(room: str) -> set[str]:
    """Every module that a room imports, wherever in the file; names of `from a import b` as `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[room].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@lru_cache
def rooms_of(room: str) -> set[str]:
    """Rooms of this package that a room imports."""
    rooms = set()
    for name in imported(room):
        if name.split(".")[0] != "comkd_ray":
            continue
        inside = name.removeprefix("comkd_ray").lstrip(".")
        while inside and inside not in FILES and f"{inside}.__init__" not in FILES:
            inside = inside.rpartition(".")[0]
        rooms.add(inside if inside in FILES else f"{inside}.__init__".lstrip("."))
    return rooms


def heavy_of(room: str) -> set[str]:
    """Heavy libraries that a room imports; Ray's halves apart."""
    heavy = {name.split(".")[0] for name in imported(room)} & HEAVY
    halves = {".".join(name.split(".")[:2]) for name in imported(room)}
    return heavy | (halves & {"ray.train", "ray.tune"})


def may(room: str) -> tuple[set[str], set[str]]:
    rooms, _, heavy = ALLOWED[room].partition("|")
    return set(rooms.split()), set(heavy.split())


def reached(room: str) -> set[str]:
    """A room and all that importing it imports."""
    found, waiting = {room}, [room]
    while waiting:
        new = rooms_of(waiting.pop()) - found
        found |= new
        waiting += new
    return found


def functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    return [
        (room, node)
        for room, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


# Imports ----------------------------------------------------------------------------------------


def test_the_table_names_every_room_and_no_other() -> None:
    assert sorted(ALLOWED) == sorted(FILES)


@pytest.mark.parametrize("room", FILES)
def test_a_room_imports_what_the_table_allows(room: str) -> None:
    rooms, heavy = may(room)
    assert (sorted(rooms_of(room) - rooms), sorted(heavy_of(room) - heavy)) == ([], [])


@pytest.mark.parametrize("room", FILES)
def test_the_table_allows_nothing_that_is_not_used(room: str) -> None:
    rooms, heavy = may(room)
    assert (sorted(rooms - rooms_of(room)), sorted(heavy - heavy_of(room))) == ([], [])


def test_no_room_reaches_itself() -> None:
    circles = {room for room in FILES for other in rooms_of(room) if room in reached(other)}
    assert circles == set()


@pytest.mark.parametrize("room", REPORT_SIDE)
def test_a_report_needs_neither_torch_nor_ray(room: str) -> None:
    heavy = set().union(*(heavy_of(one) for one in reached(room)))
    assert not heavy & {"torch", "torchvision", "open_clip", "ray", "ray.train", "ray.tune"}


def test_each_half_of_ray_has_one_room() -> None:
    users = {name: {room for room in FILES if name in heavy_of(room)} for name in ("ray.tune", "ray.train")}
    assert users == {"ray.tune": {"tune"}, "ray.train": {"ray_train"}}
    assert {room for room in FILES if "ray" in heavy_of(room)} == {"cluster", "ray_train", "tune"}


@pytest.mark.parametrize("room", ["train", "cohort", "student", "material", "weights", "jobs"])
def test_the_teacher_is_out_of_reach_of_training(room: str) -> None:
    assert not reached(room) & {"teacher", "prepare"}


def test_data_knows_nothing_of_the_method() -> None:
    for room in FILES:
        if room.startswith("data."):
            outside = {one for one in reached(room) if not one.startswith("data.")}
            assert outside <= {"errors", "__init__", "config", "search_space"}
            of_config = {name for name in imported(room) if name.startswith("comkd_ray.config")}
            assert of_config <= {"comkd_ray.config.Data", "comkd_ray.config.DataSet"}


# Weight of the command line -----------------------------------------------------------------------


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_command_line_answers_without_heavy_libraries() -> None:
    assert not loaded_by("import comkd_ray.cli") & HEAVY


def test_a_study_file_is_checked_without_heavy_libraries() -> None:
    check = "from comkd_ray import study_file as s; s.load(s.search_spaces() / 'quickstart.yaml')"
    assert not loaded_by(check) & HEAVY


def test_looking_after_banks_does_not_load_torch() -> None:
    assert not loaded_by("import comkd_ray.bank_care") & {"torch", "torchvision", "open_clip", "ray"}


def test_a_report_loads_neither_torch_nor_ray() -> None:
    assert not loaded_by("import comkd_ray.report") & {"torch", "torchvision", "open_clip", "ray"}


# Sizes and manners ------------------------------------------------------------------------------


@pytest.mark.parametrize("room", FILES)
def test_a_room_fits_in_the_head(room: str) -> None:
    assert len(FILES[room].read_text(encoding="utf-8").splitlines()) <= 400


def test_rooms_are_small_as_a_rule() -> None:
    sizes = sorted(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES.values())
    assert sizes[len(sizes) // 2] <= 200


def test_a_function_fits_on_a_screen() -> None:
    long = [f"{room}.{one.name}" for room, one in functions() if (one.end_lineno or 0) - one.lineno + 1 > 60]
    assert long == []


def test_every_parameter_and_every_return_is_annotated() -> None:
    bare = []
    for room, one in functions():
        arguments = one.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        extra = [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
        bare += [
            f"{room}.{one.name}({each.arg})"
            for each in (*named, *extra)
            if each.annotation is None and each.arg not in ("self", "cls")
        ]
        bare += [f"{room}.{one.name} -> ?"] if one.returns is None else []
    assert bare == []


@pytest.mark.parametrize("room", FILES)
def test_every_room_says_what_it_is(room: str) -> None:
    words = ast.get_docstring(ast.parse(FILES[room].read_text(encoding="utf-8")))
    assert words
    assert len(words.splitlines()[0]) <= 110


@pytest.mark.parametrize("room", [room for room in FILES if room.endswith("__init__")])
def test_init_files_hold_words_and_the_version_only(room: str) -> None:
    body = ast.parse(FILES[room].read_text(encoding="utf-8")).body
    code = [ast.unparse(node) for node in body if not isinstance(node, ast.Expr)]
    assert [line for line in code if not line.startswith("__version__ = ")] == []


def test_no_room_has_a_name_that_says_nothing() -> None:
    words = {word for room in FILES for part in room.split(".") for word in part.split("_") if word}
    assert not words & VAGUE


def test_asserting_rooms_find_what_they_look_for() -> None:
    """The readers of this file are not blind: they see hidden, dotted and renamed imports."""
    assert "study_run" in rooms_of("cli")
    assert {"ray", "ray.train"} <= heavy_of("ray_train")
    assert rooms_of("data.layouts") == {"data.folders", "data.splits", "errors"}
    assert "__init__" in rooms_of("provenance")
    assert "torch" in set().union(*(heavy_of(one) for one in reached("study_run")))
