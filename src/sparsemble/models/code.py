"""The user's own network, made by a function in a Python file."""

import ast
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import nn

from sparsemble.core.config import nearest
from sparsemble.core.errors import InputError
from sparsemble.core.source_file import (
    first_line,
    import_file,
    importing_beside,
    remember_source,
    source_hash,
    split_reference,
)
from sparsemble.models.adapted import NumpyFunction
from sparsemble.models.architecture import Architecture, architectures

IMAGES = ("x", "images", "image", "batch", "inputs", "input", "array")
"""Names of the parameter of a function on arrays; a function with another parameter makes a network and needs it."""


@final
@architectures.register("code")
@dataclass(frozen=True, kw_only=True)
class Code(Architecture):
    """The network that a function or class in a Python file makes.

    It must consist of the layers that `Architecture` names. The function fixes the numbers of classes and input
    channels; both must be those of the images.
    """

    factory: str
    """`file.py:function` or `file.py:function(width=16)`; the path is relative to where the command runs."""
    normalises: bool = False  # type: ignore[misc] # a setting here, fixed elsewhere
    """Whether the network normalises its images itself; otherwise it is normalised by the training images."""
    source_hash: str = ""
    """sha256 of the file and the files beside it that it imports, filled in; stored results are computed anew when one
    of them changes."""

    def __post_init__(self) -> None:
        file = Path(split_reference(self.factory)[0])
        if not file.is_file():
            return  # `build` raises the error
        sha256 = source_hash(file)
        if self.source_hash not in ("", sha256):
            raise InputError(f"{file} was changed since this was made with it; bring the old file back or start anew")
        object.__setattr__(self, "source_hash", sha256)

    def build(self, in_channels: int, classes: int) -> nn.Module:
        """Import the file and call its function."""
        file, call = split_reference(self.factory)
        if not file or not call:
            raise InputError(f'factory = "{self.factory}" must name a file and a function, as in net.py:make_model')
        model = call_factory(Path(file), call)
        if isinstance(model, NumpyFunction):
            raise InputError(f"{self.factory} is a function on arrays; training and pruning need a torch.nn.Module")
        return model


def call_factory(file: Path, call: str) -> nn.Module:
    """Import a file and return the network that a name in it stands for.

    Args:
        file: a Python file, which may import its neighbours.
        call: a module, a function that returns one, a class of modules, with arguments if it needs any, as in
            `make(width=16)`; or a function of images (`x`, `images` or `batch`) as a numpy array.
    """
    model = _made(file, call)
    remember_source(model, file, call)
    return model


def _made(file: Path, call: str) -> nn.Module:
    name, args, kwargs = _parse_call(file, call)
    module = import_file(file)
    made: Any = getattr(module, name, None)
    if not callable(made):
        known = [each for each in vars(module) if not each.startswith("_")]
        raise InputError(f"{file} has no function {name}{nearest(name, known)}")
    if isinstance(made, nn.Module):
        return made
    missing = _missing_arguments(made, args, kwargs)
    if missing and not isinstance(made, type) and len(missing) == 1 and missing[0] in IMAGES and not (args or kwargs):
        return NumpyFunction(made)
    if missing:
        raise InputError(
            f"{file}:{name} needs the argument{'s' * (len(missing) > 1)} {', '.join(missing)}; write it as in "
            f"{file}:{name}({missing[0]}=...)"
        )
    try:
        with importing_beside(file):
            model = made(*args, **kwargs)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{file}:{call} failed: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{file}:{call} must return a torch.nn.Module, got {type(model).__name__}")
    return model


def _parse_call(file: Path, call: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Read `make` or `make(width=16)`; arguments are numbers, strings, lists and the like."""
    try:
        tree = ast.parse(call, mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, [], {}
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
            raise ValueError
        named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in tree.keywords if keyword.arg}
        return tree.func.id, [ast.literal_eval(value) for value in tree.args], named
    except (SyntaxError, ValueError):
        raise InputError(
            f"{file}:{call} must end in a name, with plain values as arguments if it needs any, as in "
            f"{file}:make(width=16)"
        ) from None


def _missing_arguments(made: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> list[str]:
    """Return the parameters that a call needs beyond these arguments; none where they cannot be known."""
    try:
        bound = inspect.signature(made)
        given = set(bound.bind_partial(*args, **kwargs).arguments)
    except (ValueError, TypeError):
        return []
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    open_ = (each for each in bound.parameters.values() if each.default is each.empty and each.kind not in kinds)
    return [each.name for each in open_ if each.name not in given]


def from_package(package: str, make: Callable[[Any], Any]) -> nn.Module:
    """Return a network that a package makes; what the package refuses is bad input.

    Args:
        package: name of the package.
        make: from the imported package to the network.
    """
    module = import_package(package)
    try:
        model = make(module)
    except Exception as error:
        raise InputError(f"{package} did not make the network ({first_line(error)})") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{package} made a {type(model).__name__}, not a torch.nn.Module")
    return model


def import_package(package: str) -> Any:
    """Import a package of networks."""
    try:
        return importlib.import_module(package)
    except Exception as error:
        # A partially imported package would raise another error the next time.
        sys.modules.pop(package, None)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f'model "{package}" needs the package {package}, which does not import here ({reason}); install it: '
            f"pip install {package}"
        ) from error
