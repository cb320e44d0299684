"""Components: every part with settings is one frozen dataclass in one file named after it."""

import dataclasses
import functools
import importlib
import pkgutil
import warnings
from abc import ABC
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Generic, TypeVar

from sparsemble.core.config import from_dict, nearest
from sparsemble.core.errors import InputError
from sparsemble.core.source_file import (
    check_component,
    class_from_file,
    first_line,
    is_frozen_dataclass,
    names_a_file,
)

ENTRY_POINTS = "sparsemble.components"
"""Entry-point group under which installed packages offer components: `name = "package.module:ClassName"`."""


class Component(ABC):
    """A part that a recipe can name; subclasses are interfaces, their leaves frozen dataclasses."""

    version: ClassVar[int] = 1
    """Raised by one when the part's results change, so that stored results are computed anew."""
    name: ClassVar[str]
    """Set by `Registry.register` to the name of the file; of a class in the user's own file, the class's name."""
    source_file: ClassVar[str] = ""
    """`/path/file.py:ClassName` of a class in the user's own file, else empty."""
    source_sha256: ClassVar[str] = ""
    """sha256 of that file and of the files beside it that it imports."""
    installed: ClassVar[bool] = False
    """Whether an installed package offers it."""


P = TypeVar("P", bound=Component)
Leaf = TypeVar("Leaf", bound=Component)

REGISTRIES: dict[type[Component], "Registry[Any]"] = {}
"""Every registry, by the interface that its components implement."""


class Registry(Generic[P]):
    """The components of one kind: those in our folders, and those that installed packages offer."""

    def __init__(self, kind: str, interface: type[P], *, own_files: bool = True) -> None:
        self.kind = kind
        self.own_files = own_files
        """Whether each component has a file of its own, named after it."""
        self.interface = interface
        self._components: dict[str, type[P]] = {}
        self._aliases: dict[str, dict[str, Any]] = {}
        REGISTRIES[interface] = self

    @property
    def components(self) -> dict[str, type[P]]:
        """Every component, by name."""
        load_installed()
        return self._components

    @property
    def aliases(self) -> dict[str, dict[str, Any]]:
        """The table that each short name stands for."""
        load_installed()
        return self._aliases

    def register(self, name: str) -> Callable[[type[Leaf]], type[Leaf]]:
        """Add a component under the name of its file."""

        def add(cls: type[Leaf]) -> type[Leaf]:
            self._check_free(name, cls.__module__)
            if self.own_files and cls.__module__.rsplit(".", 1)[-1] != name:
                raise TypeError(f'{self.kind} "{name}" must stand in a file named {name}.py, not in {cls.__module__}')
            if self.interface not in cls.__mro__:
                raise TypeError(f"{cls.__name__} must be a subclass of {self.interface.__name__}")
            if not is_frozen_dataclass(cls):
                raise TypeError(
                    f"{cls.__name__} must be a frozen dataclass; put @dataclass(frozen=True) below register"
                )
            own: Any = cls
            own.name = name
            self._components[name] = own
            return cls

        return add

    def alias(self, short: str, name: str, **settings: Any) -> None:
        """Let `short` stand for component `name` with these settings."""
        self._check_free(short, "an alias")
        self._aliases[short] = {"name": name, **settings}

    def register_package(self, package: ModuleType | str) -> None:
        """Import every module of a package, so that its components register."""
        module = importlib.import_module(package) if isinstance(package, str) else package
        for entry in pkgutil.iter_modules(module.__path__, module.__name__ + "."):
            importlib.import_module(entry.name)

    def build(self, spec: str | dict[str, Any], where: str = "") -> P:
        """Make a component from its name, an alias, `file.py:ClassName`, or a table with such a name and settings."""
        component: P = build_from((self,), spec, where)
        return component

    def names(self) -> list[str]:
        """Return the names and aliases, sorted."""
        return sorted([*self.components, *self.aliases])

    def origin(self, name: str) -> str:
        """Return where a component or alias is defined."""
        return self._components[name].__module__ if name in self._components else "an alias"

    def _check_free(self, name: str, origin: str) -> None:
        """Refuse a name that is taken, unless an installed package took it from one of ours that comes later."""
        if name not in self._components and name not in self._aliases:
            return
        taken = self.origin(name)
        if origin.startswith("sparsemble.") and name in self._components and self._components[name].installed:
            warnings.warn(f'{self.kind} "{name}" is {origin}; {taken} has the same name and is left out', stacklevel=3)
            return
        raise TypeError(f'{self.kind} "{name}" is registered twice: {taken} and {origin}')


