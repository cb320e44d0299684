"""The memory layout of buffers, the offsets at which kernels read and write them, and a bound of their tables."""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.fused import AddOp, ConvOp, FusedGraph, FusedOp, PoolOp
from sparsemble.runtime.network import Pair

SPARE_CHANNELS = 7
"""Behind every buffer: the last block of outputs may have that many channels more than there are."""
RECORD_BYTES = 8
"""Of a non-zero weight in the weight stream."""
TILE_BYTES = 16
"""Of a tile's input and output offset; a tile has one output or more."""
WINDOW_AXIS_BYTES = 256
"""Of one row or one column of a window."""
POOL_OFFSET_BYTES = 8
"""Of one pixel of a pool's window."""


@final
@dataclass(frozen=True)
class Plane:
    """A buffer of channels; each is rows of pixels with a frame of zeros around it.

    A pixel holds `lanes` floats, one an image; all sizes and offsets are in bytes and count all lanes.
    """

    channels: int
    height: int
    width: int
    frame: Pair
    """Rows above and below, columns left and right."""
    lanes: int
    padded: int = 4
    """The size of a channel is a multiple of that many bytes."""
    fill: int = 0
    """The byte of the frame: in 8 bits, the step that means 0; there, a channel stands for four."""

    @property
    def column(self) -> int:
        """Bytes from a pixel to the next."""
        return 4 * self.lanes

    @property
    def row(self) -> int:
        """Bytes from a row to the next."""
        return self.column * (self.width + 2 * self.frame[1])

    @property
    def plane(self) -> int:
        """Bytes from a channel to the next."""
        return -(-self.row * (self.height + 2 * self.frame[0]) // self.padded) * self.padded

    @property
    def origin(self) -> int:
        """Bytes from the start of a channel to its first pixel."""
        return self.offset(0, 0)

    def offset(self, y: int, x: int) -> int:
        """Return the bytes from the start of a channel to a pixel; negative coordinates are in the frame."""
        return (y + self.frame[0]) * self.row + (x + self.frame[1]) * self.column

    @property
    def bytes(self) -> int:
        """Size of the buffer, with spare channels for the last block of outputs."""
        return self.plane * (self.channels + SPARE_CHANNELS)


def batch_planes(fused: FusedGraph, lanes: int) -> list[Plane]:
    """Return the layout of every buffer for `lanes` images side by side.

    A frame is as wide as the padding of the buffer's readers requires. Buffers that are added have equal layouts.
    """
    frames = [(0, 0)] * len(fused.shapes)
    for operation in fused.operations:
        if isinstance(operation, ConvOp | PoolOp):
            frames[operation.source] = _wider(frames[operation.source], operation.padding)
    added = [(o.residual, o.out) for o in fused.operations if isinstance(o, ConvOp) and o.residual is not None]
    added += [(o.addend, o.source) for o in fused.operations if isinstance(o, AddOp)]
    while any(frames[a] != frames[b] for a, b in added):
        for a, b in added:
            frames[a] = frames[b] = _wider(frames[a], frames[b])
    planes = []
    for i, frame in enumerate(frames):
        channels, height, width = fused.planes(i)
        planes.append(Plane(channels, height, width, frame, lanes, fill=fused.fill(i)))
    return planes


def _wider(a: Pair, b: Pair) -> Pair:
    return max(a[0], b[0]), max(a[1], b[1])


@final
@dataclass(frozen=True, eq=False)
class WindowLayout:
    """Where a convolution finds its inputs, in bytes."""

    plane: int
    """From an input channel to the next."""
    down: NDArray[np.int64]
    """(window height) from the first row of a window to each row."""
    across: NDArray[np.int64]
    """(window width) from the first column of a window to each column."""
    base: int
    """From the start of a channel to the window of the first output."""
    row: int
    """From the window of an output to the window of the output below."""
    column: int
    """From the window of an output to the window of the output to its right."""

    def tap_offsets(self, taps: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Return the bytes from an output's window to taps: indices into the flattened input channels and windows."""
        channel, tap = np.divmod(taps, np.uint32(len(self.down) * len(self.across)))
        row, column = np.divmod(tap, np.uint32(len(self.across)))
        offsets = channel.astype(np.int64) * self.plane + self.down[row] + self.across[column]
        return offsets.astype(np.uint32)


@final
@dataclass(frozen=True, eq=False)
class TileLayout:
    """How a convolution reads its inputs, and how its outputs are divided into tiles."""

    buffer: int
    """That is read."""
    window: WindowLayout
    """Where the windows are in it."""
    lanes: int
    """Floats in a vector."""
    reads: tuple[int, ...]
    """Bytes from the tile's input offset to each vector that is read."""
    writes: tuple[int, ...]
    """Bytes from the tile's output offset to each vector that is written."""
    offsets: NDArray[np.uint32]
    """(tiles, 2) input and output offset of every tile."""
    aligned: bool
    """Whether all vectors are aligned."""


def window_layout(operation: ConvOp, read: Plane) -> WindowLayout:
    """Return how a convolution reads a plane."""
    (down, across), kernel = operation.dilation, operation.weight.shape[2:]
    return WindowLayout(
        plane=read.plane,
        down=np.arange(kernel[0]) * down * read.row,
        across=np.arange(kernel[1]) * across * read.column,
        base=read.offset(-operation.padding[0], -operation.padding[1]),
        row=operation.stride[0] * read.row,
        column=operation.stride[1] * read.column,
    )


def tile_offsets(source: WindowLayout, written: Plane, tile: Pair) -> NDArray[np.uint32]:
    """Return (tiles, 2) input and output offset of every tile; the last tiles overlap where the tile does not fit.

    Args:
        source: where the windows are.
        written: layout of the output.
        tile: rows and columns.
    """
    y, x = tile_starts(written.height, tile[0])[:, None], tile_starts(written.width, tile[1])
    offsets = np.empty((len(y), len(x), 2), np.uint32)
    offsets[..., 0] = source.base + y * source.row + x * source.column
    offsets[..., 1] = written.origin + y * written.row + x * written.column
    return offsets.reshape(-1, 2)


def tile_starts(size: int, step: int) -> NDArray[np.int64]:
    """Return the starts of tiles of length `step` that cover `size`; the last one overlaps where they do not fit."""
    return np.minimum(np.arange(0, size, step), size - step)


def candidate_tiles(height: int, width: int, max_vectors: int) -> list[Pair]:
    """Return tiles (rows, columns), those with the lowest estimated cost first.

    Args:
        height: rows of the output.
        width: columns of the output.
        max_vectors: upper bound of rows x columns.
    """

    def cost(tile: Pair) -> float:
        vectors = tile[0] * tile[1]
        count = math.ceil(height / tile[0]) * math.ceil(width / tile[1])
        # A record costs its vectors and about two more; overlapping vectors are computed twice; the nearer a tile is to
        # a square, the fewer inputs it shares with its neighbours.
        shared = (tile[0] + 2) * (tile[1] + 2) / vectors
        return count * (vectors + 2) / (height * width) + 0.02 * shared + (0.05 if vectors > 16 else 0)

    tiles = [
        (rows, columns)
        for rows in range(1, min(height, max_vectors) + 1)
        for columns in range(1, min(width, max_vectors // rows) + 1)
    ]
    return sorted(tiles, key=cost)


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
