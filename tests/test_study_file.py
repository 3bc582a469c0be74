"""Study files: what YAML makes of words and numbers, what is refused and how, and what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import outer
import pytest
import yaml
from pydantic import ValidationError

from comkd_ray import study_file
from comkd_ray.config import Study
from comkd_ray.errors import UserError

TEXT = """
study: fruit
data:
  root: photographs
teacher: {model: ViT-B-16}
student: {model: ViT-B-32}
train: {lr: 0.01}
search:
  arms: 6
  space:
    loss.temperature: {float: [0.5, 4.0], log: true}
    student.alpha: {choice: [scalar, vector]}
"""
SHIPPED = sorted(study_file.search_spaces().rglob("*.y*ml"))


def load(folder: Path, text: str = TEXT, *sets: str) -> Study:
    path = folder / "study.yaml"
    path.write_text(text)
    return study_file.load(path, sets)


def refusal(folder: Path, text: str = TEXT, *sets: str) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, text, *sets)
    message = str(caught.value)
    assert "\n" not in message
    return message


# What YAML means --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-3", 0.001), ("2E-2", 0.02), ("1.5e-3", 0.0015), (".5", 0.5), ("1", 1.0), ("+1e-1", 0.1)],
)
def test_numbers_with_an_exponent_are_numbers(tmp_path: Path, written: str, value: float) -> None:
    assert load(tmp_path, TEXT.replace("lr: 0.01", f"lr: {written}")).train.lr == value


@pytest.mark.parametrize("word", ["no", "on", "Yes", "OFF", "y"])
def test_words_that_yaml_1_1_takes_for_truth_are_words(tmp_path: Path, word: str) -> None:
    assert load(tmp_path, TEXT.replace("study: fruit", f"study: {word}")).study == word


def test_true_and_false_stay_true_and_false(tmp_path: Path) -> None:
    study = load(tmp_path, TEXT, "student.ifalign=False", "data.skip_broken=true")
    assert (study.student.ifalign, study.data.skip_broken) == (False, True)


def test_a_date_is_a_word(tmp_path: Path) -> None:
    assert load(tmp_path, TEXT, "study=2026-05-01").study == "2026-05-01"


def test_a_doubled_key_is_refused_with_its_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, TEXT.replace("  arms: 6", "  arms: 6\n  arms: 60"))
    assert "key 'arms' stands twice" in message
    assert "line 10" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a list", "a study file is a mapping of keys"),
        ("", "a study file is a mapping of keys"),
        ("study: [1", "no valid YAML"),
        ("1: one", "key 1 is no text: put it in quotes"),
        ("study: !!python/name:os.system x", "no valid YAML"),
        (TEXT + "note: !!binary aGVsbG8=\n", "values are texts, numbers"),
        (TEXT + "note: !!set {a, b}\n", "values are texts, numbers"),
        (TEXT + "note: &loop [*loop]\n", "unconstructable recursive node"),
    ],
)
def test_what_is_no_study_file_is_said_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(tmp_path, text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        study_file.load(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        study_file.load(tmp_path)
    (tmp_path / "study.yaml").write_text(TEXT)
    with pytest.raises(UserError, match=r"a folder; the study file of this run is .*/study\.yaml$"):
        study_file.load(tmp_path)
    (tmp_path / "deep.yaml").write_text(f"note: {'[' * 3000}{']' * 3000}")
    with pytest.raises(UserError, match=r"deep\.yaml: no valid YAML: nested too deep"):
        study_file.load(tmp_path / "deep.yaml")
    (tmp_path / "latin.yaml").write_bytes("note: Größe".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yaml: cannot be read"):
        study_file.load(tmp_path / "latin.yaml")


# Unknown keys and wrong types ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "wrong", "place", "near"),
    [
        ("study: fruit", "stdy: fruit", "stdy", "study"),
        ("teacher: {model", "teachr: {model", "teachr", "teacher"),
        ("root: photographs", "rot: photographs", "data.rot", "data.root"),
        ("lr: 0.01", "learning_rat: 0.01", "train.learning_rat", None),
        ("arms: 6", "armz: 6", "search.armz", "search.arms"),
        ("arms: 6", "arms: 6\n  halving: {etta: 3}", "search.halving.etta", "search.halving.eta"),
        (
            "float: [0.5",
            "flot: [0.5",
            "search.space.loss.temperature.flot",
            "search.space.loss.temperature.float",
        ),
        (
            "choice: [scalar",
            "choise: [scalar",
            "search.space.student.alpha.choise",
            "search.space.student.alpha.choice",
        ),
        ("loss.temperature:", "loss.temprature:", "search.space.loss.temprature", "loss.temperature"),
        ("student.alpha:", "student.alfa:", "search.space.student.alfa", "student.alpha"),
    ],
)
def test_an_unknown_key_comes_with_its_place_and_the_nearest_name(
    tmp_path: Path, right: str, wrong: str, place: str, near: str | None
) -> None:
    message = refusal(tmp_path, TEXT.replace(right, wrong))
    assert f"{place}: unknown key; " in message
    assert message.endswith(f"did you mean '{near}'?" if near else "weight_decay")


def test_a_message_says_that_settings_stand_beside_the_file(tmp_path: Path) -> None:
    """Which of the two is wrong, the key says: it stands in one of them."""
    plain, with_set = (
        refusal(tmp_path, TEXT.replace("arms: 6", "arms: 0")),
        refusal(tmp_path, TEXT, "search.arms=0"),
    )
    assert plain == with_set.replace(" with --set: ", ": ")
    assert ".yaml with --set: search.arms: input should be greater" in with_set


def test_the_photographs_that_ship_are_of_one_data_set(tmp_path: Path) -> None:
    message = refusal(tmp_path, TEXT, "data.root=assets:caltech20")
    words = "data.root: assets:caltech20 is laid out as caltech101, not as folder; "
    assert message.endswith(f"with --set: {words}data.root=DIR names another place")
    inside = ["data.root=assets:caltech20/101_ObjectCategories"]
    assert load(tmp_path, TEXT, *inside).data.root == "assets:caltech20/101_ObjectCategories"
    split = ["data.dataset=split_file", "data.split=own.json", "data.root=assets:caltech20"]
    assert load(tmp_path, TEXT, *split).data.dataset == "split_file"


@pytest.mark.parametrize(("setting", "words"), [
    ("data.root=~nobody-here/x", "data.root: ~nobody-here/x: there is no such user"),
    ("note=" + "[" * 3000 + "]" * 3000, "the value is no valid YAML"),
])  # fmt: skip
def test_odd_settings_are_one_line(tmp_path: Path, setting: str, words: str) -> None:
    message = refusal(tmp_path, TEXT, setting)
    assert words in message
    assert len(message) < 200


def test_a_key_like_nothing_else_comes_with_all_names(tmp_path: Path) -> None:
    message = refusal(tmp_path, TEXT, "compute.xyzzy=1")
    assert "compute.xyzzy: unknown key; known here: cpus, gpus, retries, workers" in message


@pytest.mark.parametrize("key", ["student.model", "student.pretrained", "student.image_size", "data.shots"])
def test_what_all_arms_share_cannot_be_searched(tmp_path: Path, key: str) -> None:
    setting = f"search.space.{key}={{choice: [a]}}"
    assert f"search.space.{key}: unknown key" in refusal(tmp_path, TEXT, setting)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.epochs=eight", "train.epochs: input should be a valid integer"),
        ("train.epochs=1.5", "train.epochs: input should be a valid integer"),
        ("train.epochs=0", "train.epochs: input should be greater than or equal to 1"),
        ("train.lr='0.1'", "train.lr: input should be a valid number"),
        ("train.lr=1e999", "train.lr: input should be a finite number"),
        ("student.ifalign=1", "student.ifalign: input should be a valid boolean"),
        ("student.alpha=tensor", "student.alpha: input should be 'scalar' or 'vector'"),
        ("student.attention_scale=-1.0", "attention_scale must be above 0"),
        ("data.views=0", "views must be at least 1, or 'epochs'"),
        ("teacher.epochs=14", "teacher: average_mean: 15 lies outside epochs 1 to 14; move it inside"),
        ("teacher.average_mean=0.5", "teacher: average_mean: 0.5 lies outside epochs 1 to 20"),
        ("teacher.average_std=0", "teacher.average_std: input should be greater than 0"),
        ("teacher.keep=first", "teacher.keep: input should be 'average', 'best' or 'last'"),
        ("study=a b", "study: string should match pattern"),
        ("study=../up", "study: string should match pattern"),
        ("study=5", "study: input should be a valid string"),
        ("search=5", "search: input should be an object"),
        ("search.space.loss.temperature=5", "search.space.loss.temperature: input should be an object"),
        ("search.arms=null", "search.arms: how many arms? Only a grid or a list knows its own size"),
        ("search.sampler=grid", "search.space.loss.temperature: a grid needs `choice` or `step`"),
        (
            "search.sampler=bohb",
            "search.sampler: input should be 'tpe', 'random', 'gp', 'qmc', 'nsga2', 'grid'",
        ),
        ("search.objectives=[seconds]", "search: objectives: `objective` has to be one of them"),
        ("search.objectives=[objective, objective]", "search: objectives: `objective` has to be one of them"),
        ("search.objectives=[objective, speed]", "search.objectives.1: input should be 'objective', 'train"),
        (
            "search.objectives=[objective, seconds, total_parameters]",
            "search.objectives: tuple should have at",
        ),
        ("search.space.loss.temperature={float: [4, 1]}", "the lower bound 4.0 is not below the upper"),
        (
            "search.space.loss.temperature={float: [0, 1], log: true}",
            "a log range needs a lower bound above 0",
        ),
        (
            "search.space.loss.kd_weight={float: [1, 2], when: {loss.temperature: 1.0}}",
            "search.space.loss.kd_weight: `when` wants loss.temperature = 1.0, which a continuous range",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_named(tmp_path: Path, setting: str, words: str) -> None:
    assert words in refusal(tmp_path, TEXT, setting)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path, TEXT.replace("  root: photographs", "  side: 64")).endswith(
        "data.root: field required"
    )


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("search.space.loss.temperature={float: [-1, 2]}", "temperature: input should be greater than 0"),
        ("search.space.train.epochs={choice: [1, two]}", "train.epochs: input should be a valid integer"),
        ("search.space.student.ifalign={choice: [maybe]}", "ifalign: input should be a valid boolean"),
    ],
)
def test_a_range_whose_values_do_not_fit_is_refused(tmp_path: Path, setting: str, words: str) -> None:
    assert words in refusal(tmp_path, TEXT, setting)


# Named first arms ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ("loss.temprature: 1.0", "loss.temprature: not searched; did you mean 'loss.temperature'?"),
        ("train.epochs: 3", "train.epochs: not searched; add it to search.space"),
        ("loss.temperature: 9.0", "loss.temperature: 9.0 is not in search.space.loss.temperature"),
        ("loss.temperature: true", "loss.temperature: True is not in search.space"),
        ("student.alpha: tensor", "student.alpha: 'tensor' is not in search.space.student.alpha"),
    ],
)
def test_a_first_arm_stays_inside_the_space(tmp_path: Path, point: str, words: str) -> None:
    message = refusal(tmp_path, TEXT, f"search.first=[{{{point}}}]")
    assert f"search.first: {words}" in message


def test_the_studys_own_value_must_be_in_the_space_where_a_first_arm_leaves_it_out(tmp_path: Path) -> None:
    seeds = ("search.space.train.seed={choice: [11, 12]}", "search.first=[{student.alpha: vector}]")
    assert "train.seed: 1, the study's own value, is not in" in refusal(tmp_path, TEXT, *seeds)
    assert load(tmp_path, TEXT, *seeds, "train.seed=12").search.first == ({"student.alpha": "vector"},)


def test_an_inactive_key_of_a_first_arm_needs_no_value_in_the_space(tmp_path: Path) -> None:
    space = "search.space.student.attention_scale={choice: [0.1], when: {student.edu_attention: true}}"
    flag = "search.space.student.edu_attention={choice: [true, false]}"
    off, on = (f"search.first=[{{student.edu_attention: {value}}}]" for value in ("false", "true"))
    assert load(tmp_path, TEXT, space, flag, off).search.first
    assert "attention_scale: 1.0, the study's own value" in refusal(tmp_path, TEXT, space, flag, on)


# Lists --------------------------------------------------------------------------------------------

LIST = """
study: parts
data: {root: photographs}
teacher: {model: ViT-B-16}
student: {model: ViT-B-32}
search:
  sampler: list
  first: [{}, {student.alpha: vector}]
