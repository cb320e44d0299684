"""The schema of `summary.json` (docs/summary.md) and the names its rows have for people."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from sparsemble.core.errors import InputError

SCHEMA_VERSION = 1

NAMES = {
    "dense": "Dense parent",
    "small_dense": "Small dense network (the team's MACs)",
    "harp": "One HARP model (same sparsity)",
    "best_member": "Best single sub-model",
    "team_static": "Team, all members",
    "team_dynamic": "Team, dynamic",
}
SHORT_NAMES = {
    "dense": "dense parent",
    "small_dense": "small dense",
    "harp": "one HARP model",
    "best_member": "best sub-model",
    "team_static": "team, all members",
    "team_dynamic": "team, dynamic",
    "team": "team",
}
"""For plots and terminals; `team` is the team while it is trained."""

STATUSES = ("fail", "waived", "pass")
"""Verdicts of a check, what matters most first."""


class Rule(NamedTuple):
    """What a value must be."""

    wanted: str
    holds: Callable[[Any], bool]


class Each(NamedTuple):
    """A table of any names, all of whose values keep one schema."""

    schema: Any


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_interval(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))


TEXT = Rule("text", lambda value: isinstance(value, str))
TABLE = Rule("a table", lambda value: isinstance(value, dict))
WHOLE = Rule("a whole number", _is_whole)
COUNT = Rule("a whole number, 0 or more", lambda value: _is_whole(value) and value >= 0)
POSITIVE_COUNT = Rule("a whole number, 1 or more", lambda value: _is_whole(value) and value >= 1)
NUMBER = Rule("a number", _is_number)
AMOUNT = Rule("a number, 0 or more", lambda value: _is_number(value) and value >= 0)
SHARE = Rule("a number in [0, 1]", lambda value: _is_number(value) and 0 <= value <= 1)
INTERVAL = Rule("two numbers, low <= high", lambda value: _is_interval(value) and 0 <= value[0] <= value[1] <= 1)
NUMBER_OR_NULL = Rule("a number or null", lambda value: value is None or _is_number(value))
WHOLE_OR_NULL = Rule("a whole number or null", lambda value: value is None or _is_whole(value))
VERSION = Rule(f"the version {SCHEMA_VERSION} that this code reads", lambda value: value == SCHEMA_VERSION)
STATUS = Rule(f"one of {', '.join(STATUSES)}", lambda value: value in STATUSES)
ROW_NAME = Rule(f"one of {', '.join(NAMES)}", lambda value: value in tuple(NAMES))

ROW = {
    "name": ROW_NAME,
    "clean": SHARE,
    "attacks": Each(SHARE),
    "worst_case": SHARE,
    "worst_case_interval": INTERVAL,
    "images": POSITIVE_COUNT,
    "sparsity": SHARE,
    "nonzeros": COUNT,
    "macs_dense": COUNT,
    "macs_nonzero": AMOUNT,
    "members_run": {"clean": AMOUNT, "attacked": AMOUNT},
    "bytes": COUNT,
    "latency_ms": {"batch_1": AMOUNT, "batch_64": AMOUNT},
    "training_passes": COUNT,
    "seconds": AMOUNT,
}
CHECK = {"number": WHOLE_OR_NULL, "name": TEXT, "status": STATUS, "detail": TEXT}
SUMMARY = {
    "schema": VERSION,
    "name": TEXT,
    "threat": {"norm": TEXT, "eps": AMOUNT},
    "seed": WHOLE,
    "command": TEXT,
    "rows": [ROW],
    "checks": [CHECK],
    "selection": {"team": [TEXT], "robust_diversity": NUMBER, "threshold": NUMBER_OR_NULL, "rule": TEXT},
    "stopping": {"rule": TEXT, "settings": TABLE, "order": [TEXT]},
    "machine": TABLE,
    "recipe": TABLE,
    "versions": Each(TEXT),
    "source": TEXT,
}
"""Fields beyond these are kept and not looked at."""


def validate(summary: dict[str, Any]) -> None:
    """Check a summary against the schema.

    Raises:
        InputError: naming the first field that is missing, wrong or contradictory.
    """
    _keep(summary, SUMMARY, "summary")
    if not isinstance(summary.get("complete", True), bool):
        raise InputError(f"summary.complete = {summary['complete']!r} must be true or false")
    names = [row["name"] for row in summary["rows"]]
    if sorted(names) != sorted(NAMES):
        raise InputError(f"summary.rows must be {', '.join(NAMES)}, each once; got {', '.join(names) or 'none'}")
    if not summary["selection"]["team"]:
        raise InputError("summary.selection.team is empty; it must name the members")
    for row in summary["rows"]:
        _agree(row, f"summary.rows[{row['name']}]")


def row_of(summary: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a row by its name."""
    return next(row for row in summary["rows"] if row["name"] == name)


def _agree(row: dict[str, Any], where: str) -> None:
    """Check what the numbers of a row say about each other."""
    worst, (low, high) = row["worst_case"], row["worst_case_interval"]
    if not row["attacks"]:
        raise InputError(f"{where}.attacks is empty; a worst case needs at least one attack")
    strongest = min(row["attacks"], key=row["attacks"].__getitem__)
    if worst > row["attacks"][strongest] + 1e-9:
        accuracy = row["attacks"][strongest]
        raise InputError(f"{where}.worst_case = {worst} must not exceed the accuracy {accuracy} under {strongest}")
    if not low - 1e-9 <= worst <= high + 1e-9:
        raise InputError(f"{where}.worst_case_interval = {[low, high]} must hold worst_case = {worst}")


def _keep(value: Any, schema: Any, where: str) -> None:
    """Check a value and all that it holds."""
    if isinstance(schema, Rule):
        if not schema.holds(value):
            raise InputError(f"{where} = {value!r} must be {schema.wanted}")
    elif isinstance(schema, list):
        if not isinstance(value, list | tuple):
            raise InputError(f"{where} = {value!r} must be a list")
        for i, item in enumerate(value):
            _keep(item, schema[0], f"{where}[{_label(item, i)}]")
    elif not isinstance(value, dict):
        raise InputError(f"{where} = {value!r} must be a table")
    else:
        fields = dict.fromkeys(value, schema.schema) if isinstance(schema, Each) else schema
        for name, of_field in fields.items():
            if name not in value:
                raise InputError(f"{where}.{name} is missing")
            _keep(value[name], of_field, f"{where}.{name}")


def _label(item: Any, index: int) -> str:
    """Name a row by its name and anything else by its place."""
    name = item.get("name") if isinstance(item, dict) else None
    return name if name in tuple(NAMES) else str(index)
