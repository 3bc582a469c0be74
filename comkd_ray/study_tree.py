"""A study file as a tree of plain values: YAML, `--set a.b=value`, and paths made absolute.

`safe_load` rules with two traps of PyYAML removed: `lr: 1e-3` is a number and `name: no` a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from comkd_ray.errors import UserError

LOCAL_DIR = "local-dir:"
ASSETS = "assets:"  # a path that starts so lies inside the installed package

Json = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars (`1e-3` is a number, `no` is a word), no doubled key."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> Json:
    keys: list[str] = []
    for child, _ in node.value:
        key = loader.construct_object(child)
        if not isinstance(key, str):
            raise yaml.YAMLError(f"key {key!r} is no text: put it in quotes")
        if key in keys:
            raise yaml.YAMLError(f"key '{key}' stands twice{child.start_mark}")
        keys.append(key)
    return {str(key): value for key, value in loader.construct_mapping(node, deep=True).items()}


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)


def read(path: Path, sets: Iterable[str]) -> Json:
    """The tree of a study file with each KEY=VALUE in place. UserError where either is none."""
    if (path / "study.yaml").is_file():
        raise UserError(f"{path}: a folder; the study file of this run is {path / 'study.yaml'}")
    try:
        tree = _parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: no valid YAML: nested too deep") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a study file is a mapping of keys, see search_spaces/quickstart.yaml")
    for text in sets:
        _set(tree, text)
    _make_absolute(tree)
    return tree


def _set(tree: Json, text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {text}: expected KEY=VALUE, such as train.epochs=5")
    node = tree
    *parents, last = _path(key)
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise UserError(f"--set {text}: {name} holds a value, not keys")
    try:
        node[last] = _parse(value)
    except (yaml.YAMLError, RecursionError):
        raise UserError(f"--set {text[:80]}: the value is no valid YAML") from None


def _path(key: str) -> list[str]:
    """Dotted key to its parts; a searched key keeps its own dots (`search.space.loss.temperature`)."""
    for holder in (["search", "space"], ["ablate", "factors"]):
        prefix = f"{'.'.join(holder)}."
        if key.startswith(prefix):
            return [*holder, key.removeprefix(prefix)]
    return key.split(".")


def _make_absolute(tree: Json) -> None:
    """Paths count from where the command was typed; workers of a cluster run somewhere else."""
    for section in ("data", "source", "teacher", "student"):
        place = tree.get(section)
        if isinstance(place, dict):
            place |= {key: _absolute(f"{section}.{key}", value) for key, value in place.items()}
    block = tree.get("ablate")
    materials = block.get("materials") if isinstance(block, dict) else None
    for keys in materials.values() if isinstance(materials, dict) else ():
        if isinstance(keys, dict):
            keys |= {key: _absolute(key, value) for key, value in keys.items()}


def _absolute(key: str, value: Any) -> Any:
    """The value of a dotted key, made absolute where it is a path."""
    name = key.rpartition(".")[2]
    if name not in ("root", "model", "pretrained") or not isinstance(value, str) or value.startswith(ASSETS):
        return value
    prefix = LOCAL_DIR if value.startswith(LOCAL_DIR) else ""
    try:
        path = Path(value.removeprefix(prefix)).expanduser()
    except RuntimeError:
        raise UserError(f"{key}: {value}: there is no such user") from None
    is_path = name == "root" or prefix or (name == "pretrained" and path.is_file())
    return prefix + str(path.absolute()) if is_path else value
