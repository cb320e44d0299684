"""How checks read a result file (docs/evaluation_json.md)."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

Result = dict[str, Any]
"""What `sparsemble evaluate` writes."""

ON_PARTS = ("hijack", "slowdown", "sequential", "transfer")
"""Attacks that climb something else than the combined answer of the whole."""


def missing(result: Result, fields: Sequence[str]) -> list[str]:
    """Return the fields, such as `threat.eps`, that a result lacks; a field that is null is there."""
    return [field for field in fields if not _has(result, field.split("."))]


def named(settings: Any, name: str) -> Iterator[dict[str, Any]]:
    """Walk the settings of an attack and yield every part of this name, itself included."""
    if isinstance(settings, dict):
        if settings.get("name") == name:
            yield settings
        for value in settings.values():
            yield from named(value, name)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from named(value, name)


def settings_of(result: Result) -> dict[str, dict[str, Any]]:
    """Return the settings of each attack, by label."""
    return {label: attack.get("settings", {}) for label, attack in result.get("attacks", {}).items()}


def is_ensemble(result: Result) -> bool:
    """Say whether the target has more than one member."""
    return int(result.get("target", {}).get("members", 1)) > 1


def stops_early(result: Result) -> bool:
    """Say whether the target has a stopping rule that can stop before the last member."""
    return is_ensemble(result) and result["target"].get("stopping") not in (None, "never")


def is_whole(settings: dict[str, Any]) -> bool:
    """Say whether an attack sees all members through their own combiner: any that is not made for ensembles does."""
    surrogate: dict[str, Any] | None = settings.get("surrogate")
    return surrogate.get("name") == "whole" if surrogate else settings.get("name") not in ON_PARTS


def says(text: str, eps: float) -> bool:
    """Say whether a text such as 8/255 stands for a radius, to six digits."""
    try:
        told = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        return False
    return abs(told - eps) <= 1e-5 * max(told, eps)


def _has(value: Any, steps: Sequence[str]) -> bool:
    for step in steps:
        if not isinstance(value, dict) or step not in value:
            return False
        value = value[step]
    return True
