"""From a study file and `--set a.b=value` to a checked `Study`, and from an arm's values to its config."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from comkd_ray import search_space, study_tree
from comkd_ray.config import Study
from comkd_ray.errors import UserError
from comkd_ray.protocols import protocol_of
from comkd_ray.search_space import Overrides, Scalar
from comkd_ray.study_tree import Json

PHOTOGRAPHS, SHIPPED = "assets:caltech20", "caltech101"  # what the package has, and of which data set
SEARCHABLE = ("student.", "loss.", "train.")
ATTENTION_ONLY = ("student.attention_", "student.alpha", "student.renormalize")
TOWER = ("student.model", "student.pretrained", "student.image_size")  # one frozen tower a study
PIXELS = ("data.pixels", "source.pixels")  # how images are read: whatever they say, the numbers are the same


def search_spaces() -> Path:
    """Folder of the study files that ship: inside the package, or beside it in a source tree."""
    package = Path(__file__).parent
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


def load(path: Path, sets: Iterable[str] = ()) -> Study:
    """Read, override and check a study file. UserError names file, key and the nearest known key."""
    sets = tuple(sets)
    return build(study_tree.read(path, sets), origin_of(path, sets))


def origin_of(path: Path, sets: Iterable[str]) -> str:
    """Where a study comes from, for messages: `quickstart.yaml`, or `quickstart.yaml with --set`."""
    return f"{path}{' with --set' * bool(tuple(sets))}"


def require_search(study: Study, path: Path) -> Study:
    """The study as `tune` takes it, without its ablation. UserError where nothing is searched."""
    if not study.search.is_asked:
        raise UserError(
            f"{path}: search.space: which keys are searched? Its ablate block is for: comkd-ray ablate {path}"
        )
    return study.model_copy(update={"ablate": None})


def build(tree: Json, origin: str) -> Study:
    """Check a tree of plain values. UserError names `origin`, the key and what is wrong."""
    try:
        study = Study.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise UserError(f"{origin}: {_explain(error)}") from None
    except (TypeError, ValueError, RecursionError):
        raise UserError(f"{origin}: values are texts, numbers, true, false, null, lists, mappings") from None
    _check_source(study, origin)
    _check_roots(study, origin)
    _check_space(study, origin)
    return study


def _check_source(study: Study, origin: str) -> None:
    """A section `source` stands where the protocol has one, and nowhere else."""
    needs = protocol_of(study).has_source
    if needs and study.source is None:
        raise UserError(
            f"{origin}: protocol {study.protocol} needs a section source: what the teacher learns on"
        )
    if not needs and study.source is not None:
        raise UserError(f"{origin}: protocol {study.protocol} takes no section source")


def _check_roots(study: Study, origin: str) -> None:
    """The photographs that ship are no other data set; a folder inside them, or a split, may be used."""
    for section, data in (("data", study.data), ("source", study.source)):
        if data is not None and data.root == PHOTOGRAPHS and data.dataset not in (SHIPPED, "split_file"):
            raise UserError(
                f"{origin}: {section}.root: {data.root} is laid out as {SHIPPED}, not as {data.dataset};"
                f" {section}.root=DIR names another place"
            )


def _explain(error: ValidationError) -> str:
    """The first error in one line; an unknown key goes first, with the nearest known name."""
    errors = error.errors(include_url=False)
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    place = ".".join(str(part) for part in first["loc"]) or "the file"
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        return f"{place}: {message[0].lower()}{message[1:]}"
    *section, name = map(str, first["loc"])
    known = _fields(first["loc"][:-1])
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    meant = ".".join([*section, *near])
    hint = f"did you mean '{meant}'?" if near else f"known here: {', '.join(sorted(known))}"
    return f"{place}: unknown key; {hint}"


def _fields(place: tuple[int | str, ...]) -> list[str]:
    """Names that are known at a place of the study file."""
    kind: Any = Study
    for name in place:
        kind = kind.model_fields[str(name)].annotation if _is_section(kind) else get_args(kind)[-1]
        if get_origin(kind) is not dict:  # `Halving | None` is a Halving
            kind = next((one for one in get_args(kind) if _is_section(one)), kind)
    return list(kind.model_fields) if _is_section(kind) else []


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _check_space(study: Study, origin: str) -> None:
    """Every searched key exists, may be searched, and takes each of its values."""
    flat, search = flatten(study.model_dump()), study.search
    if study.ablate is not None and not search.is_asked:
        return  # a file for `comkd-ray ablate` alone
    for key in search.space:
        check_searchable(key, flat, f"{origin}: search.space.{key}")
    try:
        search_space.check(search.space)
        if search.is_enumerated:
            next(search_space.grid(search.space))
    except ValueError as error:
        raise UserError(f"{origin}: search.space.{error}") from None
    for key, dimension in search.space.items():
        for value in (*(dimension.bounds or ()), *(dimension.choice or ())):
            resolve(study, {key: value}, f"{origin}: search.space")
    _check_sampler(study, origin)
    for point in search.first:
        if search.sampler == "list":
            _check_listed(study, point, flat, f"{origin}: search.first")
        else:
            _check_point(study, point, flat, f"{origin}: search.first")


def check_searchable(key: str, flat: Mapping[str, Any], origin: str) -> None:
    """Refuse a key that is unknown or that all arms of a study share. UserError names the nearest."""
    known = [name for name in flat if name.startswith(SEARCHABLE) and name not in TOWER]
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else "searchable are student.*, loss.*, train.*"
        raise UserError(f"{origin}: unknown key; {hint}")


def _check_sampler(study: Study, origin: str) -> None:
    """The sampler has what it draws from, and nothing that it would not look at."""
    search = study.search
    if search.sampler == "list" and not search.first:
        raise UserError(
            f"{origin}: search.first: a list holds the arms that stand here; {{}} is the study's own"
        )
    if search.sampler != "list" and not search.space:
        raise UserError(f"{origin}: search.space: which keys are searched? Only a list does without")
    if search.sampler == "grid" and search.first:
        raise UserError(
            f"{origin}: search.first: a grid has no first arms; sampler: list crosses them with the space"
        )
    if search.arms is None and not search.is_enumerated:
        raise UserError(f"{origin}: search.arms: how many arms? Only a grid or a list knows its own size")


def _check_listed(study: Study, point: Overrides, flat: Overrides, origin: str) -> None:
    """An arm of a list sets searchable keys that the space does not set as well."""
    for key in point:
        check_searchable(key, flat, f"{origin}: {key}")
        if key in study.search.space:
            raise UserError(f"{origin}: {key}: stands in search.space too; set it in one of them")
    resolve(study, point, origin)


def _check_point(study: Study, point: Overrides, flat: Overrides, origin: str) -> None:
    """A named arm stays inside the space, and so do the study's own values that fill it up."""
    space = study.search.space
    for key in point:
        if key not in space:
            near = difflib.get_close_matches(key, space, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else "add it to search.space"
            raise UserError(f"{origin}: {key}: not searched; {hint}")
    full = search_space.draw(space, lambda key, _: point.get(key, flat[key]))
    for key, value in full.items():
        if not space[key].holds(value):
            whose = "" if key in point else ", the study's own value,"
            raise UserError(f"{origin}: {key}: {value!r}{whose} is not in search.space.{key}")
    resolve(study, point, origin)


def variants(study: Study) -> list[Study]:
    """The study, and one for each bound or value of each searched key and for each named arm."""
    space = study.search.space.items()
    points = [{key: v} for key, d in space for v in (*(d.bounds or ()), *(d.choice or ()))]
    return [study, *(resolve(study, point) for point in (*points, *study.search.first))]


def cells(study: Study) -> list[Overrides]:
    """The arms of a grid, a list or an exhausted space, in order.

    A list holds every arm of `search.first` in every cell of the space. A key that any of these arms
    names is in all of them, with the study's own value where an arm leaves it out: so all rows name
    the same searched keys, and arms of one seed can be paired. An exhausted space begins with its
    named arms.
    """
    of_space, first = list(search_space.grid(study.search.space)), study.search.first
    if study.search.sampler != "list":
        named = [full_point(study, point) for point in first]
        return named + [cell for cell in of_space if cell not in named]
    own = flatten(study.model_dump(mode="json"))
    keys = dict.fromkeys(key for point in first for key in point)
    return [{key: point.get(key, own[key]) for key in keys} | cell for point in first for cell in of_space]


def full_point(study: Study, point: Overrides) -> Overrides:
    """A named arm with the study's own values for searched keys that it leaves out."""
    own = flatten(study.model_dump(mode="json"))
    return search_space.draw(study.search.space, lambda key, _: point.get(key, own[key]))


def how_arms_come(study: Study) -> str:
    """What chooses the arms, in words."""
    search = study.search
    if search.is_exhausted:
        size = len(cells(study))
        return f"all {size} of a finite space, each once: {search.sampler} is not asked"
    if search.is_enumerated:
        return f"{search.sampler}: all are known beforehand"
    named = f"{len(search.first)} named, then " if search.first else ""
    start = f" once {search.startup_arms} have ended, quasi-random before" if search.startup_arms else ""
    starts = start if search.sampler in ("tpe", "gp") else ""
    goals = f", by {' and '.join(search.objectives)}" if len(search.objectives) > 1 else ""
    return f"{named}{search.sampler}{starts}{goals}"


MOST_CELLS = 10_000
"""Arms of a grid or a list that are taken for meant."""


def check_size(study: Study, yes: bool = False) -> None:
    """Refuse a grid or a list that is larger than anyone means to type, unless `yes`."""
    search = study.search
    if yes or search.sampler not in ("grid", "list"):
        return
    arms = (search_space.count(search.space) or 0) * (len(search.first) if search.sampler == "list" else 1)
    if arms > MOST_CELLS:
        raise UserError(
            f"search.space: this {search.sampler} has {arms:,} arms, more than {MOST_CELLS:,};"
            " search fewer values, or add --yes"
        )


def resolve(study: Study, overrides: Overrides, origin: str = "arm") -> Study:
    """The study with an arm's values in place. UserError names a value that does not fit."""
    tree = study.model_dump(mode="json")
    for key, value in overrides.items():
        node = tree
        *parents, last = key.split(".")
        for name in parents:
            node = node[name]
        node[last] = value
    try:
        return Study.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise UserError(f"{origin}: {_explain(error)}") from None


def has_effect(key: str, values: Mapping[str, Any]) -> bool:
    """Whether a key matters to an arm of these values: the parts of a module that is off do not.

    Where the values do not say whether it is on, it may be.
    """
    if key.startswith(ATTENTION_ONLY):
        return bool(values.get("student.edu_attention", True))
    return bool(values.get("student.ifalign", True)) if ".align_" in key else True


def effective(study: Study) -> dict[str, Scalar]:
    """All values of an arm that have an effect on its numbers: what its identity is made of."""
    flat = flatten(study.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if key.startswith(SEARCHABLE) and has_effect(key, flat)}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Nested keys to dotted ones: `{"loss": {"temperature": 1.0}}` to `{"loss.temperature": 1.0}`."""
    flat: dict[str, Scalar] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def digest(*parts: object) -> str:
    """A 12-digit identity of plain values: the same values give the same digits on every machine."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def dump(study: Study, path: Path) -> None:
    """Write the resolved study as YAML that `load` reads back to an equal study."""
    temporary = path.with_name(f".{path.name}")
    text = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
