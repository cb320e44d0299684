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

from sparsemble.runtime.compiler.autotune import tune_configs
from sparsemble.runtime.compiler.batched import BatchPlanner
from sparsemble.runtime.compiler.dead_channels import remove_dead_channels
from sparsemble.runtime.compiler.execution_plan import DRIVER, ExecutionPlan, KernelConfig
from sparsemble.runtime.compiler.fused import fuse
from sparsemble.runtime.compiler.planner import Planner
from sparsemble.runtime.compiler.single_image import SingleImagePlanner
from sparsemble.runtime.compiler.workspace import Workspace, workspace_bytes
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.kernels.jit import JITKernels, cache_folder, lanes
from sparsemble.runtime.network import Network
from sparsemble.runtime.thread_pool import THREAD_POOL

Floats = NDArray[np.float32]


SLOW = "this processor has no AVX2, AVX-512 or NEON; networks run right, but one number at a time"
GUESSED_FEW = 0.6
"""Part of a vector's images that take as long one by one as together, before both were timed."""
WORTH_SPLITTING = 1e-4
"""Seconds that a run must take on one thread for several to be tried."""
SETTLED = 12
"""Runs on one thread before several are tried: the first ones are slow."""
TRIALS, MEMORABLE = 12, 4
"""Runs on several threads before they are judged; about how many the average is of."""
AGAIN = 1000
"""Runs on one thread after which several get another trial: what kept them busy may be over."""
Run = Any
"""A compiled function of (arguments, first, last)."""


@final
class _CompiledPlan:
    """A way to run a network, planned and compiled when it is first used, and memories to run it in."""

    def __init__(
        self, planning: Planner, choices: Mapping[int, KernelConfig] | None, folder: Path, most_threads: int
    ) -> None:
        self._planning, self._choices, self._folder = planning, choices, folder
        self.most_threads = most_threads
        """How many threads may share a run, as each takes memory."""
        self._ready: tuple[JITKernels, Run] | None = None
        self._plans: dict[int, ExecutionPlan] = {}
        self._spare: dict[int, list[Workspace]] = {}
        self._lock = threading.Lock()
        self.seconds: float | None = None
        """What a run takes at its quickest on one thread; none before the first one."""
        self._runs = 0
        """On one thread."""
        self._split: dict[int, tuple[int, float]] = {}
        """By how many threads: how often, and what a run takes on average, recent ones counting most."""
        self._declined = 0
        """Runs that several threads might have shared, and did not."""

    def __call__(self, images: Floats, threads: int = 1) -> Floats:
        """Return logits of at most as many images as the plan takes at once."""
        run, memory = self._taken(threads)
        started = time.perf_counter()
        memory.load(images)
        if threads == 1:
            run(memory.tables[0], 0, 0)
        elif not self._shared(run, memory, threads):
            return self(images)
        found = memory.answer(len(images))
        seconds = time.perf_counter() - started
        with self._lock:
            self._spare[threads].append(memory)
            if threads == 1:
                self.seconds, self._runs = min(seconds, self.seconds or seconds), self._runs + 1
            else:
                count, mean = self._split.get(threads, (0, seconds))
                self._split[threads] = count + 1, mean + (seconds - mean) / min(count + 1, MEMORABLE)
        return found

    def _shared(self, run: Run, memory: Workspace, threads: int) -> bool:
        """Run on several threads; false where they take no more work, as when the interpreter is ending."""
        try:
            THREAD_POOL.run(threads, lambda thread: run(memory.tables[thread], memory.meeting, threads))
        except BaseException as error:
            memory.let_go()  # a thread that has begun would wait without end for one that never will
            if isinstance(error, RuntimeError):
                return False
            raise
        return True

    def worth_splitting(self, threads: int) -> bool:
        """Return whether several threads were quicker than one so far, or have to show it, anew every so many runs."""
        if self.seconds is None or self.seconds < WORTH_SPLITTING or self._runs < SETTLED:
            return False
        count, mean = self._split.get(threads, (0, 0.0))
        if count < TRIALS or mean < self.seconds:
            return True
        self._declined += 1
        if self._declined % AGAIN == 0:
            del self._split[threads]
        return False

    def _taken(self, threads: int) -> tuple[Run, Workspace]:
        """Return what runs the network, and memory for so many threads that nobody uses."""
        with self._lock:
            if self._ready is None:
                if self._choices is None:
                    self._choices = tune_configs(self._planning, self._folder)
                self._plans[1] = self._planning.plan(self._choices)
                compiled = JITKernels(self._plans[1].functions(), self._folder)
                kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
                self._ready = compiled, kind(compiled.address(DRIVER))
            if threads not in self._plans:
                assert self._choices is not None
                self._plans[threads] = self._planning.plan(self._choices, threads)
            spare = self._spare.setdefault(threads, [])
            memory = spare.pop() if spare else None
            plan, run = self._plans[threads], self._ready[1]
        return run, memory or Workspace(plan)


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
        RuntimeInputError: even one image takes more.
    """

    def __init__(
        self,
        network: Network,
        *,
        choices: Mapping[int, KernelConfig] | None = None,
        alone: Mapping[int, KernelConfig] | None = None,
        folder: Path | None = None,
        max_memory: int = 2**30,
    ) -> None:
        self.network = network
        self.lanes = lanes()
        if self.lanes == 1:
            warnings.warn(SLOW, stacklevel=2)
        fused, folder = remove_dead_channels(fuse(network)), folder or cache_folder()
        together, one_by_one = BatchPlanner(fused, self.lanes), SingleImagePlanner(fused, self.lanes)
        # Offsets in records have 32 bits: beyond that a kernel would read elsewhere.
        most = min(max_memory, 2**32 - 1)
        one = workspace_bytes(fused, one_by_one.buffers, one_by_one.lives)
        if one > most:
            raise RuntimeInputError(f"a run of one image takes {one} bytes, more than max_memory = {most}")
        many = workspace_bytes(fused, together.buffers)
        self._fits = many <= most
        self._together = _CompiledPlan(together, choices, folder, most // many)
        self._alone = _CompiledPlan(one_by_one, alone, folder, most // one)

    def run(self, images: Floats, threads: int = 1) -> Floats:
        """Return logits (B, K) of images (B, C, H, W)."""
        images = np.ascontiguousarray(images, np.float32)
        out = np.empty((len(images), self.network.classes), np.float32)

        def chunk(part: slice) -> None:
            run = self._alone if part.stop - part.start == 1 else self._together
            out[part] = run(images[part])

        parts = self._parts(len(images))
        if len(parts) == 1 and threads > 1:
            self._split(images, out, threads)
        elif threads == 1 or len(parts) < 2:
            for part in parts:
                chunk(part)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(chunk, parts))
        return out

    def _split(self, images: Floats, out: Floats, threads: int) -> None:
        """Run what is run at once on several threads, if that is quicker and no other such run is under way."""
        run = self._alone if len(images) == 1 else self._together
        count = min(threads, THREAD_POOL.most, run.most_threads)
        if count < 2 or not run.worth_splitting(count):
            out[:] = run(images)
            return
        with THREAD_POOL.claimed() as claimed:
            out[:] = run(images, count if claimed else 1)

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
