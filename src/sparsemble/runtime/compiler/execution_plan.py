"""An execution plan: kernels, and the steps that call them with their arguments."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.fused import AddOp, AffineOp, ConvOp, FusedGraph, FusedOp, PoolOp, sources
from sparsemble.runtime.compiler.im2col import Im2col
from sparsemble.runtime.compiler.layout import Plane, WindowLayout
from sparsemble.runtime.compiler.weight_stream import WeightStream, weight_stream
from sparsemble.runtime.kernels.elementwise import Driver, Elementwise, Gather, Pack
from sparsemble.runtime.kernels.llvm_builder import Kernel
from sparsemble.runtime.kernels.sparse_conv import SparseConv
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
    buffers: Sequence[Plane | Im2col]
    """Those of the operations, then copies."""
    lifetimes: Mapping[int, Pair] = field(default_factory=dict)
    """The first and the last operation that reads a buffer of copies."""
    kernels: dict[str, Kernel] = field(default_factory=dict)
    steps: list[PlanStep] = field(default_factory=list)
    streams: dict[tuple[int, ...], WeightStream] = field(default_factory=dict)
    """By operation, outputs, block, chains and thread; tiles of all shapes share them."""
    threads: int = 1
    """Threads that run the plan together."""

    def plane(self, buffer: int) -> Plane:
        """Return the layout of a buffer that an operation reads or writes."""
        plane = self.buffers[buffer]
        assert isinstance(plane, Plane)
        return plane

    def add(self, kernel: Kernel, arguments: tuple[Argument, ...], last: int) -> None:
        """Add a step over a range that is divided among the threads.

        Args:
            kernel: the kernel.
            arguments: the same for all threads.
            last: end of the range.
        """
        ends = [last * i // self.threads for i in range(self.threads + 1)]
        self.add_step(kernel, tuple(KernelCall(arguments, first, end) for first, end in itertools.pairwise(ends)))

    def add_for_each_thread(self, kernel: Kernel, arguments: tuple[Argument, ...], last: int) -> None:
        """Add a step that every thread runs for itself, over the whole range.

        Args:
            kernel: the kernel.
            arguments: the same for all threads.
            last: end of the range.
        """
        self.add_step(kernel, (KernelCall(arguments, 0, last),) * self.threads, shared=False)

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


def add_pack(plan: ExecutionPlan, lanes: int) -> None:
    """Add the step that normalises images and interleaves `lanes` of them."""
    fused, image = plan.fused, plan.plane(0)
    constants = np.stack([fused.scale, fused.shift], 1).astype(np.float32)
    size = 4 * image.height * image.width
    pack = Pack(lanes, image.height, image.width, size * image.channels, image.origin, image.row, image.plane)
    plan.add(pack, (0, BufferAddress(0), constants, 0), image.channels)


@final
@dataclass(frozen=True, eq=False)
class TileLayout:
    """How the outputs of a convolution are divided into tiles."""

    lanes: int
    """Floats in a vector."""
    reads: tuple[int, ...]
    """Bytes from the tile's input offset to each vector that is read."""
    writes: tuple[int, ...]
    """Bytes from the tile's output offset to each vector that is written."""
    offsets: NDArray[np.uint32]
    """(tiles, 2) input and output offset of every tile."""
    aligned: bool
    """Whether all vectors are aligned."""


def add_conv(
    plan: ExecutionPlan,
    operation: ConvOp,
    config: KernelConfig,
    tiles: TileLayout,
    source: tuple[BufferAddress, WindowLayout],
) -> None:
    """Add the step of a convolution.

    Args:
        plan: where it is added.
        operation: the convolution.
        config: how it is computed.
        tiles: how its outputs are divided.
        source: the buffer of its inputs, and where its windows are in it.
    """
    written = plan.plane(operation.out)
    kernel = SparseConv(
        lanes=tiles.lanes,
        outputs=config.outputs,
        reads=tiles.reads,
        writes=tiles.writes,
        plane=written.plane,
        residual=operation.residual is not None,
        relu=operation.relu,
        aligned=tiles.aligned,
        chains=config.chains,
    )
    residual = operation.out if operation.residual is None else operation.residual
    calls = []
    for thread in range(plan.threads):
        key = (id(operation), config.outputs, config.block, config.chains, thread)
        if key not in plan.streams:
            plan.streams[key] = weight_stream(
                operation,
                source[1],
                written,
                outputs=config.outputs,
                block=config.block,
                chains=config.chains,
                part=(thread, plan.threads),
            )
        stream = plan.streams[key]
        buffers = (source[0], BufferAddress(operation.out), BufferAddress(residual))
        arguments = (*buffers, stream.records, stream.heads, stream.head_count, tiles.offsets)
        calls.append(KernelCall(arguments, 0, len(tiles.offsets)))
    plan.add_step(kernel, tuple(calls))


