"""The time of a network's first prediction, which includes tuning and compiling unless both are cached."""

import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from sparsemble.core.results import FirstUse
from sparsemble.runtime.engine import Engine
from sparsemble.runtime.kernels.jit import lanes
from sparsemble.runtime.network import Network


def first_use(network: Network) -> list[FirstUse]:
    """Time first predictions on one thread: of a full vector of images, of one image, and of one more than a vector.

    Args:
        network: what is run, each time in a new engine; the user's cache is neither read nor written.

    Returns:
        For each number of images: seconds with an empty cache folder, and with the folder that this run filled.
    """
    rng, times = np.random.default_rng(0), []
    for batch in dict.fromkeys((lanes(), 1, lanes() + 1)):
        x = rng.random((batch, *network.image), dtype=np.float32)
        with tempfile.TemporaryDirectory() as folder:
            empty, filled = (_seconds(network, x, Path(folder)) for _ in range(2))
        times.append(FirstUse(batch=batch, empty_cache_s=empty, filled_cache_s=filled))
    return times


def _seconds(network: Network, x: np.ndarray, folder: Path) -> float:
    started = perf_counter()
    Engine(network, folder=folder).run(x)
    return perf_counter() - started