"""


def test_a_list_needs_neither_a_space_nor_a_number(tmp_path: Path) -> None:
    search = load(tmp_path, LIST).search
    assert (search.is_enumerated, search.space, search.arms) == (True, {}, None)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("search.first=[]", "search.first: a list holds the arms that stand here; {} is the study's own"),
        ("search.first=[{student.alfa: 1}]", "student.alfa: unknown key; did you mean 'student.alpha'?"),
        ("search.first=[{data.shots: 1}]", "data.shots: unknown key; searchable are student.*"),
        ("search.first=[{student.alpha: tensor}]", "first: student.alpha: input should be 'scalar' or"),
        ("search.space.student.alpha={choice: [scalar]}", "student.alpha: stands in search.space too"),
        ("search.space.train.lr={float: [0.1, 1.0]}", "train.lr: a grid needs `choice` or `step`"),
        ("search.sampler=tpe", "search.space: which keys are searched? Only a list does without"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(tmp_path: Path, setting: str, words: str) -> None:
    assert words in refusal(tmp_path, LIST, setting)


def test_a_grid_with_first_arms_is_refused_as_it_would_not_train_them(tmp_path: Path) -> None:
    settings = "search.sampler=grid", "search.space.train.seed={choice: [1, 2]}"
    message = refusal(tmp_path, LIST, *settings)
    assert "search.first: a grid has no first arms; sampler: list crosses them with the space" in message


def test_folders_count_from_where_the_command_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of a cluster run somewhere else."""
    monkeypatch.chdir(tmp_path)
    text = LIST + "protocol: cross_dataset\nsource: {root: labelled}\n"
    study = load(tmp_path, text)
    assert study.source is not None
    assert (study.data.root, study.source.root) == (str(tmp_path / "photographs"), str(tmp_path / "labelled"))


