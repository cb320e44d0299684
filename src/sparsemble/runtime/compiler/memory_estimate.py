"""How large the tables are that a network is planned with: of windows, tiles and weights."""

from sparsemble.runtime.compiler.fused import ConvOp, FusedGraph, FusedOp, PoolOp

RECORD = 8
"""Bytes that a kernel reads for a weight that is not 0."""
TILE = 16
"""Bytes that say where a tile is read and written; each takes one output or more."""
DISPLACEMENT = 256
"""Bytes that it takes to list a row or a column of a window, and where it is found."""
PLACE = 8
"""Bytes that it takes to put a place into the table of a pool."""


def table_bytes(fused: FusedGraph) -> int:
    """Return the most bytes that tables take, of one way through the network; they are not made for this."""
    return sum(_of(operation, fused) for operation in fused.operations)


def _of(operation: FusedOp, fused: FusedGraph) -> int:
    _, height, width = fused.shapes[operation.out]
    if isinstance(operation, ConvOp):
        rows, columns = operation.weight.shape[2:]
        return TILE * height * width + RECORD * operation.weight.nonzeros + DISPLACEMENT * (rows + columns)
    if isinstance(operation, PoolOp):
        rows, columns = operation.kernel
        return PLACE * height * width * (1 + rows * columns) + DISPLACEMENT * (rows + columns)
    return 0
