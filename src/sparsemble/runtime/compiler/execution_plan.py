"""From fused operations to kernels and their arguments."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.fused import AddOp, AffineOp, ConvOp, FusedGraph, FusedOp, PoolOp, sources
from sparsemble.runtime.compiler.im2col import Im2col
from sparsemble.runtime.compiler.layout import Plane, WindowLayout
from sparsemble.runtime.compiler.weight_stream import WeightStream, stream
from sparsemble.runtime.kernels.elementwise import Driver, Elementwise, Gather, Pack
from sparsemble.runtime.kernels.llvm_builder import Kernel
from sparsemble.runtime.kernels.sparse_conv import SparseConv
from sparsemble.runtime.network import Pair

DRIVER = "network"


@final
@dataclass(frozen=True)
class KernelConfig:
    """How a sum of products is gone through."""

    tile: Pair
    """Rows and columns of output pixels whose sums are kept in registers."""
    block: int
    """Input channels gone through for all outputs before the next ones."""
    outputs: int
    """Channels that share records."""
    chains: int = 1
    """Groups of such channels that are gone through side by side."""


@final
@dataclass(frozen=True)
class BufferAddress:
    """A place in the memory of a run: a buffer; copies are those of the thread that asks."""

    buffer: int


Argument = BufferAddress | NDArray[Any] | int


@final
@dataclass(frozen=True, eq=False)
class KernelCall:
    """What a kernel is called with, and the range it goes over."""

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
    """Whether the next step begins when all threads are done; else each has made what only it reads."""


@final
@dataclass(eq=False)
class ExecutionPlan:
    """What runs a network: kernels by name, and steps in order; the first one packs images."""

    fused: FusedGraph
    buffers: Sequence[Plane | Im2col]
    """Those of the operations, then copies."""
    lives: Mapping[int, Pair] = field(default_factory=dict)
    """The first and the last operation that needs a copy."""
    kernels: dict[str, Kernel] = field(default_factory=dict)
    steps: list[PlanStep] = field(default_factory=list)
    streams: dict[tuple[int, ...], WeightStream] = field(default_factory=dict)
    """Records by operation, outputs, block, chains and thread: tiles of all shapes share them."""
    threads: int = 1
    """How many go through the network side by side."""

    def plane(self, buffer: int) -> Plane:
        """Return the layout of what an operation reads or writes."""
        found = self.buffers[buffer]
        assert isinstance(found, Plane)
        return found

    def add(self, kernel: Kernel, arguments: tuple[Argument, ...], last: int) -> None:
        """Add a step over a range that threads divide among them."""
        ends = [last * i // self.threads for i in range(self.threads + 1)]
        self.add_step(kernel, tuple(KernelCall(arguments, first, end) for first, end in itertools.pairwise(ends)))

    def add_for_each(self, kernel: Kernel, arguments: tuple[Argument, ...], last: int) -> None:
        """Add a step that every thread does for itself."""
        self.add_step(kernel, (KernelCall(arguments, 0, last),) * self.threads, shared=False)

    def add_step(self, kernel: Kernel, calls: tuple[KernelCall, ...], *, shared: bool = True) -> None:
        """Add a step; equal kernels are one function."""
        names = {known: name for name, known in self.kernels.items()}
        name = names.get(kernel) or f"kernel{len(self.kernels)}"
        self.kernels[name] = kernel
        self.steps.append(PlanStep(name, calls, shared))

    def functions(self) -> dict[str, Kernel]:
        """Return all functions of the network, the one that calls the others last."""
        steps = tuple((step.kernel, step.shared) for step in self.steps)
        return {**self.kernels, DRIVER: Driver(steps)}


def add_pack(found: ExecutionPlan, lanes: int) -> None:
    """Add what brings images in, so many side by side."""
    fused, image = found.fused, found.plane(0)
    constants = np.stack([fused.scale, fused.shift], 1).astype(np.float32)
    size = 4 * image.height * image.width
    pack = Pack(lanes, image.height, image.width, size * image.channels, image.origin, image.row, image.plane)
    found.add(pack, (0, BufferAddress(0), constants, 0), image.channels)


@final
@dataclass(frozen=True, eq=False)
class TileLayout:
    """How a product's outputs are gone through."""

    lanes: int
    """Floats in a vector."""
    reads: tuple[int, ...]
    """Where a tile's vectors are read, from its place in the input."""
    writes: tuple[int, ...]
    """Where they are written, from its place in the output."""
    places: NDArray[np.uint32]
    """{place in the input, in the output} of every tile."""
    aligned: bool


