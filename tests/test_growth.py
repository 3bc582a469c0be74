"""`--until-decided`: which cells are wanted follows from the records, and only open claims grow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import outer
import pytest

from comkd_ray import study_file
from comkd_ray.comparison import Claim
from comkd_ray.config import Study
from comkd_ray.designs import compile_study, until_decided
from comkd_ray.growth import passed_arms, wanted_arms
from comkd_ray.jobs import arm_identity
from comkd_ray.search_space import Overrides
from comkd_ray.sequential import decide

Tree = dict[str, Any]
FLAGS: Tree = {"student.ifalign": [False, True], "student.edu_attention": [False, True]}
SCORE = "test_harmonic_mean"


def ablation(design: str, seeds: Any, most: int | None) -> Study:
    tree = outer.tree(Path("/world"))
    del tree["search"]
    one = study_file.build(
        tree | {"ablate": {"design": design, "factors": FLAGS, "seeds": seeds}}, "tiny.yaml"
    )
    return compile_study(one if most is None else until_decided(one, "x", most), "tiny", "tiny.yaml")


def name(cell: Overrides) -> str:
    """`on/off/3`: IFAlign, EduAttention, seed."""
    return f"{cell['student.ifalign']:d}{cell['student.edu_attention']:d}/{cell['train.seed']}"


def record(arm: str, value: float | None) -> Tree:
    status = "failed" if value is None else "complete"
    return {"arm": {"arm": arm, "status": status, SCORE: value}, "epochs": []}


def run(
    study: Study, score: Callable[[str, int], float | None], begun: dict[str, Tree] | None = None
) -> tuple[dict[str, Tree], list[set[str]]]:
    """Train whatever is wanted until nothing more is; the records, and what each stage asked for."""
    records = dict(begun or {})
    stages: list[set[str]] = []
    while True:
        wanted = wanted_arms(study, name, records)
        assert wanted is not None
        if wanted <= records.keys():
            return records, stages
        stages.append(wanted - records.keys())
        for arm in stages[-1]:
            cell, seed = arm.split("/")
            records[arm] = record(arm, score(cell, int(seed)))


def noise(seed: int) -> float:
    return (-1.0) ** seed * (1 + seed / 100)


def test_fixed_seeds_want_everything() -> None:
    assert wanted_arms(ablation("factorial", 3, None), name, {}) is None


def test_all_settings_get_the_first_seeds_then_only_open_claims_and_the_reference() -> None:
    """IFAlign always gains a point, EduAttention nothing: after the first is decided it gets no seed."""
    study = ablation("add_one_in", 4, 12)
    records, stages = run(study, lambda cell, seed: 80 + (cell == "10") + (cell == "01") * noise(seed))
    assert stages[0] == {f"{cell}/{seed}" for cell in ("00", "10", "01") for seed in (1, 2, 3, 4)}
    assert stages[1] == {"00/5", "10/5", "01/5"}
    spent = {cell: sum(arm.startswith(cell) for arm in records) for cell in ("00", "10", "01")}
    assert spent["00"] == spent["01"] == 12
    decided = next(n for n in range(1, 13) if _decided(n))
    assert spent["10"] == decided < 12
    assert stages[-1] == {"00/12", "01/12"}


def _decided(n: int) -> bool:
    """Whether the rule decides the claim about IFAlign after n seeds of both claims."""
    claims = [Claim("a", (1.0,) * n), Claim("b", tuple(noise(seed) for seed in range(1, n + 1)))]
    return decide(claims, True)[0].standing == "supported"


def test_where_every_claim_is_decided_no_seed_is_added() -> None:
    """Without a part all seeds score below: that is what leave_one_out claims."""
    records, stages = run(ablation("leave_one_out", 8, 20), lambda cell, _: 80 + cell.count("1"))
    assert len(stages) == 1
    assert len(records) == 3 * 8


def test_a_setting_that_is_its_reference_makes_no_claim() -> None:
    """Without EduAttention C changes nothing: those arms are one, and no seed is spent on them."""
    factors = {"student.edu_attention": [False, True], "student.attention_scale": [0.1, 1.0]}
    tree = outer.tree(Path("/world"))
    del tree["search"]
    block = {"design": "factorial", "factors": factors, "seeds": 8}
    one = study_file.build(tree | {"ablate": block}, "x")
    study = compile_study(until_decided(one, "x", 12), "tiny", "x")

    def identify(cell: Overrides) -> str:
        return arm_identity("", study_file.resolve(study, cell))

    first = wanted_arms(study, identify, {})
    assert first is not None
    assert len(first) == 3 * 8
    on = {identify(cell) for cell in study_file.cells(study) if cell["student.edu_attention"]}
    records = {arm: record(arm, 80.0 + (arm in on)) for arm in first}
    assert wanted_arms(study, identify, records) == first


def test_the_last_seed_ends_it() -> None:
    records, _ = run(ablation("add_one_in", 2, 5), lambda cell, seed: 80 + (cell != "00") * noise(seed))
    assert {arm.split("/")[1] for arm in records} == set("12345")
    assert len(records) == 3 * 5


def test_the_order_of_seeds_is_that_of_the_report_however_they_are_written() -> None:
    """p depends on the order, and a report sorts by seed: a claim is open in both or in none."""
    listed = ablation("add_one_in", [9, 2, 5, 1], 12)
    assert listed.ablate is not None
    assert listed.ablate.first_seeds == (1, 2, 5, 9)
    assert listed.ablate.seed_values == (1, 2, 5, 9, *range(10, 18))


def test_a_killed_command_comes_to_the_same_decisions() -> None:
    """While one arm of a stage has no record, that stage is what is wanted."""
    study = ablation("add_one_in", 4, 12)

    def score(cell: str, seed: int) -> float:
        return 80 + (cell == "10") + (cell == "01") * noise(seed)

    records, stages = run(study, score)
    for count in range(len(stages)):
        known = set().union(*stages[: count + 1])
        half = {arm: records[arm] for arm in known - {min(stages[count])}}
        assert wanted_arms(study, name, half) == known


def differences(records: dict[str, Tree], cell: str) -> tuple[float, ...]:
    """A setting minus the reference over the seeds that both have, in ascending order."""
    scores = {arm: one["arm"][SCORE] for arm, one in records.items() if one["arm"]["status"] == "complete"}
    seeds = [seed for seed in range(1, 21) if {f"{cell}/{seed}", f"00/{seed}"} <= scores.keys()]
    return tuple(scores[f"{cell}/{seed}"] - scores[f"00/{seed}"] for seed in seeds)


@pytest.mark.parametrize("missing", ["10", "00"])
def test_a_failed_arm_is_no_difference_and_does_not_stop_the_rest(missing: str) -> None:
    """IFAlign gains a point: seven seeds decide that, so the eighth does where one is missing, and no zero
    stands for it. EduAttention gains nothing: it uses up its nine seeds, and then wants no other.
    """
    study = ablation("add_one_in", 2, 9)

    def score(cell: str, seed: int) -> float | None:
        return None if (cell, seed) == (missing, 2) else 80 + (cell == "10") + (cell == "01") * noise(seed)

    records, stages = run(study, score)
    assert [sum(arm.startswith(cell) for arm in records) for cell in ("10", "01", "00")] == [8, 9, 9]
    assert stages[-1] == {"00/9", "01/9"}
    claims = [Claim(cell, differences(records, cell)) for cell in ("10", "01")]
    questions = decide(claims, seeds_left=False)
    assert [one.n for one in questions] == [7, 9 - (missing == "00")]
    assert [one.standing for one in questions] == ["supported", "not decidable"]


@pytest.mark.parametrize("cell", ["10", "00"])
@pytest.mark.parametrize(("failed", "again"), [({3}, set()), ({8}, {8}), ({7, 8}, {7, 8}), ({1, 8}, {8})])
def test_what_is_tried_again_comes_after_all_that_was_looked_at(
    cell: str, failed: set[int], again: set[int]
) -> None:
    """p depends on the order of the differences: one more at the end lets it fall, one between could not."""
    study = ablation("add_one_in", 3, 8)
    first, _ = run(
        study, lambda own, seed: None if own == cell and seed in failed else 80 + (own != "00") * noise(seed)
    )
    lost = {arm for arm, one in first.items() if one["arm"]["status"] == "failed"} - passed_arms(
        study, name, first
    )
    assert lost == {f"{cell}/{seed}" for seed in again}
    kept = {arm: one for arm, one in first.items() if arm not in lost}
    second, _ = run(study, lambda own, seed: 80 + (own != "00") * noise(seed), kept)
    before, after = differences(first, "10"), differences(second, "10")
    assert len(after) == len(before) + len(again)
    assert after[: len(before)] == before


def test_with_fixed_seeds_every_failed_arm_is_tried_again() -> None:
    records = {f"00/{seed}": record(f"00/{seed}", None if seed == 1 else 80.0) for seed in (1, 2, 3)}
    assert passed_arms(ablation("factorial", 3, None), name, records) == set()
    assert passed_arms(ablation("factorial", 3, 4), name, records) == {"00/1", "00/2"}