# --set --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("train.lr=1e-3", "train.lr", 0.001),
        ("train.epochs=5", "train.epochs", 5),
        ("compute.gpus=0.5", "compute.gpus", 0.5),
        ("note=a = b", "note", "a = b"),
        ("teacher.pretrained=null", "teacher.pretrained", None),
        ("search.halving={eta: 4, min_epochs: 1}", "search.halving.eta", 4),
        ("search.halving.eta=5", "search.halving.eta", 5),
        ("search.space.loss.temperature={float: [1, 2]}", "search.space.loss.temperature.log", False),
        ("search.space.loss.kd_weight={choice: [1.0]}", "search.space.loss.kd_weight.choice", [1.0]),
    ],
)
def test_set_overrides_a_key_at_any_depth(tmp_path: Path, setting: str, key: str, value: object) -> None:
    study = load(tmp_path, TEXT, setting)
    assert study_file.flatten(study.model_dump(mode="json"))[key] == value


@pytest.mark.parametrize(
    "sets",
    [("epochs=3", "keep=last"), ("epochs=3", "keep=best"), ("epochs=0",), ("epochs=3", "average_mean=2.5")],
)
def test_few_epochs_of_the_teacher_need_no_mean_or_one_inside(tmp_path: Path, sets: tuple[str, ...]) -> None:
    study = load(tmp_path, TEXT, *(f"teacher.{one}" for one in sets))
    assert study.teacher.epochs in (0, 3)


