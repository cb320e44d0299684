"""Strict reading of TOML into frozen dataclasses; errors name the path of the setting and the nearest valid name."""

import codecs
import copy
import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from sparsemble.core.errors import InputError

D = TypeVar("D")

RENAMED: dict[str, tuple[str, ...]] = {
    # settings
    "attack_team": ("attack_ensemble",),
    "average": ("ema",),
    "clip": ("max_grad_norm",),
    "combine": ("combiner",),
    "computing": ("precision",),
    "decay": ("lr_schedule", "betas"),
    "dynamic": ("stopping",),
    "fall": ("max_drop",),
    "gentler": ("backoff",),
    "glance": ("probe_steps",),
    "judged": ("use_deployed_logits",),
    "objective": ("loss",),
    "outputs": ("size",),
    "precision": ("dtype",),
    "probe_every": ("eval_every",),
    "rate": ("learning_rate",),
    "reach": ("max_distance", "radius"),
    "share": ("fold",),
    "shares": ("folds",),
    "stop": ("rule",),
    "team_size": ("members",),
    "toll": ("revisit_penalty",),
    "tries": ("max_rollbacks",),
    "turned": ("misled_weight",),
    "walks": ("restarts",),
    "warm_up": ("warmup",),
    # components and stages
    "adopt": ("load_parent",),
    "hard_label": ("rays", "hop_skip_jump"),
    "madry": ("pgd_at",),
    "natural": ("standard",),
    "printed_diversity": ("literal_diversity",),
    "through": ("surrogate_attack",),
    "weight_perturbation": ("awp",),
    "whole": ("full_ensemble",),
    # rows of a run's table, and kinds of components
    "rate decay": ("lr schedule",),
    "team attack": ("ensemble attack",),
    "team_dynamic": ("ensemble_dynamic",),
    "team_static": ("ensemble_static",),
}
"""Former names and what they are called now; each counts only where its new name is one of those that are known."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message that refuses a name: its present name, the nearest known one, or all of them."""
    names = sorted(known)
    if current := [new for new in RENAMED.get(name, ()) if new in names]:
        return f"; {name} is now called {' and '.join(current)}"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else f"; known: {', '.join(names)}"


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Parse TOML."""
    try:
        table: dict[str, Any] = tomllib.loads(text)
        return table
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source} is not valid TOML: {error}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file."""
    try:
        return parse_toml(read_text(path), str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read as a TOML file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as a TOML file: {error}; save it as UTF-8") from error


def read_text(path: Path) -> str:
    """Return a text that a person may have saved: UTF-8 with or without a byte-order mark, or UTF-16 with one."""
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def override(table: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Return a copy of the table with each `key.path=value` applied; a value that is not TOML counts as a string."""
    result: dict[str, Any] = copy.deepcopy(table)
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not equals or not all(keys):
            raise InputError(f'--set "{setting}" must have the form key=value, as in --set train.epochs=5')
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        inner = result
        for key in keys[:-1]:
            step = inner.setdefault(key, {})
            if isinstance(step, str):  # a component given by its name alone
                step = inner[key] = {"name": step}
            if not isinstance(step, dict):
                raise InputError(f'--set "{setting}": {key} is {step!r}, not a table')
            inner = step
        inner[keys[-1]] = value
    return result


def from_dict(cls: type[D], table: Any, where: str = "") -> D:
    """Make a frozen dataclass from a table whose values fit its type hints; `where` is its path, for messages."""
    if not isinstance(table, Mapping):
        raise InputError(f"{where or cls.__name__} must be a table, got {table!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls)) if f.init}
    for key in table:
        if key not in fields:
            raise InputError(f"{_join(where, key)} is not a known setting{nearest(key, fields)}")
    values = {key: _value(hints[key], value, _join(where, key)) for key, value in table.items()}
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if name not in values and required:
            raise InputError(f"{_join(where, name)} is missing")
    try:
        return cls(**values)
    except InputError as error:
        message = str(error)
        raise error if not where or message.startswith(where) else InputError(f"{where}: {message}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    """Return a value of a table, converted to its type hint."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise InputError(f"{where} = {value!r} must be one of {', '.join(map(repr, args))}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise InputError(f"{where} = {value!r} must be a list")
        return origin(_value(args[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{where} = {value!r} must be a table")
        return {key: _value(args[1], entry, _join(where, key)) for key, entry in value.items()}
    return value if hint is Any else _object(hint, value, where)


def _object(hint: Any, value: Any, where: str) -> Any:
    """Return a component, a dataclass or a scalar."""
    from sparsemble.core.registry import REGISTRIES

    if hint in REGISTRIES:
        if not isinstance(value, str | Mapping):
            raise InputError(f"{where} = {value!r} must be a name or a table with a name")
        return REGISTRIES[hint].build(typing.cast(Any, value), where)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(Any, hint), value, where)
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float:
        if isinstance(value, str):
            try:
                return float(Fraction(value.replace(" ", "")))
            except (ValueError, ZeroDivisionError, OverflowError):
                raise InputError(f'{where} = "{value}" is not a number or a fraction such as "8/255"') from None
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                raise InputError(f"{where} is a number too large to compute with") from None
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(value, hint):
        return value
    expected = {float: "a number", int: "a whole number", str: "a string in quotes", bool: "true or false"}
    raise InputError(f"{where} = {value!r} must be {expected.get(hint, hint.__name__)}")


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
