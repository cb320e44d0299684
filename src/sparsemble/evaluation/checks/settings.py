"""How checks read the attacks of a result."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from sparsemble.core.results import EvaluationResult

ON_PARTS = ("hijack", "slowdown", "sequential", "transfer")
"""Attacks whose loss is not that of the combined prediction of the whole."""


def named(settings: Any, name: str) -> Iterator[dict[str, Any]]:
    """Yield every component of this name in the settings of an attack, itself included."""
    if isinstance(settings, dict):
        if settings.get("name") == name:
            yield settings
        for value in settings.values():
            yield from named(value, name)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from named(value, name)


def settings_of(result: EvaluationResult) -> dict[str, dict[str, Any]]:
    """Return the settings of each attack, by label."""
    return {attack.label: attack.settings for attack in result.attacks}


def is_ensemble(result: EvaluationResult) -> bool:
    """Return whether the model has more than one member."""
    return result.model.members > 1


def stops_early(result: EvaluationResult) -> bool:
    """Return whether the model has a stopping rule that can stop before the last member."""
    return is_ensemble(result) and result.model.rule not in (None, "never")


def is_whole(settings: dict[str, Any]) -> bool:
    """Return whether an attack sees all members through their own combiner, as any does that is not for ensembles."""
    surrogate: dict[str, Any] | None = settings.get("surrogate")
    return surrogate.get("name") == "full_ensemble" if surrogate else settings.get("name") not in ON_PARTS


def means(text: str, eps: float) -> bool:
    """Return whether a text such as 8/255 stands for a radius, to six digits."""
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        return False
    return abs(value - eps) <= 1e-5 * max(value, eps)