def test_later_settings_win(tmp_path: Path) -> None:
    assert load(tmp_path, TEXT, "train.epochs=5", "train.epochs=6").train.epochs == 6


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.epochs", "expected KEY=VALUE"),
        ("=5", "expected KEY=VALUE"),
        ("train.lr=[1", "the value is no valid YAML"),
        ("train.lr.first=1", "lr holds a value, not keys"),
    ],
)
def test_a_bad_setting_is_quoted(tmp_path: Path, setting: str, words: str) -> None:
    message = refusal(tmp_path, TEXT, setting)
    assert message.startswith(f"--set {setting}: ")
    assert words in message


def test_an_unknown_key_in_a_setting_is_refused_like_one_in_the_file(tmp_path: Path) -> None:
    assert "trian: unknown key; did you mean 'train'?" in refusal(tmp_path, TEXT, "trian.lr=1")


# What comes back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_study_file_that_ships_loads_and_comes_back_equal(tmp_path: Path, path: Path) -> None:
    study = study_file.load(path)
    study_file.dump(study, tmp_path / "study.yaml")
    assert study_file.load(tmp_path / "study.yaml") == study


def test_the_quickstart_ships() -> None:
    assert "quickstart.yaml" in [path.name for path in SHIPPED]


def test_a_dumped_study_names_every_default(tmp_path: Path) -> None:
    study = load(tmp_path)
    study_file.dump(study, tmp_path / "out.yaml")
    dumped = yaml.safe_load((tmp_path / "out.yaml").read_text())
    assert dumped["student"]["align_axis"] == "batch"
    assert study_file.build(dumped, "out") == study


