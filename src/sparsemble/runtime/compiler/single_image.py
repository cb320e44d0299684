"""Plans for one image at a time: a vector holds neighbouring outputs of a plane."""

import math
from typing import final

import numpy as np

from sparsemble.runtime.compiler.execution_plan import BufferAddress, ExecutionPlan, KernelCall, KernelConfig
from sparsemble.runtime.compiler.fused import ConvOp, FusedGraph
from sparsemble.runtime.compiler.im2col import Im2col, single_image_layout, vector_width
from sparsemble.runtime.compiler.integer_steps import LARGEST_TILE, integer_configs
from sparsemble.runtime.compiler.layout import Plane, TileLayout, tile_starts, window_layout
from sparsemble.runtime.compiler.planner import (
    TILES_TRIED,
    Planner,
    channels_in_cache,
    max_tile_vectors,
)
from sparsemble.runtime.kernels.im2col import Im2colScalar, Im2colVector

MAX_UNROLLED = 256
"""Vectors of a row of copies up to which the code of each is written out."""
MAX_CHAINS = 8
SUMS_IN_FLIGHT = 16
"""Independent sums that hide the latency of a multiply-add."""


@final
class SingleImagePlanner(Planner):
    """One image; a vector holds at most `lanes` neighbouring outputs, and a tile is a row of vectors."""

    def __init__(self, fused: FusedGraph, lanes: int) -> None:
        super().__init__(fused, single_image_layout(fused, lanes), lanes)

    def vector_grid(self, plane: Plane) -> tuple[int, int, int]:
        """Return the outputs in a vector, and one row of all vectors in a channel."""
        lanes = vector_width(plane.height * plane.width, self.lanes)
        return lanes, 1, -(-plane.height * plane.width // lanes)

    def add_copies(self, plan: ExecutionPlan, index: int) -> None:
        """Add the step that makes the copies that this operation is the first to read."""
        buffer = self.layout.copies_of.get(index)
        if buffer is None or self.layout.lifetimes[buffer][0] != index:
            return
        source, copies = self.fused.operations[index].source, self.layout.buffers[buffer]
        assert isinstance(copies, Im2col)
        read, width = self.layout.plane(source), copies.size[1]
        lanes = vector_width(width, self.lanes)
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
                fill=copies.fill,
            )
        else:
            table = copies.run_table(read)
            kernel = Im2colScalar(stride=copies.stride[1], read_plane=read.plane, write_plane=copies.plane)
        # Every thread makes its own copies: reading planes from another core's cache costs less than reading copies.
        call = KernelCall((BufferAddress(source), BufferAddress(buffer), table, len(table)), 0, read.channels)
        plan.add_step(kernel, (call,) * plan.threads, shared=False)

    def candidate_configs(self, index: int, operation: ConvOp) -> list[KernelConfig]:
        """Return configurations that may be the fastest; the first one is rarely slow."""
        read = self.layout.inputs(index, operation.source)
        lanes, _, vectors = self.vector_grid(self.layout.plane(operation.out))

        def widths_and_block(largest: int) -> tuple[list[int], int]:
            # A record costs its vectors and about two more.
            widths = sorted(range(1, min(vectors, largest) + 1), key=lambda w: (math.ceil(vectors / w) * (w + 2), w))
            tile = 4 * lanes * widths[0]
            return widths, channels_in_cache(read.bytes_read(tile) if isinstance(read, Im2col) else tile)

        if self.fused.reads_integers(operation):
            widths, block = widths_and_block(LARGEST_TILE)
            return integer_configs([(1, width) for width in widths[:TILES_TRIED]], block)
        configs = []
        for outputs in self.output_blocks(operation):
            widths, block = widths_and_block(max_tile_vectors(outputs))
            for width in widths[:TILES_TRIED]:
                chains = max(1, min(MAX_CHAINS // outputs, SUMS_IN_FLIGHT // (width * outputs)))
                configs += [
                    KernelConfig((1, width), block, outputs, count)
                    for count in dict.fromkeys((chains, max(1, chains // 2)))
                ]
        return configs

    def tile_layout(self, index: int, operation: ConvOp, config: KernelConfig) -> TileLayout:
        """Return tiles of neighbouring vectors."""
        buffer = self.layout.copies_of.get(index, operation.source)
        read = self.layout.inputs(index, operation.source)
        window = read.window_layout(operation) if isinstance(read, Im2col) else window_layout(operation, read)
        lanes, _, vectors = self.vector_grid(self.layout.plane(operation.out))
        starts = tile_starts(vectors, config.tile[1]) * 4 * lanes
        steps = tuple(4 * lanes * i for i in range(config.tile[1]))
        offsets = np.stack([window.base + starts, starts], 1).astype(np.uint32)
        return TileLayout(buffer, window, lanes, reads=steps, writes=steps, offsets=offsets, aligned=False)
