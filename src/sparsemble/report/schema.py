"""What the values of a result file must be, and sentences for those that are not."""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from sparsemble.core.errors import InputError

STATUSES = ("fail", "waived", "pass")
"""Verdicts of a check, what matters most first."""


class Rule(NamedTuple):
    """What a value must be."""

    wanted: str
    holds: Callable[[Any], bool]


class Each(NamedTuple):
    """A table of any names, all of whose values keep one schema."""

    schema: Any


class OrNull(NamedTuple):
    """A value that keeps a schema, or null."""

    schema: Any


class IfThere(NamedTuple):
    """A field that may be missing, and otherwise keeps a schema."""

    schema: Any


def is_number(value: Any) -> bool:
    """Say whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_interval(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))


TEXT = Rule("text", lambda value: isinstance(value, str))
TABLE = Rule("a table", lambda value: isinstance(value, dict))
TRUTH = Rule("true or false", lambda value: isinstance(value, bool))
WHOLE = Rule("a whole number", _is_whole)
COUNT = Rule("a whole number, 0 or more", lambda value: _is_whole(value) and value >= 0)
POSITIVE_COUNT = Rule("a whole number, 1 or more", lambda value: _is_whole(value) and value >= 1)
NUMBER = Rule("a number", is_number)
AMOUNT = Rule("a number, 0 or more", lambda value: is_number(value) and value >= 0)
SHARE = Rule("a number in [0, 1]", lambda value: is_number(value) and 0 <= value <= 1)
INTERVAL = Rule("two numbers, low <= high", lambda value: _is_interval(value) and 0 <= value[0] <= value[1] <= 1)
NUMBER_OR_NULL = Rule("a number or null", lambda value: value is None or is_number(value))
WHOLE_OR_NULL = Rule("a whole number or null", lambda value: value is None or _is_whole(value))
TEXT_OR_NULL = Rule("text or null", lambda value: value is None or isinstance(value, str))


def one_of(*values: Any) -> Rule:
    """Make the rule that a value is one of several."""
    names = ", ".join("null" if value is None else str(value) for value in values)
    # 1 and True are equal, but are not the same value in a file.
    return Rule(f"one of {names}", lambda found: any(type(found) is type(v) and found == v for v in values))


STATUS = one_of(*STATUSES)


def keep(value: Any, schema: Any, where: str, names: Collection[str] = ()) -> None:
    """Check a value and all that it holds; fields beyond the schema are not looked at.

    Args:
        value: what a file holds.
        schema: a rule, a table of schemas by field, a list of the schema of its items, or a wrapper of one.
        where: what leads to the value, for the sentence.
        names: items of lists that have one of these names are called by it, others by their place.

    Raises:
        InputError: naming the first value that is missing or wrong.
    """
    if isinstance(schema, OrNull):
        if value is not None:
            keep(value, schema.schema, where, names)
    elif isinstance(schema, Rule):
        if not schema.holds(value):
            raise InputError(f"{where} = {value!r} must be {schema.wanted}")
    elif isinstance(schema, list):
        if not isinstance(value, list | tuple):
            raise InputError(f"{where} = {value!r} must be a list")
        for i, item in enumerate(value):
            keep(item, schema[0], f"{where}[{_label(item, i, names)}]", names)
    else:
        _keep_table(value, schema, where, names)


def fields_of(schema: Any) -> set[str]:
    """Return the names of all fields of a schema, at every depth."""
    if isinstance(schema, OrNull | IfThere | Each):
        return fields_of(schema.schema)
    if isinstance(schema, Rule):
        return set()
    if isinstance(schema, list):
        return fields_of(schema[0])
    return set(schema).union(*(fields_of(of_field) for of_field in schema.values()))


def _keep_table(value: Any, schema: Any, where: str, names: Collection[str]) -> None:
    """Check a table, field by field."""
    if not isinstance(value, dict):
        raise InputError(f"{where} = {value!r} must be a table")
    fields = dict.fromkeys(value, schema.schema) if isinstance(schema, Each) else schema
    for name, of_field in fields.items():
        optional = isinstance(of_field, IfThere)
        if name in value:
            keep(value[name], of_field.schema if optional else of_field, f"{where}.{name}", names)
        elif not optional:
            raise InputError(f"{where}.{name} is missing")


def _label(item: Any, index: int, names: Collection[str]) -> str:
    """Name an item by its name, if that is one to be called by, and anything else by its place."""
    name = item.get("name") if isinstance(item, dict) else None
    return name if isinstance(name, str) and name in names else str(index)
