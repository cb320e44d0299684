"""From fused operations to an execution plan: the steps that batches and single images have in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.execution_plan import BufferAddress, ExecutionPlan, KernelCall, KernelConfig
from sparsemble.runtime.compiler.fused import CHANNELS_OF_LANE, AddOp, AffineOp, ConvertOp, ConvOp, FusedGraph, PoolOp
from sparsemble.runtime.compiler.im2col import BufferLayout, Im2col
from sparsemble.runtime.compiler.integer_steps import add_conversion, add_integer_conv, partial_sums, step_constants
from sparsemble.runtime.compiler.layout import Plane, TileLayout
from sparsemble.runtime.compiler.weight_stream import weight_stream
from sparsemble.runtime.kernels.elementwise import Elementwise, Gather, Pack
from sparsemble.runtime.kernels.jit import registers
from sparsemble.runtime.kernels.sparse_conv import SparseConv

L1_BYTES = 48 * 1024
"""Bytes of input that a tile may load into the L1 cache before all outputs have read it."""
SPARE_REGISTERS = 4
TILES_TRIED = 3
OUTPUT_BLOCKS = (4, 8)
"""Output channels that may share records, apart from 1."""
MAX_MARKED = 64
"""Possible positions for each weight up to which the positions are counted in a table of flags."""
LIKELY_FILLED, POSSIBLY_FILLED = 0.6, 0.4
"""Fraction of non-zero weights in blocks above which blocks are probably, or possibly, faster."""


class Planner(ABC):
    """Builds execution plans of one network.

    Args:
        fused: the operations.
        layout: of the buffers.
        lanes: the most floats in a vector.
    """

    def __init__(self, fused: FusedGraph, layout: BufferLayout, lanes: int) -> None:
        self.fused, self.layout, self.lanes = fused, layout, lanes
        for buffer in partial_sums(fused, lanes):
            layout.lifetimes[len(layout.buffers)] = (0, len(fused.operations) - 1)
            layout.buffers.append(buffer)

    def plan(self, configs: Mapping[int, KernelConfig], threads: int = 1) -> ExecutionPlan:
        """Return an execution plan.

        Args:
            configs: how convolutions are computed, by the operation's index; a missing one is guessed.
            threads: that run the plan together; the kernels are the same for any number.
        """
        plan = self.empty_plan(threads)
        self._add_pack(plan)
        for i, operation in enumerate(self.fused.operations):
            self.add_copies(plan, i)
            if isinstance(operation, ConvOp):
                self.add_conv(plan, i, configs[i] if i in configs else self.candidate_configs(i, operation)[0])
            elif isinstance(operation, PoolOp):
                self._add_pool(plan, i, operation)
            elif isinstance(operation, ConvertOp):
                add_conversion(plan, operation, self.vector_grid(self.layout.plane(operation.out)))
            else:
                self._add_elementwise(plan, operation)
        return plan

    def empty_plan(self, threads: int = 1) -> ExecutionPlan:
        """Return a plan without steps."""
        return ExecutionPlan(self.fused, self.layout, threads)

    @abstractmethod
    def vector_grid(self, plane: Plane) -> tuple[int, int, int]:
        """Return the floats in a vector of a plane, the rows of vectors in a channel, and the vectors in a row."""

    @abstractmethod
    def add_copies(self, plan: ExecutionPlan, index: int) -> None:
        """Add the step that copies inputs for an operation, where it needs one."""

    @abstractmethod
    def candidate_configs(self, index: int, operation: ConvOp) -> list[KernelConfig]:
        """Return configurations that may be the fastest; the first one is rarely slow."""

    @abstractmethod
    def tile_layout(self, index: int, operation: ConvOp, config: KernelConfig) -> TileLayout:
        """Return the tiles of a convolution.

        Args:
            index: of the operation.
            operation: the convolution.
            config: how it is computed.
        """

    def output_blocks(self, operation: ConvOp) -> list[int]:
        """Return how many output channels may share records; those that share a plane do."""
        sizes = output_block_sizes(operation)
        if operation.out not in self.fused.steps:
            return sizes
        return [size for size in sizes if size % CHANNELS_OF_LANE == 0] or [CHANNELS_OF_LANE]

    def add_conv(self, plan: ExecutionPlan, index: int, config: KernelConfig) -> None:
        """Add a convolution or linear layer.

        Args:
            plan: where it is added.
            index: of the operation.
            config: how it is computed.
        """
        operation = self.fused.operations[index]
        assert isinstance(operation, ConvOp)
        written, tiles = self.layout.plane(operation.out), self.tile_layout(index, operation, config)
        if self.fused.reads_integers(operation):
            add_integer_conv(plan, index, config, tiles)
            return
        rounds = operation.out in self.fused.steps
        if rounds:  # all inputs at once, as partial sums have no place in 8 bits
            outputs = max(CHANNELS_OF_LANE, config.outputs)
            config = replace(config, outputs=outputs, block=operation.weight.shape[1])
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
            to_steps=rounds,
        )
        steps = step_constants(self.fused.steps.get(operation.out), relu=operation.relu)
        residual = operation.out if operation.residual is None else operation.residual
        buffers = (BufferAddress(tiles.buffer), BufferAddress(operation.out), BufferAddress(residual))
        calls = []
        for thread in range(plan.threads):
            key = (index, config.outputs, config.block, config.chains, thread)
            if key not in plan.streams:
                plan.streams[key] = weight_stream(
                    operation,
                    tiles.window,
                    written,
                    outputs=config.outputs,
                    block=config.block,
                    chains=config.chains,
                    part=(thread, plan.threads),
                    channels_of_plane=CHANNELS_OF_LANE if rounds else 1,
                )
            stream = plan.streams[key]
            arguments = (*buffers, stream.records, stream.heads, stream.head_count, tiles.offsets, steps)
            calls.append(KernelCall(arguments, 0, len(tiles.offsets)))
        plan.add_step(kernel, tuple(calls))

    def _add_pack(self, plan: ExecutionPlan) -> None:
        """Add the step that normalises images and interleaves them."""
        image = self.layout.plane(0)
        size = 4 * image.height * image.width * image.channels
        pack = Pack(image.lanes, image.height, image.width, size, image.origin, image.row, image.plane)
        constants = _pairs(self.fused.scale, self.fused.shift)
        plan.add(pack, (0, BufferAddress(0), constants, 0), image.channels)

    def _add_pool(self, plan: ExecutionPlan, index: int, operation: PoolOp) -> None:
        """Add a pool, which reads copies, or gathers its windows from the plane."""
        buffer = self.layout.copies_of.get(index, operation.source)
        read, written = self.layout.inputs(index, operation.source), self.layout.plane(operation.out)
        if isinstance(read, Im2col):
            lanes, _, vectors = self.vector_grid(written)
            table = read.pool_table(operation, np.arange(vectors) * 4 * lanes)
        else:
            lanes, table = read.lanes, _pool_table(operation, read, written)
        size = operation.kernel[0] * operation.kernel[1]
        kernel = Gather(
            lanes=lanes,
            vectors=len(table),
            window=size,
            reduction="max" if operation.is_max else "sum",
            scale=1.0 if operation.is_max else 1 / size,
            read_plane=read.plane,
            write_plane=written.plane,
            aligned=isinstance(read, Plane),
            integer=operation.source in self.fused.steps,
        )
        plan.add(kernel, (BufferAddress(buffer), BufferAddress(operation.out), table), written.channels)

    def _add_elementwise(self, plan: ExecutionPlan, operation: AffineOp | AddOp) -> None:
        """Add a scale and shift, or a sum."""
        read, written = self.layout.plane(operation.source), self.layout.plane(operation.out)
        lanes, rows, row_vectors = self.vector_grid(written)
        if isinstance(operation, AffineOp):
            addend, constants = operation.source, _pairs(operation.scale, operation.shift)
        else:
            addend, constants = operation.addend, np.zeros((0, 2), np.float32)
        kernel = Elementwise(
            lanes=lanes,
            rows=rows,
            row_vectors=row_vectors,
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
        buffers = (BufferAddress(operation.source), BufferAddress(addend), BufferAddress(operation.out))
        plan.add(kernel, (*buffers, constants), read.channels)


def _pairs(scale: NDArray[np.float32], shift: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([scale, shift], 1).astype(np.float32)


def _pool_table(operation: PoolOp, read: Plane, written: Plane) -> NDArray[np.uint32]:
    """Return (pixels, 1 + window) output offset, then input offsets of the window's pixels."""
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
    return table.reshape(-1, table.shape[2])


