"""One network, ready to run on arrays of images."""

import ctypes
import threading
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.alone import Alone
from sparsemble.runtime.dead import without_dead
from sparsemble.runtime.fused import fuse
from sparsemble.runtime.kernels.compiled import Compiled, cache_folder, lanes
from sparsemble.runtime.memory import Memory, size_of
from sparsemble.runtime.network import Network
from sparsemble.runtime.plan import DRIVER, Choice, Plan
from sparsemble.runtime.planning import Planning
from sparsemble.runtime.refused import Refused
from sparsemble.runtime.together import Together
from sparsemble.runtime.tune import tuned

Floats = NDArray[np.float32]


SLOW = "this processor has no AVX2, AVX-512 or NEON; networks run right, but one number at a time"
GUESSED_FEW = 0.6
"""Part of a vector's images that take as long one by one as together, before both were timed."""
Run = Any
"""A compiled function of (arguments, first, last)."""


@final
class _Planned:
    """A way to run a network, planned and compiled when it is first used, and memories to run it in."""

    def __init__(self, planning: Planning, choices: Mapping[int, Choice] | None, folder: Path) -> None:
        self._planning, self._choices, self._folder = planning, choices, folder
        self._ready: tuple[Plan, Compiled, Run] | None = None
        self._spare: list[Memory] = []
        self._lock = threading.Lock()
        self.seconds: float | None = None
        """What a run takes at its quickest; none before the first one."""

    def __call__(self, images: Floats) -> Floats:
        """Return logits of at most as many images as the plan takes at once."""
        with self._lock:
            if self._ready is None:
                choices = tuned(self._planning, self._folder) if self._choices is None else self._choices
                plan = self._planning.plan(choices)
                compiled = Compiled(plan.functions(), self._folder)
                kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
                self._ready = plan, compiled, kind(compiled.address(DRIVER))
            plan, _, run = self._ready
            memory = self._spare.pop() if self._spare else None
        memory = memory or Memory(plan)
        started = time.perf_counter()
        memory.load(images)
        run(memory.table_at, 0, 0)
        found = memory.answer(len(images))
        seconds = time.perf_counter() - started
        with self._lock:
            self.seconds = min(seconds, self.seconds or seconds)
            self._spare.append(memory)
        return found


@final
class Engine:
    """Runs a network on batches: as many images at once as a vector has lanes, and the rest, if few, one by one.

    Every image gets the same bits in every batch and on any number of threads.

    Args:
        network: what to run.
        choices: how to go through its products, by place, for images side by side, guessed where missing; none: what
            is the fastest here.
        alone: the same for an image alone; tiles have one row.
        folder: where compiled code is kept; the user's cache unless given.
        max_memory: bytes that one run may take; where images side by side take more, they are run one by one.

    Raises:
        Refused: even one image takes more.
    """

    def __init__(
        self,
        network: Network,
        *,
        choices: Mapping[int, Choice] | None = None,
        alone: Mapping[int, Choice] | None = None,
        folder: Path | None = None,
        max_memory: int = 2**30,
    ) -> None:
        self.network = network
        self.lanes = lanes()
        if self.lanes == 1:
            warnings.warn(SLOW, stacklevel=2)
        fused, folder = without_dead(fuse(network)), folder or cache_folder()
        together, one_by_one = Together(fused, self.lanes), Alone(fused, self.lanes)
        self._together = _Planned(together, choices, folder)
        self._alone = _Planned(one_by_one, alone, folder)
        # Offsets in records have 32 bits: beyond that a kernel would read elsewhere.
        most = min(max_memory, 2**32 - 1)
        one = size_of(fused, one_by_one.buffers, one_by_one.lives)
        if one > most:
            raise Refused(f"a run of one image takes {one} bytes, more than max_memory = {most}")
        self._fits = size_of(fused, together.buffers) <= most

    def run(self, images: Floats, threads: int = 1) -> Floats:
        """Return logits (B, K) of images (B, C, H, W)."""
        images = np.ascontiguousarray(images, np.float32)
        out = np.empty((len(images), self.network.classes), np.float32)

        def chunk(part: slice) -> None:
            run = self._alone if part.stop - part.start == 1 else self._together
            out[part] = run(images[part])

        parts = self._parts(len(images))
        if threads == 1 or len(parts) < 2:
            for part in parts:
                chunk(part)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(chunk, parts))
        return out

    @property
    def few(self) -> int:
        """How many images at most are run one by one: as long as that takes less than a run of them together."""
        if not self._fits:
            return self.lanes
        one, many = self._alone.seconds, self._together.seconds
        found = GUESSED_FEW * self.lanes if one is None or many is None else many / one
        return max(1, min(int(found), self.lanes - 1))

    def _parts(self, count: int) -> list[slice]:
        """Return which images run together."""
        parts = [slice(start, min(start + self.lanes, count)) for start in range(0, count, self.lanes)]
        found: list[slice] = []
        few = self.few
        for part in parts:
            alone = part.stop - part.start <= few
            found += [slice(i, i + 1) for i in range(part.start, part.stop)] if alone else [part]
        return found
