"""Run one network on arrays of images."""

import threading
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, final

import numpy as np

from sparsemble.runtime.cache_folder import cache_folder
from sparsemble.runtime.compiler.autotune import tune_configs
from sparsemble.runtime.compiler.batched import BatchPlanner
from sparsemble.runtime.compiler.conversions import add_conversions
from sparsemble.runtime.compiler.dead_channels import remove_dead_channels
from sparsemble.runtime.compiler.execution_plan import DRIVER, ExecutionPlan, KernelConfig
from sparsemble.runtime.compiler.fused import fuse
from sparsemble.runtime.compiler.planner import Planner
from sparsemble.runtime.compiler.single_image import SingleImagePlanner
from sparsemble.runtime.compiler.workspace import Workspace, workspace_bytes
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.kernels.jit import JITKernels, lanes
from sparsemble.runtime.network import Floats, Network
from sparsemble.runtime.thread_pool import THREAD_POOL

SCALAR_WARNING = (
    "this processor has no AVX2, AVX-512 or NEON; networks compute the same logits, but one number at a time"
)
GUESSED_UNBATCHED = 0.6
"""Fraction of a vector's images that take as long one by one as together, before both were timed."""
MIN_SHARED_SECONDS = 1e-4
"""A run is shared among threads only if it takes longer than this on one thread."""
WARMUP_RUNS = 12
"""Runs on one thread before several threads are tried: the first runs are slow."""
TRIALS, AVERAGED_RUNS = 12, 4
"""Shared runs before sharing is kept or dropped; runs in the moving average of their time."""
RETRY_AFTER = 1000
"""Runs on one thread after which sharing is tried again: other work may have ended."""
CompiledFunction = Any
"""A compiled function of (arguments, first, last)."""


@final
class CompiledPlan:
    """A plan of a network, tuned (unless configurations are given) and compiled on first use, and its workspaces.

    At most `max_threads` may share a run, as each takes memory.
    """

    def __init__(
        self, planner: Planner, configs: Mapping[int, KernelConfig] | None, folder: Path, max_threads: int
    ) -> None:
        self._planner, self._configs, self._folder, self.max_threads = planner, configs, folder, max_threads
        self._compiled: tuple[JITKernels, CompiledFunction] | None = None
        self._plans: dict[int, ExecutionPlan] = {}
        """By number of threads."""
        self._free: dict[int, list[Workspace]] = {}
        """Workspaces that are not in use, by number of threads."""
        self._lock = threading.Lock()
        self.seconds: float | None = None
        """Shortest time of a run on one thread; None before the first one."""
        self.single_thread_runs = 0
        self.shared_runs: dict[int, tuple[int, float]] = {}
        """By number of threads: number of runs, and moving average of their seconds."""
        self._declined = 0
        """Runs on one thread that several might have shared."""

    def __call__(self, images: Floats, threads: int = 1) -> Floats:
        """Return the logits of at most as many images as the plan has lanes."""
        run, workspace = self._acquire(threads)
        started = time.perf_counter()
        workspace.load(images)
        if threads == 1:
            run(workspace.tables[0], 0, 0)
        elif not self._run_shared(run, workspace, threads):
            return self(images)
        logits = workspace.logits(len(images))
        seconds = time.perf_counter() - started
        with self._lock:
            self._free[threads].append(workspace)
            if threads == 1:
                self.seconds = min(seconds, self.seconds or seconds)
                self.single_thread_runs += 1
            else:
                count, mean = self.shared_runs.get(threads, (0, seconds))
                self.shared_runs[threads] = count + 1, mean + (seconds - mean) / min(count + 1, AVERAGED_RUNS)
        return logits

    def _run_shared(self, run: CompiledFunction, workspace: Workspace, threads: int) -> bool:
        """Run on several threads; return False if they accept no work, as while the interpreter shuts down."""
        try:
            THREAD_POOL.run(threads, lambda thread: run(workspace.tables[thread], workspace.barrier, threads))
        except BaseException as error:
            workspace.release()  # a thread that has begun would wait for the others for ever
            if isinstance(error, RuntimeError):
                return False
            raise
        return True

    def worth_sharing(self, threads: int) -> bool:
        """Return whether a run on several threads was faster than on one, or is to be tried."""
        if self.seconds is None or self.seconds < MIN_SHARED_SECONDS or self.single_thread_runs < WARMUP_RUNS:
            return False
        count, mean = self.shared_runs.get(threads, (0, 0.0))
        if count < TRIALS or mean < self.seconds:
            return True
        self._declined += 1
        if self._declined % RETRY_AFTER == 0:
            del self.shared_runs[threads]
        return False

    def _acquire(self, threads: int) -> tuple[CompiledFunction, Workspace]:
        """Return the compiled function, and a workspace for that many threads."""
        with self._lock:
            if self._compiled is None:
                if self._configs is None:
                    self._configs = tune_configs(self._planner, self._folder)
                self._plans[1] = self._planner.plan(self._configs)
                library = JITKernels(self._plans[1].functions(), self._folder)
                self._compiled = library, library.function(DRIVER)
            if threads not in self._plans:
                assert self._configs is not None
                self._plans[threads] = self._planner.plan(self._configs, threads)
            free = self._free.setdefault(threads, [])
            workspace = free.pop() if free else None
            plan, run = self._plans[threads], self._compiled[1]
        return run, workspace or Workspace(plan)


