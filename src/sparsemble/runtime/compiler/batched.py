"""Planning for 16, 8 or 4 images side by side: a vector holds one pixel of each."""

from typing import final

from sparsemble.runtime.compiler.execution_plan import (
    BufferAddress,
    ExecutionPlan,
    KernelConfig,
    TileLayout,
    add_elementwise,
    add_pack,
    add_pool,
    add_tiles,
)
from sparsemble.runtime.compiler.fused import AddOp, AffineOp, ConvOp, FusedGraph, PoolOp
from sparsemble.runtime.compiler.layout import candidate_tiles, displacements, planes, reading, tiles
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
        super().__init__(fused, planes(fused, lanes), {})
        self.lanes = lanes

    def pack(self, found: ExecutionPlan) -> None:
        """Add what brings images in."""
        add_pack(found, self.lanes)

    def prepare(self, found: ExecutionPlan, place: int) -> None:
        """Add nothing: frames of zeros are all that windows need."""

    def candidate_configs(self, place: int, operation: ConvOp) -> list[KernelConfig]:
        """Return ways through a product that may be the fastest; first one that is rarely bad."""
        found = self.empty()
        read, written = found.plane(operation.source), found.plane(operation.out)
        choices = []
        for outputs in output_block_sizes(operation):
            shapes = candidate_tiles(written.height, written.width, (registers() - SPARE_REGISTERS) // outputs)
            kernel = operation.weight.shape[2:]
            rows, columns = ((t - 1) * s + k for t, s, k in zip(shapes[0], operation.stride, kernel, strict=True))
            block = channels_in_cache(rows * columns * read.column)
            choices += [KernelConfig(tile, block, outputs) for tile in shapes[:TILES_TRIED]]
        return choices

    def product(self, found: ExecutionPlan, place: int, choice: KernelConfig) -> None:
        """Add a convolution or linear layer."""
        operation = self.fused.operations[place]
        assert isinstance(operation, ConvOp)
        read, written = found.plane(operation.source), found.plane(operation.out)
        source = reading(operation, read)
        through = TileLayout(
            lanes=read.lanes,
            reads=displacements(source.row, source.column, choice.tile),
            writes=displacements(written.row, written.column, choice.tile),
            places=tiles(source, written, choice.tile),
            aligned=True,
        )
        add_tiles(found, operation, choice, through, (BufferAddress(operation.source), source))

    def pool(self, found: ExecutionPlan, place: int, operation: PoolOp) -> None:
        """Add a pool."""
        add_pool(found, operation)

    def elementwise(self, found: ExecutionPlan, operation: AffineOp | AddOp) -> None:
        """Add a scale and shift, or a sum."""
        plane = found.plane(operation.source)
        add_elementwise(found, operation, self.lanes, (plane.height, plane.width))
