"""How checks read the attacks of a result."""

from collections.abc import Iterator
from typing import Any

from sparsemble.core.results import EvaluationResult

ON_PARTS = ("hijack", "slowdown", "sequential", "transfer")
"""Attacks whose loss is not that of the combined prediction of the whole."""


def settings_of(result: EvaluationResult) -> list[dict[str, Any]]:
    """Return the settings of each attack."""
    return [attack.settings for attack in result.attacks]


def named(settings: Any, *names: str) -> Iterator[dict[str, Any]]:
    """Yield every component of these names in the settings of one attack or several, itself included."""
    if isinstance(settings, dict):
        if settings.get("name") in names:
            yield settings
        settings = settings.values()
    elif not isinstance(settings, list | tuple):
        return
    for value in settings:
        yield from named(value, *names)


def uses(settings: Any, *names: str) -> bool:
    """Return whether a component of one of these names is in the settings."""
    return next(named(settings, *names), None) is not None


def members_alone(settings: Any) -> set[int]:
    """Return the numbers of the members that were attacked by themselves; member 1 is also the prefix of length 1."""
    alone = {member["index"] for member in named(settings, "member")}
    return alone | {1 for prefix in named(settings, "prefix") if prefix["length"] == 1}


def stops_early(result: EvaluationResult) -> bool:
    """Return whether the model has a stopping rule that can stop before the last member."""
    return result.model.members > 1 and result.model.rule not in (None, "never")


def is_whole(settings: dict[str, Any]) -> bool:
    """Return whether an attack sees all members through their own combiner, as any does that is not for ensembles."""
    surrogate: dict[str, Any] | None = settings.get("surrogate")
    return surrogate.get("name") == "full_ensemble" if surrogate else settings.get("name") not in ON_PARTS
