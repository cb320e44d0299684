"""Plans for 16, 8 or 4 images side by side: a vector holds one pixel of each."""

from typing import final

from sparsemble.runtime.compiler.execution_plan import (
    BufferAddress,
    ExecutionPlan,
    KernelConfig,
    TileLayout,
    add_conv,
    add_elementwise,
    add_pack,
    add_pool,
)
from sparsemble.runtime.compiler.fused import AddOp, AffineOp, ConvOp, FusedGraph, PoolOp
from sparsemble.runtime.compiler.layout import (
    batch_planes,
    candidate_tiles,
    tile_offsets,
    vector_offsets,
    window_layout,
)
from sparsemble.runtime.compiler.planner import (
    SPARE_REGISTERS,
    TILES_TRIED,
    Planner,
    channels_in_cache,
    output_block_sizes,
)
from sparsemble.runtime.kernels.jit import registers


@final
class BatchPlanner(Planner):
    """A vector holds one pixel of several images.

    Args:
        fused: the operations.
        lanes: images side by side.
    """

    def __init__(self, fused: FusedGraph, lanes: int) -> None:
        super().__init__(fused, batch_planes(fused, lanes), {})
        self.lanes = lanes

    def add_pack(self, plan: ExecutionPlan) -> None:
        """Add the step that reads images."""
        add_pack(plan, self.lanes)

    def add_copies(self, plan: ExecutionPlan, index: int) -> None:
        """Add nothing: windows read the planes, whose frames are the padding."""

    def candidate_configs(self, index: int, operation: ConvOp) -> list[KernelConfig]:
        """Return configurations that may be the fastest; the first one is rarely slow."""
        plan = self.empty_plan()
        read, written = plan.plane(operation.source), plan.plane(operation.out)
        configs = []
        for outputs in output_block_sizes(operation):
            tiles = candidate_tiles(written.height, written.width, (registers() - SPARE_REGISTERS) // outputs)
            kernel = operation.weight.shape[2:]
            rows, columns = ((t - 1) * s + k for t, s, k in zip(tiles[0], operation.stride, kernel, strict=True))
            block = channels_in_cache(rows * columns * read.column)
            configs += [KernelConfig(tile, block, outputs) for tile in tiles[:TILES_TRIED]]
        return configs

    def add_conv(self, plan: ExecutionPlan, index: int, config: KernelConfig) -> None:
        """Add a convolution or linear layer."""
        operation = self.fused.operations[index]
        assert isinstance(operation, ConvOp)
        read, written = plan.plane(operation.source), plan.plane(operation.out)
        source = window_layout(operation, read)
        tiles = TileLayout(
            lanes=read.lanes,
            reads=vector_offsets(source.row, source.column, config.tile),
            writes=vector_offsets(written.row, written.column, config.tile),
            offsets=tile_offsets(source, written, config.tile),
            aligned=True,
        )
        add_conv(plan, operation, config, tiles, (BufferAddress(operation.source), source))

    def add_pool(self, plan: ExecutionPlan, index: int, operation: PoolOp) -> None:
        """Add a pool."""
        add_pool(plan, operation)

    def add_elementwise(self, plan: ExecutionPlan, operation: AffineOp | AddOp) -> None:
        """Add a scale and shift, or a sum."""
        plane = plan.plane(operation.source)
        add_elementwise(plan, operation, self.lanes, (plane.height, plane.width))