def _window_indices(operation: PoolOp, axis: int, size: int, input_size: int) -> NDArray[np.uint32]:
    """Return (size, kernel) the row or column of every pixel of every window; negative ones wrap around."""
    starts = np.arange(size, dtype=np.int32) * operation.stride[axis] - operation.padding[axis]
    indices = np.add.outer(starts, np.arange(operation.kernel[axis], dtype=np.int32))
    if operation.is_max:
        # A maximum ignores padding: the nearest pixel, which is in the window, too, takes its place.
        indices.clip(0, input_size - 1, out=indices)
    # A mean reads the 0 of the frame.
    return indices.view(np.uint32)


def output_block_sizes(operation: ConvOp) -> list[int]:
    """Return how many output channels may share records, the number that is most likely fastest first.

    A block that has few zeros costs less than single weights: it reads each input once.
    """
    weight = operation.weight
    if len(operation.bias) < OUTPUT_BLOCKS[0]:
        return [1]
    size = int(np.prod(weight.shape[1:]))
    outputs, taps = np.divmod(weight.positions.astype(np.int64), size)
    filled = {}
    for block in OUTPUT_BLOCKS:
        records = _count_distinct(outputs // block * size + taps, -(-weight.shape[0] // block) * size)
        filled[block] = weight.nonzeros / max(1, block * records)
    likely = [block for block in OUTPUT_BLOCKS if filled[block] > LIKELY_FILLED]
    possible = [block for block in OUTPUT_BLOCKS if POSSIBLY_FILLED < filled[block] <= LIKELY_FILLED]
    return [*likely, 1, *possible]


def _count_distinct(values: NDArray[np.int64], end: int) -> int:
    """Return the number of distinct values, all of them below `end`."""
    if end > MAX_MARKED * len(values):
        # A table of flags could be larger than the file that the weights are from.
        return len(np.unique(values))
    present = np.zeros(end, bool)
    present[values] = True
    return int(np.count_nonzero(present))


def max_tile_vectors(outputs: int) -> int:
    """Return how many vectors of a tile have their sums in registers, for that many outputs."""
    return (registers() - SPARE_REGISTERS) // outputs


def channels_in_cache(channel_bytes: int) -> int:
    """Return how many channels of a tile's input fit into the L1 cache."""
    return max(1, L1_BYTES // channel_bytes)
