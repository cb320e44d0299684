"""Run a sparse ensemble fast on a CPU, with the same predictions."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsemble.runtime.errors import RuntimeInputError

if TYPE_CHECKING:
    from sparsemble.runtime.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor", "RuntimeInputError", "load"]


def load(path: str | Path, *, threads: int = 1, max_memory: int = 2**30) -> "Predictor":
    """Read a packed ensemble.

    Args:
        path: a `.sparsemble` file; nothing in it is trusted.
        threads: chunks of a batch that run side by side, >= 1.
        max_memory: bytes that the activations of one image, and one run of a member, may take.

    Returns:
        The ensemble, ready to predict; it is compiled for this processor on first use.

    Raises:
        RuntimeInputError: the first fault of the file, or an invalid number of threads, in one sentence.
    """
    from sparsemble.runtime.format.packed import load as load_ensemble
    from sparsemble.runtime.predictor import Predictor

    return Predictor(load_ensemble(Path(path), max_memory=max_memory), threads=threads, max_memory=max_memory)


def __getattr__(name: str) -> Any:
    """Import the predictor, and the compiler with it, on first use: data sets need the reading of images only."""
    if name in ("Prediction", "Predictor"):
        return getattr(importlib.import_module("sparsemble.runtime.predictor"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