def add_tiles(
    found: ExecutionPlan,
    operation: ConvOp,
    choice: KernelConfig,
    through: TileLayout,
    source: tuple[BufferAddress, WindowLayout],
) -> None:
    """Add the kernel of a product.

    Args:
        found: the plan.
        operation: the product.
        choice: how its channels are gone through.
        through: how its outputs are.
        source: the buffer its inputs are in, and where in it.
    """
    written = found.plane(operation.out)
    kernel = SparseConv(
        lanes=through.lanes,
        outputs=choice.outputs,
        reads=through.reads,
        writes=through.writes,
        plane=written.plane,
        residual=operation.residual is not None,
        relu=operation.relu,
        aligned=through.aligned,
        chains=choice.chains,
    )
    residual = operation.out if operation.residual is None else operation.residual
    calls = []
    for thread in range(found.threads):
        same = (id(operation), choice.outputs, choice.block, choice.chains, thread)
        if same not in found.streams:
            found.streams[same] = stream(
                operation,
                source[1],
                written,
                outputs=choice.outputs,
                block=choice.block,
                chains=choice.chains,
                part=(thread, found.threads),
            )
        work = found.streams[same]
        buffers = (source[0], BufferAddress(operation.out), BufferAddress(residual))
        arguments = (*buffers, work.records, work.heads, work.head_count, through.places)
        calls.append(KernelCall(arguments, 0, len(through.places)))
    found.add_step(kernel, tuple(calls))


def add_pool(found: ExecutionPlan, operation: PoolOp) -> None:
    """Add a pool whose windows are looked up pixel by pixel."""
    read, written = found.plane(operation.source), found.plane(operation.out)
    down = _windows(operation, 0, written.height, read.height)
    across = _windows(operation, 1, written.width, read.width)
    for places, frame, step in ((down, read.frame[0], read.row), (across, read.frame[1], read.column)):
        places += np.uint32(frame)
        places *= np.uint32(step)
    table = np.empty((written.height, written.width, 1 + operation.kernel[0] * operation.kernel[1]), np.uint32)
    y, x = np.arange(written.height)[:, None], np.arange(written.width)
    table[..., 0] = written.origin + y * written.row + x * written.column
    for place, (v, u) in enumerate(np.ndindex(*operation.kernel), start=1):
        np.add.outer(down[:, v], across[:, u], out=table[..., place])
    rows = table.reshape(-1, table.shape[2])
    add_gather(found, operation, rows, read.lanes, BufferAddress(operation.source), read.plane)


def _windows(operation: PoolOp, axis: int, size: int, size_read: int) -> NDArray[np.uint32]:
    """Return the rows or columns (size, kernel) that each window of a pool reads; those before 0 wrap around."""
    begins = np.arange(size, dtype=np.int32) * operation.stride[axis] - operation.padding[axis]
    found = np.add.outer(begins, np.arange(operation.kernel[axis], dtype=np.int32))
    if operation.largest:
        # Padding never is the largest: the nearest pixel, which lies in the window, too, stands in for it.
        found.clip(0, size_read - 1, out=found)
    # In a mean it is the 0 of the frame.
    return found.view(np.uint32)


def add_gather(
    found: ExecutionPlan,
    operation: PoolOp,
    table: NDArray[np.uint32],
    lanes: int,
    source: BufferAddress,
    read_plane: int,
) -> None:
    """Add the kernel of a pool; the table holds {place of the output, places of its window} of each vector."""
    written, size = found.plane(operation.out), operation.kernel[0] * operation.kernel[1]
    kernel = Gather(
        lanes=lanes,
        vectors=len(table),
        window=size,
        how="largest" if operation.largest else "sum",
        scale=1.0 if operation.largest else 1 / size,
        read_plane=read_plane,
        write_plane=written.plane,
        aligned=isinstance(found.buffers[source.buffer], Plane),
    )
    found.add(kernel, (source, BufferAddress(operation.out), table), written.channels)


def add_elementwise(found: ExecutionPlan, operation: AffineOp | AddOp, lanes: int, vectors: Pair) -> None:
    """Add a scale and shift, or a sum, of so many vectors down and across."""
    read, written = found.plane(operation.source), found.plane(operation.out)
    kernel = Elementwise(
        lanes=lanes,
        rows=vectors[0],
        row_vectors=vectors[1],
        read_offset=read.origin,
        read_row=read.row,
        read_plane=read.plane,
        write_offset=written.origin,
        write_row=written.row,
        write_plane=written.plane,
        what="scale" if isinstance(operation, AffineOp) else "add",
        relu=operation.relu,
        aligned=True,
    )
    constants = np.zeros((0, 2), np.float32)
    if isinstance(operation, AffineOp):
        constants = np.stack([operation.scale, operation.shift], 1).astype(np.float32)
    other = operation.other if isinstance(operation, AddOp) else operation.source
    arguments = (BufferAddress(operation.source), BufferAddress(other), BufferAddress(operation.out), constants)
    found.add(kernel, arguments, read.channels)


def last_uses(fused: FusedGraph) -> dict[int, int]:
    """Return after which operation nobody needs a buffer any more; the answer is needed to the end."""
    found = {0: -1}
    operations: list[FusedOp] = list(fused.operations)
    for place, operation in enumerate(operations):
        found.setdefault(operation.out, place)
        for buffer in sources(operation):
            found[buffer] = place
    found[fused.answer] = len(operations)
    return found
