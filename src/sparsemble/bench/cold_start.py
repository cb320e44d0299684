"""How long a network's first answer takes: ways are measured and compiled before it, unless a folder holds them."""

import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from sparsemble.core.results import FirstUse
from sparsemble.runtime.engine import Engine
from sparsemble.runtime.kernels.jit import lanes
from sparsemble.runtime.network import Network


def first_use(network: Network) -> list[FirstUse]:
    """Time first answers on one thread: of images side by side, of one alone, and of a batch that needs both ways.

    Args:
        network: what to run; each time in a new engine, and the user's cache is neither read nor written.

    Returns:
        By number of images: seconds with an empty cache folder, and with the folder that this left.
    """
    rng, found = np.random.default_rng(0), []
    for batch in dict.fromkeys((lanes(), 1, lanes() + 1)):
        x = rng.random((batch, *network.image), dtype=np.float32)
        with tempfile.TemporaryDirectory() as folder:
            empty, filled = (_seconds(network, x, Path(folder)) for _ in range(2))
        found.append(FirstUse(batch=batch, empty_cache_s=empty, filled_cache_s=filled))
    return found


def _seconds(network: Network, x: np.ndarray, folder: Path) -> float:
    started = perf_counter()
    Engine(network, folder=folder).run(x)
    return perf_counter() - started
