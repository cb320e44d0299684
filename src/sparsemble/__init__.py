"""sparsemble: one image classifier becomes a robust, compact ensemble of sparse sub-models.

`import sparsemble as sp` imports nothing else; what needs torch (the extra `train`) is imported on first use.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsemble import attacks, data, models, pruning, runtime
    from sparsemble.api import (
        L1,
        L2,
        Linf,
        calibrate,
        evaluate,
        export,
        load,
        prune,
        select,
        train,
        train_ensemble,
    )
    from sparsemble.api.namespaces import combiners, losses, scores, selection, stopping
    from sparsemble.pipeline.run_named import run

__version__ = "0.1.0"

FUNCTIONS = (
    "L1",
    "L2",
    "Linf",
    "calibrate",
    "evaluate",
    "export",
    "load",
    "prune",
    "select",
    "train",
    "train_ensemble",
)
WHOLE = {"run": "sparsemble.pipeline.run_named"}
"""Functions above the API, by the module that has them."""
COMPONENTS = ("combiners", "losses", "scores", "selection", "stopping")
ROOMS = ("attacks", "data", "models", "pruning", "runtime")

__all__ = [
    "L1",
    "L2",
    "Linf",
    "__version__",
    "attacks",
    "calibrate",
    "combiners",
    "data",
    "evaluate",
    "export",
    "load",
    "losses",
    "models",
    "prune",
    "pruning",
    "run",
    "runtime",
    "scores",
    "select",
    "selection",
    "stopping",
    "train",
    "train_ensemble",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in ROOMS:
        return importlib.import_module(f"sparsemble.{name}")
    if name in FUNCTIONS:
        return getattr(importlib.import_module("sparsemble.api"), name)
    if name in WHOLE:
        return getattr(importlib.import_module(WHOLE[name]), name)
    if name in COMPONENTS:
        return getattr(importlib.import_module("sparsemble.api.namespaces"), name)
    raise AttributeError(f"module 'sparsemble' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """The module; `sparsemble.export` stays the public function when the room of that name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "export":
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
