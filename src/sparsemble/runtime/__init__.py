"""Run a sparse ensemble fast on a CPU, with the same predictions."""

from pathlib import Path

from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format.packed import load as load_ensemble
from sparsemble.runtime.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor", "RuntimeInputError", "load"]


def load(path: str | Path, *, threads: int = 1, max_memory: int = 2**30) -> Predictor:
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
    return Predictor(load_ensemble(Path(path), max_memory=max_memory), threads=threads, max_memory=max_memory)
