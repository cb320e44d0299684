"""One network, ready to run on arrays of images."""

import ctypes
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.fused import fuse
from sparsemble.runtime.kernels.compiled import Compiled, cache_folder, lanes
from sparsemble.runtime.memory import Memory
from sparsemble.runtime.network import Network
from sparsemble.runtime.plan import DRIVER, Choice, plan

Floats = NDArray[np.float32]


@final
class Engine:
    """Runs a network on batches, as many images at once as a vector has lanes.

    Args:
        network: what to run.
        choices: how to go through its products, by place; guessed where missing.
        folder: where compiled code is kept; the user's cache unless given.
    """

    def __init__(
        self, network: Network, *, choices: Mapping[int, Choice] | None = None, folder: Path | None = None
    ) -> None:
        self.network = network
        self.lanes = lanes()
        self.plan = plan(fuse(network), self.lanes, choices)
        self._compiled = Compiled(self.plan.functions(), folder or cache_folder())
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        self._run = kind(self._compiled.address(DRIVER))
        self._spare: list[Memory] = []
        self._lock = threading.Lock()

    def run(self, images: Floats, threads: int = 1) -> Floats:
        """Return logits (B, K) of images (B, C, H, W); the same ones for any number of threads."""
        images = np.ascontiguousarray(images, np.float32)
        starts = range(0, len(images), self.lanes)
        out = np.empty((len(images), self.network.classes), np.float32)

        def chunk(start: int) -> None:
            part = images[start : start + self.lanes]
            memory = self._take()
            memory.load(part)
            self._run(memory.table.ctypes.data, 0, 0)
            out[start : start + len(part)] = memory.answer(len(part))
            with self._lock:
                self._spare.append(memory)

        if threads == 1 or len(starts) < 2:
            for start in starts:
                chunk(start)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(chunk, starts))
        return out

    def _take(self) -> Memory:
        with self._lock:
            if self._spare:
                return self._spare.pop()
        return Memory(self.plan)