def test_awkward_values_survive_the_way_to_disk(tmp_path: Path) -> None:
    study = load(tmp_path, TEXT, "study=no", "note='1e-3: ü\n# yes'", "train.lr=1e-7")
    study_file.dump(study, tmp_path / "out.yaml")
    again = study_file.load(tmp_path / "out.yaml")
    assert (again.study, again.note, again.train.lr) == ("no", study.note, 1e-7)


def test_a_study_cannot_be_changed(tmp_path: Path) -> None:
    study = load(tmp_path)
    with pytest.raises(ValidationError):
        study.train.lr = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError):
        study.note = "other"  # type: ignore[misc]


def test_resolve_puts_an_arms_values_in_place(tmp_path: Path) -> None:
    study = load(tmp_path)
    arm = study_file.resolve(study, {"loss.temperature": 3.0, "student.alpha": "vector"})
    assert (arm.loss.temperature, arm.student.alpha) == (3.0, "vector")
    assert arm.train == study.train
    assert study.loss.temperature == 1.0
    assert study_file.resolve(study, {}) == study


def test_resolve_refuses_a_value_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^arm: loss\.temperature: input should be greater than 0"):
        study_file.resolve(load(tmp_path), {"loss.temperature": 0.0})


def test_flatten_dots_the_keys() -> None:
    nested: dict[str, Any] = {"loss": {"temperature": 1.0, "deep": {"er": [1, 2]}}, "note": None}
    assert study_file.flatten(nested) == {"loss.temperature": 1.0, "loss.deep.er": [1, 2], "note": None}


def test_a_digest_is_the_same_on_every_machine() -> None:
    value = study_file.digest("a", {"b": 1.0, "a": [True, None]}, 0.1)
    assert value == "582766dce3be"
    assert study_file.digest("a", {"a": [True, None], "b": 1.0}, 0.1) == value