def build_from(registries: Sequence[Registry[Any]], spec: str | dict[str, Any], where: str = "") -> Any:
    """Make a component of one of several kinds; see `Registry.build`.

    Args:
        registries: where its name is looked up, in this order.
        spec: its name, or a table with `name` and settings.
        where: path of the setting, for messages.
    """
    kind = registries[0].kind
    where = where or kind
    table = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = table.pop("name", None)
    if not isinstance(name, str):
        raise InputError(f"{where} needs a name; known: {', '.join(registries[0].names())}")
    if names_a_file(name):
        cls = class_from_file(name, [registry.interface for registry in registries], kind, where)
        if table.pop("source_sha256", cls.source_sha256) != cls.source_sha256:
            file = cls.source_file.rpartition(":")[0]
            raise InputError(f"{where}: {file} was changed since this was made with it; restore it or start anew")
        return from_dict(cls, table, where)
    for registry in registries:
        if name in registry.aliases:
            table = {**registry.aliases[name], **table}
            name = table.pop("name")
        if name in registry.components:
            return from_dict(registry.components[name], table, where)
    known = {known for registry in registries for known in registry.names()}
    raise InputError(f'{where} = "{name}" is not a known {kind}{nearest(name, known)}')


_installed = {"loaded": False}


def load_installed() -> None:
    """Register what installed packages offer under the entry-point group `sparsemble.components`, once a process.

    A package that fails, or whose component does not implement an interface or has a name that is taken, is left out
    with a warning that names it.
    """
    if _installed["loaded"]:
        return
    _installed["loaded"] = True  # first: a package may ask a registry while it is imported
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: (_package(entry), entry.name)):
        try:
            _register_installed(entry)
        except Exception as error:
            reason = str(error) if isinstance(error, InputError) else first_line(error)
            origin = f'component "{entry.name}" ({entry.value}) of the package {_package(entry)}'
            warnings.warn(f"the {origin} is left out: {reason}", stacklevel=3)


def _register_installed(entry: EntryPoint) -> None:
    cls = entry.load()
    registry: Any = next(
        (r for r in REGISTRIES.values() if isinstance(cls, type) and issubclass(cls, r.interface)), None
    )
    if registry is None:
        raise InputError("it must be a subclass of an interface such as sparsemble.attacks.attack.Attack")
    check_component(cls, [registry.interface], registry.kind, entry.value)
    if registry._components.get(entry.name) is cls:
        return  # its own file called `register`
    if entry.name in registry._components or entry.name in registry._aliases:
        raise InputError(f'{registry.kind} "{entry.name}" is taken by {registry.origin(entry.name)}')
    cls.name, cls.installed = entry.name, True
    registry._components[entry.name] = cls


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value.partition(".")[0]


def find_component(name: str, *registries: Registry[Any]) -> Any:
    """Return the component of a class name (`PGD`), or the function that builds that of an alias (`resnet18`)."""
    for registry in registries:
        for component in registry.components.values():
            if component.__name__ == name:
                return component
        if name in registry.aliases:
            return functools.partial(_from_alias, registry, name)
    raise AttributeError(f'"{name}" is not known{nearest(name, component_names(*registries))}')


def component_names(*registries: Registry[Any]) -> list[str]:
    """Return the names that `find_component` knows, sorted."""
    classes = [component.__name__ for registry in registries for component in registry.components.values()]
    return sorted([*classes, *(alias for registry in registries for alias in registry.aliases)])


def _from_alias(registry: Registry[Any], alias: str, **settings: Any) -> Any:
    """Build the component that an alias stands for, with some settings changed."""
    component = registry.build(alias)
    kept = {f.name: getattr(component, f.name) for f in dataclasses.fields(component) if f.init}
    if "label" in kept:
        kept["label"] = registry.aliases[alias].get("label", "")  # an automatic label follows the settings
    return type(component)(**{**kept, **settings})


def _is_automatic(component: Component) -> bool:
    """Return whether the label is the automatic one, which follows from the settings."""
    automatic: Any = dataclasses.replace(component, label="")  # type: ignore[type-var]
    return bool(automatic.label == component.label)  # type: ignore[attr-defined]


def _identity(component: Component, versions: bool) -> dict[str, Any]:
    """Return the keys of a component's table beside its settings."""
    table: dict[str, Any] = {"name": component.source_file or getattr(component, "name", type(component).__name__)}
    if component.source_file:
        table["source_sha256"] = component.source_sha256
    if versions:
        table["version"] = component.version
        if component.source_file:  # a hash covers the content of the file, not where it lies
            table["name"] = Path(component.source_file).name
    return table


def to_dict(value: Any, *, versions: bool = False) -> Any:
    """Return a dataclass, component or container as plain JSON values, every default spelled out.

    With `versions`, for hashing, each component's version is there and paths of files are left out.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        table = {f.name: to_dict(getattr(value, f.name), versions=versions) for f in dataclasses.fields(value)}
        if isinstance(value, Component):
            if "label" in table and _is_automatic(value):
                del table["label"]
            table = {**_identity(value, versions), **table}
        return {key: entry for key, entry in table.items() if entry is not None}
    if isinstance(value, tuple | list):
        return [to_dict(entry, versions=versions) for entry in value]
    if isinstance(value, dict):
        return {key: to_dict(entry, versions=versions) for key, entry in value.items()}
    return value
