"""Which way through each layer is the fastest here: measured once, then kept on disk."""

import ctypes
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
from sparsemble.runtime.kernels.jit import JITKernels, code_digest, processor, read_checked, write_checked
from sparsemble.runtime.kernels.llvm_builder import Kernel
from sparsemble.runtime.kernels.sparse_conv import SparseConv

ROUNDS = 5
"""Times that each candidate is tried; the quickest time counts, as all disturbances slow down."""
LONGEST = 0.05
"""Seconds after which a layer's candidates get no further round."""
WORTH = 0.97
"""Part of the usual way's time that another one may take to be preferred."""
SHORTEST, LEAST_PART = 2e-5, 0.01
"""Seconds, and part of the time of all products, that one must take to be measured."""
DENSITIES = 20
"""Densities that are told apart."""
RUN = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def tune_configs(planning: Planner, folder: Path | None) -> dict[int, KernelConfig]:
    """Return how to go through each product, by the place of the operation.

    Args:
        planning: how the network is run.
        folder: where what was found is kept, under the network, the processor and the version; none: nowhere.
    """
    file = folder / f"{_key(planning)}.choices" if folder else None
    stored = _stored(read_checked(file), planning.fused)
    if stored is None:
        stored = _Autotuner(planning, folder).choices()
        write_checked(file, json.dumps({p: asdict(c) for p, c in stored.items()}).encode())
    return stored


@final
class _Autotuner:
    def __init__(self, planning: Planner, folder: Path | None) -> None:
        self.planning, self.folder = planning, folder
        self.memory = Workspace(planning.empty())
        self.memory.fill(0.5)
        self.known: dict[Kernel, tuple[JITKernels, Any]] = {}

    def choices(self) -> dict[int, KernelConfig]:
        """Measure every product that takes long enough to care."""
        operations = {p: o for p, o in enumerate(self.planning.fused.operations) if isinstance(o, ConvOp)}
        found = {place: self.planning.candidate_configs(place, operation)[0] for place, operation in operations.items()}
        usual = self.planning.plan(found)
        self._compile(usual.functions(), self.folder)  # what is kept serves the run if nothing else is found
        steps = [step for step in usual.steps if isinstance(usual.kernels[step.kernel], SparseConv)]
        times = dict(zip(found, self._times(steps, usual), strict=True))
        alike: dict[Any, KernelConfig] = {}
        for place, operation in operations.items():
            if times[place] > max(SHORTEST, LEAST_PART * sum(times.values())):
                kind = self._kind(operation)
                if kind not in alike:
                    first = self._fastest(place, self.planning.candidate_configs(place, operation))
                    blocks = sorted({max(1, first.block // 2), first.block * 2} - {first.block})
                    alike[kind] = self._fastest(place, [first, *(replace(first, block=block) for block in blocks)])
                found[place] = alike[kind]
        return found

    def _kind(self, operation: ConvOp) -> Any:
        """Return what products have in common that one measurement can stand for."""
        weight, shapes = operation.weight, self.planning.fused.shapes
        geometry = (shapes[operation.source], shapes[operation.out], operation.stride, operation.dilation)
        return weight.shape, geometry, round(DENSITIES * weight.nonzeros / weight.size)

    def _fastest(self, place: int, options: list[KernelConfig]) -> KernelConfig:
        plan = self.planning.empty()
        for choice in options:
            self.planning.product(plan, place, choice)
        self._compile({name: kernel for name, kernel in plan.kernels.items() if kernel not in self.known}, None)
        times = self._times(plan.steps, plan)
        best = min(range(len(options)), key=times.__getitem__)
        return options[best if times[best] < WORTH * times[0] else 0]

    def _compile(self, kernels: Mapping[str, Kernel], folder: Path | None) -> None:
        if kernels:
            compiled = JITKernels(kernels, folder)
            self.known |= {kernel: (compiled, RUN(compiled.address(name))) for name, kernel in kernels.items()}

    def _times(self, steps: Sequence[PlanStep], plan: ExecutionPlan) -> list[float]:
        """Return the seconds that each step of a plan takes at its quickest."""
        runs = [self.known[plan.kernels[step.kernel]][1] for step in steps]
        calls = [step.calls[0] for step in steps]
        tables = [self.memory.arguments(call) for call in calls]
        quickest = [np.inf] * len(runs)
        began = time.perf_counter()
        for turn in range(ROUNDS + 1):
            for i, (run, table, call) in enumerate(zip(runs, tables, calls, strict=True)):
                started = time.perf_counter()
                run(table.ctypes.data, call.first, call.last)
                if turn:
                    quickest[i] = min(quickest[i], time.perf_counter() - started)
            if turn and time.perf_counter() - began > LONGEST:
                break
        return quickest


def _key(planning: Planner) -> str:
    fused, digest = planning.fused, hashlib.sha256()
    digest.update(repr((type(planning).__name__, planning.lanes, fused.shapes, code_digest(), processor())).encode())
    for operation in fused.operations:
        if isinstance(operation, ConvOp):
            geometry = operation.source, operation.out, operation.stride, operation.padding, operation.dilation
            digest.update(repr(geometry).encode())
            digest.update(repr(operation.weight.shape).encode() + operation.weight.positions.tobytes())
    return digest.hexdigest()


def _stored(content: bytes | None, fused: FusedGraph) -> dict[int, KernelConfig] | None:
    """Return choices that were kept; none where they do not fit the network."""
    if content is None:
        return None
    try:
        kept: Mapping[str, Any] = json.loads(content)
        found = {int(place): KernelConfig(**{**one, "tile": tuple(one["tile"])}) for place, one in kept.items()}
    except (ValueError, TypeError, KeyError):
        return None
    return found if set(found) == {i for i, o in enumerate(fused.operations) if isinstance(o, ConvOp)} else None
