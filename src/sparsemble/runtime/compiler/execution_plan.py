"""An execution plan: kernels, and the steps that call them with their arguments."""

import itertools
from dataclasses import dataclass, field
from typing import Any, final

from numpy.typing import NDArray

from sparsemble.runtime.compiler.fused import FusedGraph
from sparsemble.runtime.compiler.im2col import BufferLayout
from sparsemble.runtime.compiler.weight_stream import WeightStream
from sparsemble.runtime.kernels.elementwise import Driver
from sparsemble.runtime.kernels.llvm_builder import Kernel
from sparsemble.runtime.network import Pair

DRIVER = "network"
"""Name of the function that runs all steps."""


@final
@dataclass(frozen=True)
class KernelConfig:
    """How a convolution is computed; does not change a bit of its result."""

    tile: Pair
    """Rows and columns of vectors whose sums are kept in registers."""
    block: int
    """Input channels that are added for all outputs before the next ones."""
    outputs: int
    """Output channels that share records."""
    chains: int = 1
    """Groups of such channels that are summed side by side."""


@final
@dataclass(frozen=True)
class BufferAddress:
    """The address of a buffer; of copies, those of the calling thread."""

    buffer: int


Argument = BufferAddress | NDArray[Any] | int


@final
@dataclass(frozen=True, eq=False)
class KernelCall:
    """The arguments of a kernel, and the range that it covers."""

    arguments: tuple[Argument, ...]
    first: int
    last: int


@final
@dataclass(frozen=True, eq=False)
class PlanStep:
    """A kernel, and a call for each thread."""

    kernel: str
    calls: tuple[KernelCall, ...]
    shared: bool = True
    """Whether the threads wait for each other after it; if not, each one wrote what only it reads."""


@final
@dataclass(eq=False)
class ExecutionPlan:
    """Kernels by name, and steps in running order; the first step packs images."""

    fused: FusedGraph
    layout: BufferLayout
    threads: int = 1
    """Threads that run the plan together."""
    kernels: dict[str, Kernel] = field(default_factory=dict)
    steps: list[PlanStep] = field(default_factory=list)
    streams: dict[tuple[int, ...], WeightStream] = field(default_factory=dict)
    """By operation, outputs, block, chains and thread; tiles of all shapes share them."""

    def add(self, kernel: Kernel, arguments: tuple[Argument, ...], last: int) -> None:
        """Add a step over a range that is divided among the threads.

        Args:
            kernel: the kernel.
            arguments: the same for all threads.
            last: end of the range.
        """
        ends = [last * i // self.threads for i in range(self.threads + 1)]
        self.add_step(kernel, tuple(KernelCall(arguments, first, end) for first, end in itertools.pairwise(ends)))

    def add_step(self, kernel: Kernel, calls: tuple[KernelCall, ...], *, shared: bool = True) -> None:
        """Add a step; equal kernels are compiled once.

        Args:
            kernel: the kernel.
            calls: one a thread.
            shared: whether the threads wait for each other after it.
        """
        names = {compiled: name for name, compiled in self.kernels.items()}
        name = names.get(kernel) or f"kernel{len(self.kernels)}"
        self.kernels[name] = kernel
        self.steps.append(PlanStep(name, calls, shared))

    def functions(self) -> dict[str, Kernel]:
        """Return all functions of the plan; the driver, which calls the others, is last."""
        steps = tuple((step.kernel, step.shared) for step in self.steps)
        return {**self.kernels, DRIVER: Driver(steps)}