@pytest.mark.parametrize("other", [("a", 1), ("a", 1.0), ("a", "1"), ("a", True), ("a1",), ("a", 1, None)])
def test_a_digest_tells_values_apart(other: tuple[object, ...]) -> None:
    values = [("a", 1), ("a", 1.0), ("a", "1"), ("a", True), ("a1",), ("a", 1, None)]
    same = [one for one in values if study_file.digest(*one) == study_file.digest(*other)]
    assert [repr(one) for one in same] == [repr(other)]


def test_the_tiny_study_of_these_tests_is_a_study(tmp_path: Path) -> None:
    assert outer.study(tmp_path, outer.tpe(4)).search.arms == 4


# Small spaces, large grids, several objectives ----------------------------------------------------

SMALL = "search.space={student.alpha: {choice: [scalar, vector]}, train.seed: {choice: [1, 2]}}"


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "qmc", "nsga2"])
@pytest.mark.parametrize(("arms", "exhausted"), [(3, False), (4, True), (50, True)])
def test_a_finite_space_no_larger_than_arms_is_enumerated(
    tmp_path: Path, sampler: str, arms: int, exhausted: bool
) -> None:
    study = load(tmp_path, TEXT, f"search.sampler={sampler}", f"search.arms={arms}", SMALL)
    assert (study.search.is_exhausted, study.search.is_enumerated) == (exhausted, exhausted)


def test_an_exhausted_space_begins_with_its_named_arms_and_holds_each_once(tmp_path: Path) -> None:
    study = load(tmp_path, TEXT, "search.arms=9", SMALL, "search.first=[{student.alpha: vector}]")
    found = [(cell["student.alpha"], cell["train.seed"]) for cell in study_file.cells(study)]
    assert found == [("vector", 1), ("scalar", 1), ("scalar", 2), ("vector", 2)]


def test_a_continuous_space_is_never_exhausted(tmp_path: Path) -> None:
    assert not load(tmp_path, TEXT, "search.arms=1000000").search.is_exhausted


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ((), "tpe once 10 have ended, quasi-random before"),
        (("search.startup_arms=0",), "tpe"),
        (("search.first=[{student.alpha: vector}]", "search.sampler=gp"), "1 named, then gp once 10 have"),
        (("search.sampler=random",), "random"),
        (
            ("search.sampler=nsga2", "search.objectives=[objective, seconds]"),
            "nsga2, by objective and seconds",
        ),
        ((SMALL,), "all 4 of a finite space, each once: tpe is not asked"),
        ((SMALL, "search.sampler=grid"), "grid: all are known beforehand"),
    ],
)
def test_what_chooses_the_arms_is_said_in_words(tmp_path: Path, sets: tuple[str, ...], words: str) -> None:
    assert study_file.how_arms_come(load(tmp_path, TEXT, *sets)).startswith(words)


def test_halving_with_several_objectives_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, TEXT, "search.objectives=[objective, seconds]", "search.halving={}")
    assert "search: halving goes by one value; with several objectives, leave it out" in message


def test_a_grid_of_more_than_ten_thousand_arms_takes_a_yes(tmp_path: Path) -> None:
    grid = load(tmp_path, TEXT, "search.sampler=grid", "search.space={train.seed: {int: [1, 10001]}}")
    with pytest.raises(UserError, match=r"this grid has 10,001 arms, more than 10,000; .* or add --yes$"):
        study_file.check_size(grid)
    study_file.check_size(grid, yes=True)
    sets = ("search.space={train.seed: {int: [1, 5001]}}", "search.first=[{}, {student.alpha: vector}]")
    with pytest.raises(UserError, match="this list has 10,002 arms"):
        study_file.check_size(load(tmp_path, TEXT, "search.sampler=list", *sets))
    study_file.check_size(load(tmp_path, TEXT, "search.arms=20000"))
