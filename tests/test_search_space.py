"""Search spaces in our own words: what a dimension is, when a key is searched, and what a grid holds."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
from pydantic import ValidationError

from comkd_ray import search_space
from comkd_ray.search_space import Dimension, Overrides, Scalar

Tree = dict[str, Any]


def dimension(**fields: Any) -> Dimension:
    return Dimension.model_validate_json(json.dumps(fields))


def space(**keys: Tree) -> dict[str, Dimension]:
    return {key: dimension(**fields) for key, fields in keys.items()}


def conditional() -> dict[str, Dimension]:
    """Three levels: `c` hangs on `b`, which hangs on `a`; written the other way round."""
    return space(
        c={"choice": [1, 2], "when": {"b": "x"}},
        b={"choice": ["x", "y"], "when": {"a": True}},
        a={"choice": [False, True]},
    )


# Dimensions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({"choice": [True, "sqrt_width", 0.1]}, (True, "sqrt_width", 0.1)),
        ({"choice": [1]}, (1,)),
        ({"int": [2, 5]}, (2, 3, 4, 5)),
        ({"int": [2, 8], "step": 3}, (2, 5, 8)),
        ({"int": [2, 7], "step": 3}, (2, 5)),
        ({"int": [1, 64], "log": True}, None),
        ({"float": [0.0, 1.0], "step": 0.25}, (0.0, 0.25, 0.5, 0.75, 1.0)),
        ({"float": [0.0, 0.3], "step": 0.1}, (0.0, 0.1, 0.2, 0.3)),
        ({"float": [0, 1], "step": 0.4}, (0.0, 0.4, 0.8)),
        ({"float": [0.1, 1.0]}, None),
        ({"float": [0.1, 1.0], "log": True}, None),
    ],
)
def test_a_finite_dimension_knows_its_values(fields: Tree, values: tuple[Scalar, ...] | None) -> None:
    found = dimension(**fields).values()
    assert found == (values if values is None else pytest.approx(values))


@pytest.mark.parametrize(
    ("fields", "inside", "outside"),
    [
        ({"choice": [1, "a"]}, [1, "a"], [2, "b"]),
        ({"int": [2, 8], "step": 3}, [2, 5, 8], [3, 11, 5.5, "5", True]),
        ({"int": [1, 64], "log": True}, [1, 7, 64], [0, 65, 1.5]),
        ({"float": [0.1, 1.0]}, [0.1, 0.33, 1.0, 1], [0.09, 1.01, "0.5", True]),
        ({"float": [0.0, 0.3], "step": 0.1}, [0.0, 0.1, 0.30000000000000004 - 1e-12], [0.15, 0.4]),
    ],
)
def test_a_dimension_knows_what_it_can_take(fields: Tree, inside: list[Any], outside: list[Any]) -> None:
    one = dimension(**fields)
    assert [value for value in inside if not one.holds(value)] == []
    assert [value for value in outside if one.holds(value)] == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "needs exactly one of float, int, choice"),
        ({"log": True}, "needs exactly one of float, int, choice"),
        ({"float": [0, 1], "choice": [1]}, "needs exactly one of float, int, choice"),
        ({"float": [2.0, 1.0]}, "the lower bound 2.0 is not below the upper bound 1.0"),
        ({"float": [1.0, 1.0]}, "the lower bound 1.0 is not below the upper bound 1.0"),
        ({"int": [5, 1]}, "the lower bound 5 is not below the upper bound 1"),
        ({"float": [0.0, 1.0], "log": True}, "a log range needs a lower bound above 0, not 0.0"),
        ({"int": [0, 9], "log": True}, "a log range needs a lower bound above 0, not 0"),
        ({"float": [-1.0, 1.0], "log": True}, "a log range needs a lower bound above 0"),
        ({"float": [1.0, 2.0], "log": True, "step": 0.5}, "log and step exclude each other"),
        ({"float": [1.0, 2.0], "step": 0.0}, "step must be above 0, not 0.0"),
        ({"int": [1, 9], "step": -1}, "step must be above 0"),
        ({"int": [1, 9], "step": 1.5}, "the step of an int is a whole number, not 1.5"),
        ({"choice": []}, "choice needs at least one value, and none twice"),
        ({"choice": ["a", "b", "a"]}, "choice needs at least one value, and none twice"),
        ({"choice": [1, 2], "log": True}, "log and step belong to float and int"),
        ({"choice": [1, 2], "step": 1}, "log and step belong to float and int"),
        ({"int": [1.5, 2]}, "valid integer"),
        ({"float": ["a", 2]}, "valid number"),
        ({"float": [1.0]}, "Field required"),
        ({"float": [1.0, 2.0, 3.0]}, "at most 2 items"),
        ({"choice": [None]}, "valid boolean"),
        ({"choice": [[1]]}, "valid boolean"),
    ],
)
def test_a_dimension_that_makes_no_sense_is_refused(fields: Tree, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        dimension(**fields)


def test_a_choice_with_values_that_python_calls_equal_is_refused() -> None:
    """1 and True, or 1 and 1.0, are one value to Python and to Optuna, so a grid would lose one."""
    for twins in ([1, True], [1, 1.0], [0, False]):
        with pytest.raises(ValidationError, match="none twice"):
            dimension(choice=twins)


# Conditions -------------------------------------------------------------------------------------


def test_keys_come_after_those_they_hang_on() -> None:
    assert search_space.order(conditional()) == ["a", "b", "c"]


def test_without_conditions_the_order_is_that_of_the_file() -> None:
    plain = space(z={"int": [1, 2]}, a={"int": [1, 2]}, m={"int": [1, 2]})
    assert search_space.order(plain) == ["z", "a", "m"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"a": {"choice": [1], "when": {"b": 1}}, "b": {"choice": [1], "when": {"a": 1}}},
            "the conditions of a, b run in a circle",
        ),
        ({"a": {"choice": [1], "when": {"a": 1}}}, "the conditions of a run in a circle"),
        ({"a": {"choice": [1], "when": {"x": 1}}}, "a: `when` names x, which is not searched"),
        (
            {"a": {"choice": [1], "when": {"b": 3}}, "b": {"choice": [1, 2]}},
            "a: `when` wants b = 3, which it never takes",
        ),
        (
            {"a": {"choice": [1], "when": {"b": 9}}, "b": {"int": [1, 8]}},
            "a: `when` wants b = 9, which it never takes",
        ),
        (
            {"a": {"choice": [1], "when": {"b": "true"}}, "b": {"choice": [True, False]}},
            "a: `when` wants b = 'true', which it never takes",
        ),
        (
            {"a": {"choice": [1], "when": {"b": 0.5}}, "b": {"float": [0, 1]}},
            "a: `when` wants b = 0.5, which a continuous range never hits",
        ),
        (
            {
                "a": {"choice": [1, 2]},
                "b": {"choice": [1], "when": {"a": 1}},
                "c": {"choice": [1], "when": {"b": 1, "a": 2}},
            },
            "c: is never reached: its conditions want a = ",
        ),
        (
            {
                "a": {"choice": [1, 2]},
                "b": {"choice": [1], "when": {"a": 1}},
                "c": {"choice": [1], "when": {"a": 2}},
                "d": {"choice": [1], "when": {"b": 1, "c": 1}},
            },
            "d: is never reached: its conditions want a = ",
        ),
    ],
)
def test_a_condition_that_never_holds_is_refused(keys: dict[str, Tree], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        search_space.check(space(**keys))


def test_a_condition_may_hang_on_an_integer() -> None:
    keys = space(a={"choice": ["p"], "when": {"b": 2}}, b={"int": [1, 3]})
    search_space.check(keys)
    assert list(search_space.grid(keys)) == [{"b": 1}, {"b": 2, "a": "p"}, {"b": 3}]


def test_draw_leaves_out_inactive_keys_and_does_not_ask_for_them() -> None:
    def draw(values: Overrides) -> tuple[Overrides, list[str]]:
        asked: list[str] = []

        def ask(key: str, _: Dimension) -> Scalar:
            asked.append(key)
            return values[key]

        return search_space.draw(conditional(), ask), asked

    assert draw({"a": False, "b": "x", "c": 1}) == ({"a": False}, ["a"])
    assert draw({"a": True, "b": "y", "c": 1}) == ({"a": True, "b": "y"}, ["a", "b"])
    assert draw({"a": True, "b": "x", "c": 1}) == ({"a": True, "b": "x", "c": 1}, ["a", "b", "c"])


def test_several_conditions_must_all_hold() -> None:
    keys = space(a={"choice": [0, 1]}, b={"choice": [0, 1]}, c={"choice": [7], "when": {"a": 1, "b": 1}})
    assert [cell for cell in search_space.grid(keys) if "c" in cell] == [{"a": 1, "b": 1, "c": 7}]


# Grids ------------------------------------------------------------------------------------------


def test_a_grid_holds_every_combination_once() -> None:
    keys = space(a={"choice": [False, True]}, b={"int": [1, 3]})
    cells = list(search_space.grid(keys))
    assert cells == [{"a": a, "b": b} for a in (False, True) for b in (1, 2, 3)]


def test_combinations_that_differ_only_in_inactive_keys_are_one_cell() -> None:
    cells = list(search_space.grid(conditional()))
    assert cells == [
        {"a": False},
        {"a": True, "b": "x", "c": 1},
        {"a": True, "b": "x", "c": 2},
        {"a": True, "b": "y"},
    ]


@pytest.mark.parametrize("fields", [{"float": [0.1, 1.0]}, {"int": [1, 9], "log": True}])
def test_a_grid_refuses_a_continuous_dimension_by_name(fields: Tree) -> None:
    keys = space(a={"choice": [1, 2]}) | {"loss.temperature": dimension(**fields)}
    with pytest.raises(ValueError, match=r"^loss\.temperature: a grid needs `choice` or `step`"):
        next(search_space.grid(keys))


def test_a_grid_is_lazy() -> None:
    keys = {f"k{n}": dimension(int=[1, 2]) for n in range(16)}
    assert next(search_space.grid(keys)) == dict.fromkeys(keys, 1)


def test_a_space_cannot_be_changed() -> None:
    one = dimension(choice=[1, 2])
    with pytest.raises(ValidationError):
        one.choice = (3,)  # type: ignore[misc]


# Counting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"a": {"choice": [1]}},
        {"a": {"choice": [False, True]}, "b": {"int": [1, 3]}, "c": {"float": [0, 1], "step": 0.25}},
        {
            "c": {"choice": [1, 2], "when": {"b": "x"}},
            "b": {"choice": ["x", "y"], "when": {"a": True}},
            "a": {"choice": [False, True]},
        },
        {
            "a": {"int": [1, 9]},
            "b": {"choice": [1, 2, 3], "when": {"a": 4}},
            "c": {"int": [0, 4], "when": {"a": 7}},
            "d": {"choice": [1, 2], "when": {"b": 2, "a": 4}},
        },
    ],
)
def test_cells_are_counted_without_making_them(keys: dict[str, Tree]) -> None:
    assert search_space.count(space(**keys)) == len(list(search_space.grid(space(**keys))))


def test_a_space_of_many_billions_is_counted_at_once() -> None:
    keys = {f"k{n}": dimension(int=[1, 1000]) for n in range(6)}
    keys["seed"] = dimension(int=[0, 2**31 - 1], when={"k0": 5})
    assert search_space.count(keys) == 1000**5 * (999 + 2**31)


def test_a_continuous_space_has_no_count() -> None:
    assert search_space.count(space(a={"choice": [1]}, b={"float": [0, 1]})) is None


def test_every_grid_is_the_product_without_its_inactive_parts() -> None:
    """Said again, the slow way: all combinations, inactive keys left out, each once."""
    keys = space(
        a={"choice": [0, 1, 2]},
        b={"choice": ["x", "y"], "when": {"a": 1}},
        c={"choice": [True, False], "when": {"b": "y"}},
        d={"int": [1, 2], "when": {"a": 2}},
    )
    every = []
    for a, b, c, d in product([0, 1, 2], "xy", [True, False], [1, 2]):
        cell: Overrides = {"a": a}
        if a == 1:
            cell["b"] = b
            if b == "y":
                cell["c"] = c
        if a == 2:
            cell["d"] = d
        if cell not in every:
            every.append(cell)
    assert list(search_space.grid(keys)) == every


def test_a_stepped_float_is_the_value_that_is_written() -> None:
    """0.1 + 2 * 0.1 is not 0.3 to a computer; to a condition, a named arm and a count it is."""
    stepped = space(a={"float": [0.1, 0.5], "step": 0.1}, b={"choice": [1, 2, 3], "when": {"a": 0.3}})
    cells = list(search_space.grid(stepped))
    assert len(cells) == search_space.count(stepped) == 4 + 3
    assert sum("b" in cell for cell in cells) == 3
    named = search_space.draw(stepped, lambda key, _: {"a": 0.3, "b": 2}[key])
    assert named in cells
    assert stepped["a"].snap(0.7) == 0.7
    assert stepped["b"].snap(2) == 2
