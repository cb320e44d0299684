"""Plans for one image at a time: a vector holds neighbouring outputs of a plane."""

import math
from typing import final

import numpy as np

from sparsemble.runtime.compiler.execution_plan import (
    BufferAddress,
    ExecutionPlan,
    KernelConfig,
    TileLayout,
    add_conv,
    add_elementwise,
    add_gather,
    add_pack,
    add_pool,
)
from sparsemble.runtime.compiler.fused import AddOp, AffineOp, ConvOp, FusedGraph, PoolOp
from sparsemble.runtime.compiler.im2col import Im2col, single_image_layout, vector_width, window_displacements
from sparsemble.runtime.compiler.layout import tile_starts, window_layout
from sparsemble.runtime.compiler.planner import (
    SPARE_REGISTERS,
    TILES_TRIED,
    Planner,
    channels_in_cache,
    output_block_sizes,
)
from sparsemble.runtime.kernels.im2col import Im2colScalar, Im2colVector
from sparsemble.runtime.kernels.jit import registers

MAX_UNROLLED = 256
"""Vectors of a row of copies up to which the code of each is written out."""
MAX_CHAINS = 8
SUMS_IN_FLIGHT = 16
"""Independent sums that hide the latency of a multiply-add."""


@final
class SingleImagePlanner(Planner):
    """One image; a vector holds neighbouring outputs, and a tile is a row of vectors.

    Args:
        fused: the operations.
        lanes: the most outputs in a vector.
    """

    def __init__(self, fused: FusedGraph, lanes: int) -> None:
        self.lanes = lanes
        layout = single_image_layout(fused, lanes)
        super().__init__(fused, layout.buffers, layout.lifetimes)
        self._copies_of = layout.copies_of

    def add_pack(self, plan: ExecutionPlan) -> None:
        """Add the step that reads an image."""
        add_pack(plan, 1)

    def add_elementwise(self, plan: ExecutionPlan, operation: AffineOp | AddOp) -> None:
        """Add a scale and shift, or a sum."""
        lanes, vectors = self._vectors(plan, operation.out)
        add_elementwise(plan, operation, lanes, (1, vectors))

    def _vectors(self, plan: ExecutionPlan, buffer: int) -> tuple[int, int]:
        """Return the floats in a vector of a plane, and the vectors in a channel."""
        plane = plan.plane(buffer)
        lanes = vector_width(plane.height, plane.width, self.lanes)
        return lanes, -(-plane.height * plane.width // lanes)

    def _copies(self, index: int) -> tuple[int, Im2col] | None:
        """Return the copies that an operation reads; None if it reads the plane itself."""
        buffer = self._copies_of.get(index)
        if buffer is None:
            return None
        copies = self.buffers[buffer]
        assert isinstance(copies, Im2col)
        return buffer, copies

    def add_copies(self, plan: ExecutionPlan, index: int) -> None:
        """Add the step that makes the copies that this operation is the first to read."""
        copied = self._copies(index)
        if copied is None or self.lifetimes[copied[0]][0] != index:
            return
        operation, (buffer, copies) = self.fused.operations[index], copied
        assert isinstance(operation, ConvOp | PoolOp)
        read, width = plan.plane(operation.source), copies.size[1]
        lanes = vector_width(1, width, self.lanes)
        if -(-width // lanes) * len(copies.columns) <= MAX_UNROLLED:
            table = copies.row_table(read)
            kernel: Im2colVector | Im2colScalar = Im2colVector(
                lanes=lanes,
                starts=tuple(tile_starts(width, lanes).tolist()),
                stride=copies.stride[1],
                columns=copies.columns,
                width=read.width,
                copy=copies.column,
                read_plane=read.plane,
                write_plane=copies.plane,
            )
        else:
            table = copies.run_table(read)
            kernel = Im2colScalar(stride=copies.stride[1], read_plane=read.plane, write_plane=copies.plane)
        # Every thread makes its own copies: reading planes from another core's cache costs less than reading copies.
        arguments = (BufferAddress(operation.source), BufferAddress(buffer), table, len(table))
        plan.add_for_each_thread(kernel, arguments, read.channels)

    def candidate_configs(self, index: int, operation: ConvOp) -> list[KernelConfig]:
        """Return configurations that may be the fastest; the first one is rarely slow."""
        copied = self._copies(index)
        lanes, vectors = self._vectors(self.empty_plan(), operation.out)
        configs = []
        for outputs in output_block_sizes(operation):
            max_vectors = (registers() - SPARE_REGISTERS) // outputs
            # A record costs its vectors and about two more.
            widths = sorted(
                range(1, min(vectors, max_vectors) + 1), key=lambda w: (math.ceil(vectors / w) * (w + 2), w)
            )
            tile = 4 * lanes * widths[0]
            block = channels_in_cache(copied[1].bytes_read(tile) if copied else tile)
            for width in widths[:TILES_TRIED]:
                chains = max(1, min(MAX_CHAINS // outputs, SUMS_IN_FLIGHT // (width * outputs)))
                configs += [
                    KernelConfig((1, width), block, outputs, count)
                    for count in dict.fromkeys((chains, max(1, chains // 2)))
                ]
        return configs

    def add_conv(self, plan: ExecutionPlan, index: int, config: KernelConfig) -> None:
        """Add a convolution or linear layer."""
        operation, copied = self.fused.operations[index], self._copies(index)
        assert isinstance(operation, ConvOp)
        if copied:
            buffer, copies = copied
            source = copies.window_layout(*window_displacements(operation))
        else:
            buffer, source = operation.source, window_layout(operation, plan.plane(operation.source))
        lanes, vectors = self._vectors(plan, operation.out)
        width = config.tile[1]
        starts = tile_starts(vectors, width) * 4 * lanes
        vector_steps = tuple(4 * lanes * i for i in range(width))
        offsets = np.stack([source.base + starts, starts], 1).astype(np.uint32)
        tiles = TileLayout(lanes=lanes, reads=vector_steps, writes=vector_steps, offsets=offsets, aligned=False)
        add_conv(plan, operation, config, tiles, (BufferAddress(buffer), source))

    def add_pool(self, plan: ExecutionPlan, index: int, operation: PoolOp) -> None:
        """Add a pool."""
        copied = self._copies(index)
        if not copied:
            add_pool(plan, operation)
            return
        buffer, copies = copied
        lanes, vectors = self._vectors(plan, operation.out)
        source = copies.window_layout(*window_displacements(operation))
        taps = np.add.outer(source.down, source.across).reshape(-1).astype(np.uint32)
        table = np.empty((vectors, 1 + len(taps)), np.uint32)
        table[:, 0] = np.arange(vectors) * 4 * lanes
        np.add(table[:, :1], taps, out=table[:, 1:])
        add_gather(plan, operation, table, lanes, BufferAddress(buffer), copies.plane)
