"""Components: every part with settings is one frozen dataclass in one file named after it."""

import dataclasses
import importlib
import pkgutil
from abc import ABC
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar, Generic, TypeVar

from sparsemble.core.config import from_dict, nearest
from sparsemble.core.errors import InputError


class Component(ABC):
    """A part that a recipe can name; subclasses are interfaces, their leaves frozen dataclasses."""

    version: ClassVar[int] = 1
    """Raised by one when the part's results change, so that stored results are computed anew."""
    name: ClassVar[str]
    """Set by `Registry.register`; equals the name of the file."""


P = TypeVar("P", bound=Component)
Leaf = TypeVar("Leaf", bound=Component)

REGISTRIES: dict[type[Component], "Registry[Any]"] = {}
"""Every registry, by the interface that its components implement."""


class Registry(Generic[P]):
    """The components of one kind, found by walking folders."""

    def __init__(self, kind: str, interface: type[P]) -> None:
        self.kind = kind
        self.interface = interface
        self.components: dict[str, type[P]] = {}
        self.aliases: dict[str, dict[str, Any]] = {}
        REGISTRIES[interface] = self

    def register(self, name: str) -> Callable[[type[Leaf]], type[Leaf]]:
        """Add a component under the name of its file.

        Raises:
            TypeError: the name is taken, differs from the file's, or the class is not a frozen dataclass.
        """

        def add(cls: type[Leaf]) -> type[Leaf]:
            self._check_free(name)
            if cls.__module__.rsplit(".", 1)[-1] != name:
                raise TypeError(f'{self.kind} "{name}" must stand in a file named {name}.py, not in {cls.__module__}')
            if not issubclass(cls, self.interface):
                raise TypeError(f"{cls.__name__} must be a subclass of {self.interface.__name__}")
            own = vars(cls).get("__dataclass_params__")
            if not (own and own.frozen and dataclasses.is_dataclass(cls)):
                raise TypeError(
                    f"{cls.__name__} must be a frozen dataclass; put @dataclass(frozen=True) below register"
                )
            cls.name = name
            self.components[name] = cls
            return cls

        return add

    def alias(self, short: str, name: str, **settings: Any) -> None:
        """Let `short` stand for component `name` with these settings."""
        self._check_free(short)
        self.aliases[short] = {"name": name, **settings}

    def walk(self, package: ModuleType | str) -> None:
        """Import every module of a package, so that its components register."""
        module = importlib.import_module(package) if isinstance(package, str) else package
        for found in pkgutil.iter_modules(module.__path__, module.__name__ + "."):
            importlib.import_module(found.name)

    def build(self, spec: str | dict[str, Any], where: str = "") -> P:
        """Make a component from its name, an alias, or a table with `name` and settings.

        Raises:
            InputError: unknown name or option (the nearest one is offered), or a value of the wrong type.
        """
        where = where or self.kind
        table = {"name": spec} if isinstance(spec, str) else dict(spec)
        name = table.pop("name", None)
        if not isinstance(name, str):
            raise InputError(f"{where} needs a name; known: {', '.join(self.names())}")
        if name in self.aliases:
            table = {**self.aliases[name], **table}
            name = table.pop("name")
        if name not in self.components:
            raise InputError(f'{where} = "{name}" is not a known {self.kind}{nearest(name, self.names())}')
        return from_dict(self.components[name], table, where)

    def names(self) -> list[str]:
        """Return the names and aliases, sorted."""
        return sorted([*self.components, *self.aliases])

    def _check_free(self, name: str) -> None:
        if name in self.components or name in self.aliases:
            raise TypeError(f'{self.kind} "{name}" is registered twice')


def _is_automatic(component: Component) -> bool:
    """Say whether the component's label is the one it gives itself; that one follows its settings."""
    fresh: Any = dataclasses.replace(component, label="")  # type: ignore[type-var]
    return bool(fresh.label == component.label)  # type: ignore[attr-defined]


def to_dict(value: Any, *, versions: bool = False) -> Any:
    """Write a dataclass, component or container as plain JSON values, every default spelled out.

    Args:
        value: what to write.
        versions: also write each component's version, for hashing.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        table = {f.name: to_dict(getattr(value, f.name), versions=versions) for f in dataclasses.fields(value)}
        if isinstance(value, Component):
            if "label" in table and _is_automatic(value):
                del table["label"]
            table = {"name": value.name, **table}
            if versions:
                table["version"] = value.version
        return {key: entry for key, entry in table.items() if entry is not None}
    if isinstance(value, tuple | list):
        return [to_dict(entry, versions=versions) for entry in value]
    if isinstance(value, dict):
        return {key: to_dict(entry, versions=versions) for key, entry in value.items()}
    return value
