"""Choose the fastest configuration of every convolution on this machine: measured once, then kept on disk."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from sparsemble.runtime.compiler.execution_plan import ExecutionPlan, KernelConfig, PlanStep
from sparsemble.runtime.compiler.fused import ConvOp, FusedGraph
from sparsemble.runtime.compiler.planner import Planner
from sparsemble.runtime.compiler.workspace import Workspace
from sparsemble.runtime.kernels.integer_conv import IntegerConv
from sparsemble.runtime.kernels.jit import JITKernels, code_digest, processor, read_checked, write_checked
from sparsemble.runtime.kernels.llvm_builder import Kernel
from sparsemble.runtime.kernels.sparse_conv import SparseConv

ROUNDS = 5
"""Times that each candidate is measured; the shortest time counts, as every disturbance makes it longer."""
MAX_SECONDS = 0.05
"""Seconds after which the candidates of a layer are not measured again."""
MIN_GAIN = 0.97
"""A candidate is chosen if it takes at most this fraction of the default's time."""
MIN_SECONDS, MIN_FRACTION = 2e-5, 0.01
"""A convolution is tuned if it takes longer than this, and than this fraction of all convolutions."""
DENSITY_STEPS = 20
"""Layers of equal geometry and equal density, in twentieths, share one measurement."""


def tune_configs(planner: Planner, folder: Path | None) -> dict[int, KernelConfig]:
    """Return the fastest configuration of every convolution, by the operation's index.

    They are kept in the folder, if there is one, by network, processor and version of the code.
    """
    file = folder / f"{_cache_key(planner)}.choices" if folder else None
    configs = _stored_configs(read_checked(file), planner.fused)
    if configs is None:
        configs = _Autotuner(planner, folder).fastest_configs()
        write_checked(file, json.dumps({index: asdict(config) for index, config in configs.items()}).encode())
    return configs


@final
class _Autotuner:
    def __init__(self, planner: Planner, folder: Path | None) -> None:
        self.planner, self.folder = planner, folder
        self.workspace = Workspace(planner.empty_plan())
        self.workspace.fill(0.5)
        self.compiled: dict[Kernel, tuple[JITKernels, Any]] = {}

    def fastest_configs(self) -> dict[int, KernelConfig]:
        """Measure every convolution that takes a relevant part of the time."""
        convs = {i: o for i, o in enumerate(self.planner.fused.operations) if isinstance(o, ConvOp)}
        configs = {index: self.planner.candidate_configs(index, conv)[0] for index, conv in convs.items()}
        default = self.planner.plan(configs)
        self._compile(default.functions(), self.folder)  # cached, for the case that no other candidate is faster
        steps = [step for step in default.steps if isinstance(default.kernels[step.kernel], SparseConv | IntegerConv)]
        times = dict(zip(configs, self._times(steps, default), strict=True))
        tuned: dict[Any, KernelConfig] = {}
        for index, conv in convs.items():
            if times[index] > max(MIN_SECONDS, MIN_FRACTION * sum(times.values())):
                key = self._sharing_key(conv)
                if key not in tuned:
                    best = self._fastest(index, self.planner.candidate_configs(index, conv))
                    blocks = sorted({max(1, best.block // 2), best.block * 2} - {best.block})
                    tuned[key] = self._fastest(index, [best, *(replace(best, block=block) for block in blocks)])
                configs[index] = tuned[key]
        return configs

    def _sharing_key(self, operation: ConvOp) -> Any:
        """Return a key that is equal for convolutions which one measurement can represent."""
        weight, shapes = operation.weight, self.planner.fused.shapes
        geometry = (shapes[operation.source], shapes[operation.out], operation.stride, operation.dilation)
        kinds = tuple(buffer in self.planner.fused.steps for buffer in (operation.source, operation.out))
        return (
            weight.shape,
            geometry,
            kinds,
            weight.integers is None,
            round(DENSITY_STEPS * weight.nonzeros / weight.size),
        )

    def _fastest(self, index: int, candidates: list[KernelConfig]) -> KernelConfig:
        """Return the fastest candidate; the first one unless another is clearly faster."""
        plan = self.planner.empty_plan()
        for config in candidates:
            self.planner.add_conv(plan, index, config)
        self._compile({name: kernel for name, kernel in plan.kernels.items() if kernel not in self.compiled}, None)
        times = self._times(plan.steps, plan)
        best = min(range(len(candidates)), key=times.__getitem__)
        return candidates[best if times[best] < MIN_GAIN * times[0] else 0]

    def _compile(self, kernels: Mapping[str, Kernel], folder: Path | None) -> None:
        if kernels:
            library = JITKernels(kernels, folder)
            self.compiled |= {kernel: (library, library.function(name)) for name, kernel in kernels.items()}

    def _times(self, steps: Sequence[PlanStep], plan: ExecutionPlan) -> list[float]:
        """Return the shortest time of each step, in seconds."""
        runs = [self.compiled[plan.kernels[step.kernel]][1] for step in steps]
        calls = [step.calls[0] for step in steps]
        tables = [self.workspace.arguments(call) for call in calls]
        shortest = [np.inf] * len(runs)
        began = time.perf_counter()
        for turn in range(ROUNDS + 1):
            for i, (run, table, call) in enumerate(zip(runs, tables, calls, strict=True)):
                started = time.perf_counter()
                run(table.ctypes.data, call.first, call.last)
                if turn:  # the first turn is a warm-up
                    shortest[i] = min(shortest[i], time.perf_counter() - started)
            if turn and time.perf_counter() - began > MAX_SECONDS:
                break
        return shortest


def _cache_key(planner: Planner) -> str:
    fused, digest = planner.fused, hashlib.sha256()
    stored = sorted(fused.steps)
    digest.update(repr((type(planner).__name__, planner.lanes, fused.shapes, stored)).encode())
    digest.update(repr((code_digest(), processor())).encode())
    for operation in fused.operations:
        if isinstance(operation, ConvOp):
            geometry = operation.source, operation.out, operation.stride, operation.padding, operation.dilation
            digest.update(repr((geometry, fused.reads_integers(operation))).encode())
            digest.update(repr(operation.weight.shape).encode() + operation.weight.positions.tobytes())
    return digest.hexdigest()


def _stored_configs(content: bytes | None, fused: FusedGraph) -> dict[int, KernelConfig] | None:
    """Return the configurations in a cached file; None where they do not fit the network."""
    if content is None:
        return None
    try:
        stored: Mapping[str, Any] = json.loads(content)
        configs = {
            int(index): KernelConfig(**{**config, "tile": tuple(config["tile"])}) for index, config in stored.items()
        }
    except (ValueError, TypeError, KeyError):
        return None
    convs = {i for i, operation in enumerate(fused.operations) if isinstance(operation, ConvOp)}
    return configs if set(configs) == convs else None
