"""Upper bound of the memory that the tables of an execution plan take: windows, tiles and weight records."""

from sparsemble.runtime.compiler.fused import ConvOp, FusedGraph, FusedOp, PoolOp

RECORD_BYTES = 8
"""Of a non-zero weight in the weight stream."""
TILE_BYTES = 16
"""Of a tile's input and output offset; a tile has one output or more."""
WINDOW_AXIS_BYTES = 256
"""Of one row or one column of a window."""
POOL_OFFSET_BYTES = 8
"""Of one pixel of a pool's window."""


def table_bytes(fused: FusedGraph) -> int:
    """Return the most bytes that the tables of one plan take; nothing is allocated."""
    return sum(_operation_bytes(operation, fused) for operation in fused.operations)


def _operation_bytes(operation: FusedOp, fused: FusedGraph) -> int:
    _, height, width = fused.shapes[operation.out]
    if isinstance(operation, ConvOp):
        rows, columns = operation.weight.shape[2:]
        return (
            TILE_BYTES * height * width
            + RECORD_BYTES * operation.weight.nonzeros
            + WINDOW_AXIS_BYTES * (rows + columns)
        )
    if isinstance(operation, PoolOp):
        rows, columns = operation.kernel
        return POOL_OFFSET_BYTES * height * width * (1 + rows * columns) + WINDOW_AXIS_BYTES * (rows + columns)
    return 0
