"""The user's own network, made by a function in a Python file."""

import hashlib
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import nn

from sparsemble.core.config import nearest
from sparsemble.core.errors import InputError
from sparsemble.core.source_file import first_line, import_file
from sparsemble.models.architecture import Architecture, architectures


@final
@architectures.register("code")
@dataclass(frozen=True, kw_only=True)
class Code(Architecture):
    """The network that a function in a Python file returns, called without arguments.

    It must consist of the layers that `Architecture` names. The function fixes the numbers of classes and input
    channels; both must be those of the images.
    """

    factory: str
    """`file.py:function`; the path is relative to where the command runs."""
    normalises: bool = False  # type: ignore[misc] # a setting here, fixed elsewhere
    """Whether the network normalises its images itself; otherwise it is normalised by the training images."""
    source_hash: str = ""
    """sha256 of the file, filled in; stored results are computed anew when the file changes."""

    def __post_init__(self) -> None:
        file = Path(self.factory.rpartition(":")[0])
        if not file.is_file():
            return  # `build` raises the error
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        if self.source_hash not in ("", sha256):
            raise InputError(f"{file} was changed since this was made with it; bring the old file back or start anew")
        object.__setattr__(self, "source_hash", sha256)

    def build(self, in_channels: int, classes: int) -> nn.Module:
        """Import the file and call its function."""
        file, _, function = self.factory.rpartition(":")
        if not file.endswith(".py") or not function:
            raise InputError(f'factory = "{self.factory}" must name a file and a function, as in net.py:make_model')
        return call_factory(Path(file), function)


def call_factory(file: Path, function: str) -> nn.Module:
    """Import a file and return the network that a function in it returns; what the file imports must be installed."""
    module = import_file(file)
    try:
        make: Callable[[], Any] | None = getattr(module, function, None)
        if not callable(make):
            known = [name for name in vars(module) if not name.startswith("_")]
            raise InputError(f"{file} has no function {function}{nearest(function, known)}")
        model = make() if not isinstance(make, nn.Module) else make
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file}:{function} failed: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{file}:{function} must return a torch.nn.Module, got {type(model).__name__}")
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
