"""Plans for 16, 8 or 4 images side by side: a vector holds one pixel of each."""

from typing import final

from sparsemble.runtime.compiler.execution_plan import ExecutionPlan, KernelConfig
from sparsemble.runtime.compiler.fused import ConvOp, FusedGraph
from sparsemble.runtime.compiler.im2col import BufferLayout
from sparsemble.runtime.compiler.integer_steps import LARGEST_TILE, integer_configs
from sparsemble.runtime.compiler.layout import (
    Plane,
    TileLayout,
    batch_planes,
    candidate_tiles,
    tile_offsets,
    window_layout,
)
from sparsemble.runtime.compiler.planner import (
    TILES_TRIED,
    Planner,
    channels_in_cache,
    max_tile_vectors,
)
from sparsemble.runtime.network import Pair


@final
class BatchPlanner(Planner):
    """A vector holds one pixel of `lanes` images."""

    def __init__(self, fused: FusedGraph, lanes: int) -> None:
        super().__init__(fused, BufferLayout([*batch_planes(fused, lanes)]), lanes)

    def vector_grid(self, plane: Plane) -> tuple[int, int, int]:
        """Return the lanes, and a vector for each pixel."""
        return self.lanes, plane.height, plane.width

    def add_copies(self, plan: ExecutionPlan, index: int) -> None:
        """Add nothing: windows read the planes, whose frames are the padding."""

    def candidate_configs(self, index: int, operation: ConvOp) -> list[KernelConfig]:
        """Return configurations that may be the fastest; the first one is rarely slow."""
        read, written = self.layout.plane(operation.source), self.layout.plane(operation.out)

        def block_of(tile: Pair) -> int:
            kernel = operation.weight.shape[2:]
            rows, columns = ((t - 1) * s + k for t, s, k in zip(tile, operation.stride, kernel, strict=True))
            return channels_in_cache(rows * columns * read.column)

        if self.fused.reads_integers(operation):
            tiles = candidate_tiles(written.height, written.width, LARGEST_TILE)
            return integer_configs(tiles[:TILES_TRIED], block_of(tiles[0]))
        configs = []
        for outputs in self.output_blocks(operation):
            tiles = candidate_tiles(written.height, written.width, max_tile_vectors(outputs))
            block = block_of(tiles[0])
            configs += [KernelConfig(tile, block, outputs) for tile in tiles[:TILES_TRIED]]
        return configs

    def tile_layout(self, index: int, operation: ConvOp, config: KernelConfig) -> TileLayout:
        """Return tiles of rows and columns."""
        written, window = (
            self.layout.plane(operation.out),
            window_layout(operation, self.layout.plane(operation.source)),
        )
        return TileLayout(
            buffer=operation.source,
            window=window,
            lanes=self.lanes,
            reads=_vector_offsets(window.row, window.column, config.tile),
            writes=_vector_offsets(written.row, written.column, config.tile),
            offsets=tile_offsets(window, written, config.tile),
            aligned=True,
        )


def _vector_offsets(row: int, column: int, tile: Pair) -> tuple[int, ...]:
    """Return the bytes from the first vector of a tile to each, of rows and columns that many bytes apart."""
    return tuple(y * row + x * column for y in range(tile[0]) for x in range(tile[1]))
