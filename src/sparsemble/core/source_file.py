"""The user's own files: classes named `file.py:ClassName` wherever a component is expected, and what a file runs."""

import ast
import contextlib
import dataclasses
import hashlib
import importlib.util
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from sparsemble.core.config import nearest
from sparsemble.core.errors import InputError

RESERVED = ("name", "version", "source_sha256")
"""Keys that a component's table has beside its settings."""

_folder: ContextVar[Path | None] = ContextVar("folder", default=None)
_beside: set[str] = set()
"""Names of the modules that a file of the user imported from its own folder."""
_classes: dict[tuple[Path, str, str], Any] = {}
"""Classes by file, sha256 and name, so that equal settings give equal components."""
_makers: WeakKeyDictionary[Any, tuple[Path, str]] = WeakKeyDictionary()
"""File and call that made a network."""


@contextlib.contextmanager
def files_beside(folder: Path) -> Iterator[None]:
    """Look for relative paths of source files in this folder first, then in the current directory."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def source_hash(file: Path) -> str:
    """Return the sha256 of a Python file or, where it imports files beside it, of all files that it runs.

    Imports are read from the syntax tree, so code that is imported by other means is not covered.
    """
    sources = _local_sources(file.resolve())
    digests = [hashlib.sha256(content).hexdigest() for content in sources.values()]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _local_sources(file: Path) -> dict[Path, bytes]:
    """Return the contents of a file and of the files beside it or in its package that it imports, in that order."""
    sources: dict[Path, bytes] = {}
    todo = [file]
    while todo:
        path = todo.pop(0)
        if path not in sources:
            sources[path] = path.read_bytes()
            todo += _imported_files(path, sources[path], file.parent)
    return sources


def _imported_files(file: Path, content: bytes, beside: Path) -> list[Path]:
    """Return the local files that a file imports; none if it cannot be parsed.

    Args:
        file: the file.
        content: of the file.
        beside: folder in which absolute names are looked up, before the one that holds the file's package.
    """
    try:
        nodes = list(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError):
        return []
    top = next((folder for folder in file.parents if not (folder / "__init__.py").is_file()), file.parent)
    files: dict[Path, None] = {}
    for node in nodes:
        names: list[str] = []
        folders = [beside, top]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"{module}.{alias.name}".strip(".") for alias in node.names]
            if node.level:
                folders = [file.parents[min(node.level, len(file.parents)) - 1]]
        for folder, name in itertools.product(folders, names):
            for path in itertools.accumulate(name.split("."), lambda parent, part: parent / part, initial=folder):
                found = (path.with_name(f"{path.name}.py"), path / "__init__.py")
                files.update(dict.fromkeys(each for each in found if path != folder and each.is_file()))
    return list(files)


def remember_source(made: object, file: Path, call: str) -> None:
    """Note which file and call made a network; `source_of` returns it as long as the network lives.

    Args:
        made: the network.
        file: the Python file.
        call: the name in it, with arguments if there were any.
    """
    _makers[made] = file, call


def source_of(made: object) -> tuple[Path, str] | None:
    """Return the file and the call that made a network, if one did."""
    return _makers.get(made)


def names_a_file(name: str) -> bool:
    """Return whether a component's name is of the form `file.py:ClassName`."""
    return ".py:" in name


def split_reference(reference: str) -> tuple[str, str]:
    """Split `file.py:Name` or `file.py:make(width=16)` into the path and what follows it; ("", ...) without a path."""
    path, mark, name = reference.partition(".py:")
    return (f"{path}.py", name) if mark else ("", reference)


@contextlib.contextmanager
def importing_beside(file: Path) -> Iterator[None]:
    """Let a file import its neighbours, as it may when it is run by itself; modules of other folders are forgotten."""
    folder = str(file.resolve().parent)
    for name in _beside:
        sys.modules.pop(name, None)
    _beside.clear()
    before = set(sys.modules)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)
        fresh = [(name, getattr(sys.modules[name], "__file__", None)) for name in set(sys.modules) - before]
        own = (name for name, path in fresh if path and Path(path).is_relative_to(folder))
        _beside.update(name for name in own if not name.startswith("sparsemble"))


def import_file(file: Path) -> ModuleType:
    """Execute a Python file as a module of its own; it may import files beside it and what is installed."""
    if not file.is_file():
        raise InputError(f"{file} does not exist")
    digest = hashlib.sha256(str(file.resolve()).encode() + file.read_bytes()).hexdigest()
    spec = importlib.util.spec_from_file_location(f"sparsemble_file_{digest[:16]}.{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses and type hints look their module up
    try:
        with importing_beside(file):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise InputError(f"{file} failed when it was imported: {first_line(error)}") from error
    return module


def class_from_file(reference: str, interfaces: Sequence[type], kind: str, where: str) -> Any:
    """Return a component's class from a file of the user, its `name`, `source_file` and `source_sha256` set.

    Args:
        reference: `file.py:ClassName`; a relative path is looked for beside the recipe, then in the current directory.
        interfaces: abstract classes, of which it must implement one.
        kind: what the component is, for messages.
        where: path of the setting, for messages.
    """
    path, name = split_reference(reference)
    file = _find(Path(path).expanduser())
    try:
        digest = source_hash(file) if file.is_file() else ""
        if (file, digest, name) not in _classes:
            module = import_file(file)
            cls = getattr(module, name, None)
            if not isinstance(cls, type):
                classes = [key for key, value in vars(module).items() if _is_class_of(module, value)]
                raise InputError(f"{file} has no class {name}" + (nearest(name, classes) if classes else ""))
            check_component(cls, interfaces, kind, f"{file}:{name}")
            own: Any = cls
            own.name, own.source_file, own.source_sha256 = name, f"{file}:{name}", digest
            _classes[file, digest, name] = cls
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return _classes[file, digest, name]


def check_component(cls: Any, interfaces: Sequence[type], kind: str, origin: str) -> None:
    """Check that a class from outside the package can be used as a component.

    Args:
        cls: the class.
        interfaces: abstract classes, of which it must be a subclass of one.
        kind: what the component is, for messages.
        origin: where the class is from, for messages.
    """
    if not issubclass(cls, tuple(interfaces)):
        bases = " or ".join(f"{each.__module__}.{each.__name__}" for each in interfaces)
        methods = " and ".join(sorted(getattr(interfaces[0], "__abstractmethods__", ())))
        raise InputError(f"{origin} must be a subclass of {bases} and define {methods}")
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise InputError(f"{origin} lacks the method {' and '.join(missing)}, which every {kind} must define")
    if not is_frozen_dataclass(cls):
        raise InputError(f"{origin} must be a frozen dataclass; put @dataclass(frozen=True, kw_only=True) above it")
    fields = {field.name for field in dataclasses.fields(cls)}
    if taken := fields.intersection(RESERVED):
        raise InputError(f"{origin} has a setting called {min(taken)}, which is reserved; rename it")


def is_frozen_dataclass(cls: type) -> bool:
    """Return whether the class itself, not only a base, is a frozen dataclass."""
    parameters = vars(cls).get("__dataclass_params__")
    return dataclasses.is_dataclass(cls) and bool(parameters and parameters.frozen)


def first_line(error: BaseException) -> str:
    """Return the type and the first line of an exception."""
    return f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__


def _find(path: Path) -> Path:
    """Return the absolute path of a file, beside the recipe if it is there."""
    folder = _folder.get()
    beside = folder / path if folder else path
    return (beside if beside.is_file() else path).resolve()


def _is_class_of(module: ModuleType, value: Any) -> bool:
    return isinstance(value, type) and value.__module__ == module.__name__
