"""A search space in our own words: dotted keys, each a float, an int or a choice, some conditional.

Nothing here knows Optuna or Ray, so a study file outlives both. `draw` is define-by-run: it asks
its argument for one value after another, and skips a key whose `when` does not hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

Scalar = bool | int | float | str
Real = float
Whole = int

Overrides = dict[str, Scalar]
"""Values under dotted YAML names: what one arm changes in the study."""


class Section(BaseModel):
    """A frozen part of the study file; unknown keys are errors, and types are not coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Dimension(Section):
    """One searched key: exactly one of `float: [low, high]`, `int: [low, high]`, `choice: [...]`."""

    float: tuple[Real, Real] | None = None
    int: tuple[Whole, Whole] | None = None
    choice: tuple[Scalar, ...] | None = None
    log: bool = False
    step: Real | None = None
    when: dict[str, Scalar] | None = None
    """Searched only where these other keys hold these values."""

    @property
    def bounds(self) -> tuple[Real, Real] | None:
        """(low, high) of a range, or None for a choice."""
        return self.float or self.int

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        kinds = [kind for kind in ("float", "int", "choice") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError("needs exactly one of float, int, choice")
        if self.choice is not None:
            self._check_choice(self.choice)
        else:
            assert self.bounds is not None
            self._check_bounds(*self.bounds)
        return self

    def _check_choice(self, choice: tuple[Scalar, ...]) -> None:
        if len(choice) == 0 or len(set(choice)) < len(choice):
            raise ValueError("choice needs at least one value, and none twice")
        if self.log or self.step is not None:
            raise ValueError("log and step belong to float and int")

    def _check_bounds(self, low: Real, high: Real) -> None:
        if low >= high:
            raise ValueError(f"the lower bound {low} is not below the upper bound {high}")
        if self.log and low <= 0:
            raise ValueError(f"a log range needs a lower bound above 0, not {low}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step must be above 0, not {self.step}")
        if self.int is not None and self.step is not None and self.step % 1:
            raise ValueError(f"the step of an int is a whole number, not {self.step}")

    @property
    def size(self) -> Whole | None:
        """Number of values of a finite dimension, or None for a continuous one."""
        if self.choice is not None:
            return len(self.choice)
        if self.int is not None and not self.log:
            return (self.int[1] - self.int[0]) // int_step(self.step) + 1
        if self.float is not None and self.step is not None:
            return math.floor((self.float[1] - self.float[0]) / self.step + 1e-9) + 1
        return None

    def values(self) -> tuple[Scalar, ...] | None:
        """All values of a finite dimension, or None for a continuous one."""
        if self.choice is not None:
            return self.choice
        return None if self.size is None else tuple(self._stepped(index) for index in range(self.size))

    def _stepped(self, index: Whole) -> Scalar:
        """Value number `index` of a range with steps."""
        if self.int is not None:
            return self.int[0] + index * int_step(self.step)
        assert self.float is not None
        assert self.step is not None
        return self.float[0] + index * self.step

    def snap(self, value: Scalar) -> Scalar:
        """The value as this dimension makes it: 0.1 + 2 * 0.1 of a stepped float, where 0.3 is written."""
        if self.float is None or self.step is None or isinstance(value, str) or not self.holds(value):
            return value
        return self._stepped(round((value - self.float[0]) / self.step))

    def at(self, place: Real) -> Scalar:
        """The value at a place of [0, 1): equal lengths are equally likely, by their logarithm for `log`."""
        if self.choice is not None:
            return self.choice[math.floor(place * len(self.choice))]
        if self.size is not None:
            return self._stepped(math.floor(place * self.size))
        assert self.bounds is not None
        low, high = self.bounds
        if self.int is not None:  # a whole number owns what rounds to it
            found = round((low - 0.5) * ((high + 0.5) / (low - 0.5)) ** place)
            return min(max(found, self.int[0]), self.int[1])
        found = low * (high / low) ** place if self.log else low + place * (high - low)
        return min(max(found, low), high)

    def holds(self, value: Scalar) -> bool:
        """Whether this dimension can take a value."""
        if self.choice is not None:
            return value in self.choice
        assert self.bounds is not None
        low, high = self.bounds
        if isinstance(value, (bool, str)) or not low <= value <= high:
            return False
        steps = (value - low) / (self.step or 1)
        return (self.int is None and self.step is None) or math.isclose(steps, round(steps), abs_tol=1e-6)


def int_step(step: Real | None) -> Whole:
    """The step of an integer range; 1 where none is given."""
    return 1 if step is None else round(step)


def spread(key: str, levels: Mapping[str, Any]) -> list[Scalar]:
    """`{float: [low, high], log: true, count: 9}` as 9 evenly spaced levels of four digits.

    Raises ValueError that names `key`. The levels begin and end with the bounds as they are written.
    """
    count, bounds = levels.get("count"), levels.get("float")
    known = set(levels) <= {"float", "log", "count"}
    if not known or not isinstance(count, Whole) or count < 2 or not isinstance(bounds, list):
        raise ValueError(f"{key}: levels are a list, or {{float: [low, high], log: true, count: 9}}")
    try:
        range_ = Dimension.model_validate_json(json.dumps({k: v for k, v in levels.items() if k != "count"}))
    except ValidationError as error:
        raise ValueError(f"{key}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    assert range_.float is not None
    low, high = range_.float
    shares = [place / (count - 1) for place in range(1, count - 1)]
    if range_.log:
        inner = [low * (high / low) ** share for share in shares]
    else:
        inner = [low + (high - low) * share for share in shares]
    return [low, *(float(f"{value:.4g}") for value in inner), high]


Space = Mapping[str, Dimension]


def order(space: Space) -> list[str]:
    """Keys so that every key comes after those its `when` names. ValueError names a bad condition."""
    done: list[str] = []
    waiting = list(space)
    while waiting:
        ready = [key for key in waiting if all(k in done for k in space[key].when or {})]
        if not ready:
            raise ValueError(_bad_condition(space, waiting))
        done += ready
        waiting = [key for key in waiting if key not in ready]
    return done


def _bad_condition(space: Space, waiting: list[str]) -> str:
    for key in waiting:
        for other in space[key].when or {}:
            if other not in space:
                return f"{key}: `when` names {other}, which is not searched"
    return f"the conditions of {', '.join(waiting)} run in a circle"


def check(space: Space) -> None:
    """Refuse conditions that are circular, unknown, or can never hold. Raises ValueError."""
    for key in order(space):
        _needs(space, key)


def _needs(space: Space, key: str) -> Overrides:
    """All that must hold for a key to be reached: its own conditions, and those of the keys they name."""
    needs: Overrides = {}
    for other, value in (space[key].when or {}).items():
        if not space[other].holds(value):
            raise ValueError(f"{key}: `when` wants {other} = {value!r}, which it never takes")
        if space[other].float is not None and space[other].size is None:
            raise ValueError(f"{key}: `when` wants {other} = {value!r}, which a continuous range never hits")
        for name, wanted in {other: value, **_needs(space, other)}.items():
            if needs.setdefault(name, wanted) != wanted:
                raise ValueError(
                    f"{key}: is never reached: its conditions want {name} = {needs[name]!r} and = {wanted!r}"
                )
    return needs


def active(space: Space, key: str, drawn: Overrides) -> bool:
    """Whether the condition of `key` holds under the values drawn so far."""
    return all(drawn.get(k) == space[k].snap(v) for k, v in (space[key].when or {}).items())


def draw(space: Space, ask: Callable[[str, Dimension], Scalar]) -> Overrides:
    """One configuration: `ask(key, dimension)` gives each value; inactive keys are left out."""
    drawn: Overrides = {}
    for key in order(space):
        if active(space, key, drawn):
            drawn[key] = space[key].snap(ask(key, space[key]))
    return drawn


def grid(space: Space) -> Iterator[Overrides]:
    """Every configuration of a finite space, each once. ValueError names a continuous key."""
    keys = order(space)
    for key in keys:
        if space[key].size is None:
            raise ValueError(f"{key}: a grid needs `choice` or `step`, this range is continuous")
    yield from _cells(space, keys, {})


def _cells(space: Space, keys: list[str], drawn: Overrides) -> Iterator[Overrides]:
    if not keys:
        yield drawn
    elif not active(space, keys[0], drawn):
        yield from _cells(space, keys[1:], drawn)
    else:
        for value in space[keys[0]].values() or ():
            yield from _cells(space, keys[1:], {**drawn, keys[0]: value})


def count(space: Space) -> int | None:
    """Configurations of a finite space, without making them; None where a key is continuous."""
    keys = order(space)
    if any(space[key].size is None for key in keys):
        return None
    named: dict[str, set[Scalar]] = {}  # only these values of a key decide about others
    for dimension in space.values():
        for other, value in (dimension.when or {}).items():
            named.setdefault(other, set()).add(space[other].snap(value))
    return _count(space, keys, named, {})


def _count(space: Space, keys: list[str], named: Mapping[str, set[Scalar]], drawn: Overrides) -> int:
    if not keys:
        return 1
    key, rest = keys[0], keys[1:]
    if not active(space, key, drawn):
        return _count(space, rest, named, drawn)
    decisive = named.get(key, set())
    alike = (space[key].size or 0) - len(decisive)
    total = sum(_count(space, rest, named, {**drawn, key: value}) for value in decisive)
    return total + (alike * _count(space, rest, named, drawn) if alike else 0)
