"""Planning for one image at a time: a vector holds neighbouring outputs of a plane."""

import math
from typing import final

import numpy as np

from sparsemble.runtime.compiler.execution_plan import (
    BufferAddress,
    ExecutionPlan,
    KernelConfig,
    TileLayout,
    add_elementwise,
    add_gather,
    add_pack,
    add_pool,
    add_tiles,
)
from sparsemble.runtime.compiler.fused import AddOp, AffineOp, ConvOp, FusedGraph, PoolOp
from sparsemble.runtime.compiler.im2col import Im2col, single, vector_width, window_displacements
from sparsemble.runtime.compiler.layout import reading, starts
from sparsemble.runtime.compiler.planner import (
    SPARE_REGISTERS,
    TILES_TRIED,
    Planner,
    channels_in_cache,
    output_block_sizes,
)
from sparsemble.runtime.kernels.im2col import Im2colScalar, Im2colVector
from sparsemble.runtime.kernels.jit import registers

LONGEST_CODE = 256
"""Vectors of a row of copies up to which each has code of its own."""
MOST_CHAINS = 8
BUSY = 16
"""Sums side by side that keep a processor from waiting for its own results."""


@final
class SingleImagePlanner(Planner):
    """One image; a vector holds neighbouring outputs, and a tile is a row of vectors.

    Args:
        fused: the operations.
        lanes: the most outputs in a vector.
    """

    def __init__(self, fused: FusedGraph, lanes: int) -> None:
        self.lanes = lanes
        layout = single(fused, lanes)
        super().__init__(fused, layout.buffers, layout.lives)
        self._of = layout.of

    def pack(self, found: ExecutionPlan) -> None:
        """Add what brings an image in."""
        add_pack(found, 1)

    def elementwise(self, found: ExecutionPlan, operation: AffineOp | AddOp) -> None:
        """Add a scale and shift, or a sum."""
        lanes, vectors = self._vectors(found, operation.out)
        add_elementwise(found, operation, lanes, (1, vectors))

    def _vectors(self, found: ExecutionPlan, buffer: int) -> tuple[int, int]:
        """Return how many floats a vector of a plane takes, and how many vectors a channel."""
        plane = found.plane(buffer)
        lanes = vector_width(plane.height, plane.width, self.lanes)
        return lanes, -(-plane.height * plane.width // lanes)

    def _copies(self, place: int) -> tuple[int, Im2col] | None:
        """Return the copies that an operation reads, if it does not read the plane itself."""
        buffer = self._of.get(place)
        if buffer is None:
            return None
        found = self.buffers[buffer]
        assert isinstance(found, Im2col)
        return buffer, found

    def prepare(self, found: ExecutionPlan, place: int) -> None:
        """Make the copies that this operation is the first to read."""
        copied = self._copies(place)
        if copied is None or self.lives[copied[0]][0] != place:
            return
        operation, (buffer, copies) = self.fused.operations[place], copied
        assert isinstance(operation, ConvOp | PoolOp)
        read, width = found.plane(operation.source), copies.size[1]
        lanes = vector_width(1, width, self.lanes)
        if -(-width // lanes) * len(copies.columns) <= LONGEST_CODE:
            table = copies.lines(read)
            kernel: Im2colVector | Im2colScalar = Im2colVector(
                lanes=lanes,
                starts=tuple(starts(width, lanes).tolist()),
                stride=copies.stride[1],
                columns=copies.columns,
                width=read.width,
                copy=copies.column,
                read_plane=read.plane,
                write_plane=copies.plane,
            )
        else:
            table = copies.runs(read)
            kernel = Im2colScalar(stride=copies.stride[1], read_plane=read.plane, write_plane=copies.plane)
        # Reading the planes that other threads wrote, one after the other, costs less than reading copies they made.
        found.add_for_each(
            kernel, (BufferAddress(operation.source), BufferAddress(buffer), table, len(table)), read.channels
        )

    def candidate_configs(self, place: int, operation: ConvOp) -> list[KernelConfig]:
        """Return ways through a product that may be the fastest; first one that is rarely bad."""
        copied = self._copies(place)
        lanes, vectors = self._vectors(self.empty(), operation.out)
        found = []
        for outputs in output_block_sizes(operation):
            most = (registers() - SPARE_REGISTERS) // outputs
            # A record costs its vectors and about two more.
            widths = sorted(range(1, min(vectors, most) + 1), key=lambda w: (math.ceil(vectors / w) * (w + 2), w))
            tile = 4 * lanes * widths[0]
            block = channels_in_cache(copied[1].read_by(tile) if copied else tile)
            for wide in widths[:TILES_TRIED]:
                usual = max(1, min(MOST_CHAINS // outputs, BUSY // (wide * outputs)))
                chains = dict.fromkeys((usual, max(1, usual // 2)))
                found += [KernelConfig((1, wide), block, outputs, many) for many in chains]
        return found

    def product(self, found: ExecutionPlan, place: int, choice: KernelConfig) -> None:
        """Add a convolution or linear layer."""
        operation, copied = self.fused.operations[place], self._copies(place)
        assert isinstance(operation, ConvOp)
        if copied:
            buffer, copies = copied
            source = copies.reading(*window_displacements(operation))
        else:
            buffer, source = operation.source, reading(operation, found.plane(operation.source))
        lanes, vectors = self._vectors(found, operation.out)
        wide = choice.tile[1]
        begins = starts(vectors, wide) * 4 * lanes
        steps = tuple(4 * lanes * i for i in range(wide))
        places = np.stack([source.base + begins, begins], 1).astype(np.uint32)
        through = TileLayout(lanes=lanes, reads=steps, writes=steps, places=places, aligned=False)
        add_tiles(found, operation, choice, through, (BufferAddress(buffer), source))

    def pool(self, found: ExecutionPlan, place: int, operation: PoolOp) -> None:
        """Add a pool."""
        copied = self._copies(place)
        if not copied:
            add_pool(found, operation)
            return
        buffer, copies = copied
        lanes, vectors = self._vectors(found, operation.out)
        source = copies.reading(*window_displacements(operation))
        taps = np.add.outer(source.down, source.across).reshape(-1).astype(np.uint32)
        table = np.empty((vectors, 1 + len(taps)), np.uint32)
        table[:, 0] = np.arange(vectors) * 4 * lanes
        np.add(table[:, :1], taps, out=table[:, 1:])
        add_gather(found, operation, table, lanes, BufferAddress(buffer), copies.plane)