def add_pool(plan: ExecutionPlan, operation: PoolOp) -> None:
    """Add a pool whose windows are gathered pixel by pixel."""
    read, written = plan.plane(operation.source), plan.plane(operation.out)
    down = _window_indices(operation, 0, written.height, read.height)
    across = _window_indices(operation, 1, written.width, read.width)
    for indices, frame, step in ((down, read.frame[0], read.row), (across, read.frame[1], read.column)):
        indices += np.uint32(frame)
        indices *= np.uint32(step)
    table = np.empty((written.height, written.width, 1 + operation.kernel[0] * operation.kernel[1]), np.uint32)
    y, x = np.arange(written.height)[:, None], np.arange(written.width)
    table[..., 0] = written.origin + y * written.row + x * written.column
    for entry, (v, u) in enumerate(np.ndindex(*operation.kernel), start=1):
        np.add.outer(down[:, v], across[:, u], out=table[..., entry])
    rows = table.reshape(-1, table.shape[2])
    add_gather(plan, operation, rows, read.lanes, BufferAddress(operation.source), read.plane)


def _window_indices(operation: PoolOp, axis: int, size: int, input_size: int) -> NDArray[np.uint32]:
    """Return (size, kernel) the row or column of every pixel of every window; negative ones wrap around.

    Args:
        operation: the pool.
        axis: 0 for rows, 1 for columns.
        size: of the output along the axis.
        input_size: of the input along the axis.
    """
    starts = np.arange(size, dtype=np.int32) * operation.stride[axis] - operation.padding[axis]
    indices = np.add.outer(starts, np.arange(operation.kernel[axis], dtype=np.int32))
    if operation.is_max:
        # A maximum ignores padding: the nearest pixel, which is in the window, too, takes its place.
        indices.clip(0, input_size - 1, out=indices)
    # A mean reads the 0 of the frame.
    return indices.view(np.uint32)


def add_gather(
    plan: ExecutionPlan,
    operation: PoolOp,
    table: NDArray[np.uint32],
    lanes: int,
    source: BufferAddress,
    read_plane: int,
) -> None:
    """Add the step of a pool.

    Args:
        plan: where it is added.
        operation: the pool.
        table: (vectors, 1 + window) output offset, then input offsets of the window's pixels.
        lanes: floats in a vector.
        source: the buffer that is read.
        read_plane: bytes from one of its channels to the next.
    """
    written, size = plan.plane(operation.out), operation.kernel[0] * operation.kernel[1]
    kernel = Gather(
        lanes=lanes,
        vectors=len(table),
        window=size,
        reduction="max" if operation.is_max else "sum",
        scale=1.0 if operation.is_max else 1 / size,
        read_plane=read_plane,
        write_plane=written.plane,
        aligned=isinstance(plan.buffers[source.buffer], Plane),
    )
    plan.add(kernel, (source, BufferAddress(operation.out), table), written.channels)


def add_elementwise(plan: ExecutionPlan, operation: AffineOp | AddOp, lanes: int, vectors: Pair) -> None:
    """Add the step of a scale and shift, or of a sum.

    Args:
        plan: where it is added.
        operation: the operation.
        lanes: floats in a vector.
        vectors: rows, and vectors in a row.
    """
    read, written = plan.plane(operation.source), plan.plane(operation.out)
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
        function="affine" if isinstance(operation, AffineOp) else "add",
        relu=operation.relu,
        aligned=True,
    )
    constants = np.zeros((0, 2), np.float32)
    if isinstance(operation, AffineOp):
        constants = np.stack([operation.scale, operation.shift], 1).astype(np.float32)
    addend = operation.addend if isinstance(operation, AddOp) else operation.source
    arguments = (BufferAddress(operation.source), BufferAddress(addend), BufferAddress(operation.out), constants)
    plan.add(kernel, arguments, read.channels)


def last_uses(fused: FusedGraph) -> dict[int, int]:
    """Return the last operation that uses each buffer; the logits are used to the end."""
    uses = {0: -1}
    operations: list[FusedOp] = list(fused.operations)
    for i, operation in enumerate(operations):
        uses.setdefault(operation.out, i)
        for buffer in sources(operation):
            uses[buffer] = i
    uses[fused.logits_buffer] = len(operations)
    return uses
