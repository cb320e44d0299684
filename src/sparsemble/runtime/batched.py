"""Planning for 16, 8 or 4 images side by side: a vector holds one pixel of each."""

from typing import final

from sparsemble.runtime.execution_plan import (
    Address,
    Choice,
    Plan,
    Tiles,
    add_elementwise,
    add_pack,
    add_pool,
    add_tiles,
)
from sparsemble.runtime.fused import Fused, Pool, Product, Scale, Sum
from sparsemble.runtime.kernels.jit import registers
from sparsemble.runtime.layout import displacements, planes, reading, tile_shapes, tiles
from sparsemble.runtime.planner import SPARE_REGISTERS, TILES_TRIED, Planner, block_for, outputs_of


@final
class BatchPlanner(Planner):
    """A vector holds one pixel of several images.

    Args:
        fused: the operations.
        lanes: images side by side.
    """

    def __init__(self, fused: Fused, lanes: int) -> None:
        super().__init__(fused, planes(fused, lanes), {})
        self.lanes = lanes

    def pack(self, found: Plan) -> None:
        """Add what brings images in."""
        add_pack(found, self.lanes)

    def prepare(self, found: Plan, place: int) -> None:
        """Add nothing: frames of zeros are all that windows need."""

    def candidates(self, place: int, operation: Product) -> list[Choice]:
        """Return ways through a product that may be the fastest; first one that is rarely bad."""
        found = self.empty()
        read, written = found.plane(operation.source), found.plane(operation.out)
        choices = []
        for outputs in outputs_of(operation):
            shapes = tile_shapes(written.height, written.width, (registers() - SPARE_REGISTERS) // outputs)
            kernel = operation.weight.shape[2:]
            rows, columns = ((t - 1) * s + k for t, s, k in zip(shapes[0], operation.stride, kernel, strict=True))
            block = block_for(rows * columns * read.column)
            choices += [Choice(tile, block, outputs) for tile in shapes[:TILES_TRIED]]
        return choices

    def product(self, found: Plan, place: int, choice: Choice) -> None:
        """Add a convolution or linear layer."""
        operation = self.fused.operations[place]
        assert isinstance(operation, Product)
        read, written = found.plane(operation.source), found.plane(operation.out)
        source = reading(operation, read)
        through = Tiles(
            lanes=read.lanes,
            reads=displacements(source.row, source.column, choice.tile),
            writes=displacements(written.row, written.column, choice.tile),
            places=tiles(source, written, choice.tile),
            aligned=True,
        )
        add_tiles(found, operation, choice, through, (Address(operation.source), source))

    def pool(self, found: Plan, place: int, operation: Pool) -> None:
        """Add a pool."""
        add_pool(found, operation)

    def elementwise(self, found: Plan, operation: Scale | Sum) -> None:
        """Add a scale and shift, or a sum."""
        plane = found.plane(operation.source)
        add_elementwise(found, operation, self.lanes, (plane.height, plane.width))