@final
class Engine:
    """Runs a network on batches: as many images at once as a vector has lanes, and a small remainder one by one.

    The logits of an image are equal bit for bit in every batch and on any number of threads.

    Args:
        network: what is run.
        batch_configs: how convolutions are computed for images side by side, by the operation's index, guessed where
            missing; None: the fastest on this machine.
        single_configs: the same for one image; tiles have one row.
        folder: where compiled code is cached; the user's cache folder unless given.
        max_memory: bytes that a run may take; where images side by side take more, they are run one by one.

    Raises:
        RuntimeInputError: a run of one image takes more than `max_memory`.
    """

    def __init__(
        self,
        network: Network,
        *,
        batch_configs: Mapping[int, KernelConfig] | None = None,
        single_configs: Mapping[int, KernelConfig] | None = None,
        folder: Path | None = None,
        max_memory: int = 2**30,
    ) -> None:
        self.network = network
        self.lanes = lanes()
        if self.lanes == 1:
            warnings.warn(SCALAR_WARNING, stacklevel=2)
        fused, folder = add_conversions(remove_dead_channels(fuse(network))), folder or cache_folder()
        batch_planner, single_planner = BatchPlanner(fused, self.lanes), SingleImagePlanner(fused, self.lanes)
        # Offsets in records have 32 bits: with more memory a kernel would read elsewhere.
        limit = min(max_memory, 2**32 - 1)
        single_bytes = workspace_bytes(fused, single_planner.layout)
        if single_bytes > limit:
            raise RuntimeInputError(f"a run of one image takes {single_bytes} bytes, more than max_memory = {limit}")
        batch_bytes = workspace_bytes(fused, batch_planner.layout)
        self._batch_fits = batch_bytes <= limit
        self.batch_plan = CompiledPlan(batch_planner, batch_configs, folder, limit // batch_bytes)
        self.single_plan = CompiledPlan(single_planner, single_configs, folder, limit // single_bytes)

    def run(self, images: Floats, threads: int = 1) -> Floats:
        """Return logits.

        Args:
            images: (B, C, H, W) in [0, 1].
            threads: >= 1; they run chunks of the batch side by side, or share a run if there is only one.

        Returns:
            (B, K)
        """
        images = np.ascontiguousarray(images, np.float32)
        logits = np.empty((len(images), self.network.classes), np.float32)

        def run_chunk(chunk: slice) -> None:
            plan = self.single_plan if chunk.stop - chunk.start == 1 else self.batch_plan
            logits[chunk] = plan(images[chunk])

        chunks = self.chunks(len(images))
        if len(chunks) == 1 and threads > 1:
            self._run_shared(images, logits, threads)
        elif threads == 1 or len(chunks) < 2:
            for chunk in chunks:
                run_chunk(chunk)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(run_chunk, chunks))
        return logits

    def _run_shared(self, images: Floats, logits: Floats, threads: int) -> None:
        """Run one chunk on several threads, if that is faster and no other such run is in progress."""
        plan = self.single_plan if len(images) == 1 else self.batch_plan
        count = min(threads, THREAD_POOL.size, plan.max_threads)
        if count < 2 or not plan.worth_sharing(count):
            logits[:] = plan(images)
            return
        with THREAD_POOL.claimed() as claimed:
            logits[:] = plan(images, count if claimed else 1)

    @property
    def max_unbatched(self) -> int:
        """The most images that are run one by one, because that takes less time than running them together."""
        if not self._batch_fits:
            return self.lanes
        single, batch = self.single_plan.seconds, self.batch_plan.seconds
        count = GUESSED_UNBATCHED * self.lanes if single is None or batch is None else batch / single
        return max(1, min(int(count), self.lanes - 1))

    def chunks(self, count: int) -> list[slice]:
        """Return how a batch of `count` images is divided into runs."""
        chunks: list[slice] = []
        max_unbatched = self.max_unbatched
        for start in range(0, count, self.lanes):
            chunk = slice(start, min(start + self.lanes, count))
            one_by_one = chunk.stop - chunk.start <= max_unbatched
            chunks += [slice(i, i + 1) for i in range(chunk.start, chunk.stop)] if one_by_one else [chunk]
        return chunks
