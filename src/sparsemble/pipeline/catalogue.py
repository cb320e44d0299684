"""What there is to choose from: every component, and every shipped recipe and study."""

import dataclasses
import inspect
from typing import Any, NamedTuple

import sparsemble.attacks.ensemble
import sparsemble.ensemble
import sparsemble.models
import sparsemble.pruning
import sparsemble.training  # noqa: F401 (imports register the components)
from sparsemble.core.registry import REGISTRIES, Component, to_dict
from sparsemble.pipeline.recipe import shipped


class Entry(NamedTuple):
    """A component, a recipe or a study."""

    kind: str
    name: str
    sentence: str
    text: str


def catalogue() -> list[Entry]:
    """Return every component but stages, every alias, and every shipped recipe and study, by kind and name."""
    entries = []
    for registry in REGISTRIES.values():
        if registry.kind == "stage":
            continue
        for name, component in registry.components.items():
            entries.append(Entry(registry.kind, name, sentence(component), _settings(component)))
        for alias, table in registry.aliases.items():
            settings = ", ".join(f"{key} = {value!r}" for key, value in table.items())
            entries.append(Entry(registry.kind, alias, f"short for {settings}", settings))
    for kind, texts in (("recipe", shipped("recipes")), ("study", shipped("studies"))):
        entries += [Entry(kind, name, text.splitlines()[0].lstrip("# "), text) for name, text in texts.items()]
    return sorted(entries)


def sentence(component: type[Component]) -> str:
    """Return the first sentence of a component's docstring."""
    return inspect.cleandoc(component.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _settings(component: type[Component]) -> str:
    """Return the docstring and the fields with their types and defaults."""
    lines = [inspect.cleandoc(component.__doc__ or ""), ""]
    for field in dataclasses.fields(component):  # type: ignore[arg-type]
        hint = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        default: Any = field.default if field.default is not dataclasses.MISSING else None
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        lines.append(f"  {field.name}: {hint}" + ("  (required)" if required else f" = {to_dict(default)!r}"))
    return "\n".join(lines)
