"""Where every value of a network lies in memory, and what each kernel reads and writes."""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.fused import AddOp, ConvOp, FusedGraph, PoolOp
from sparsemble.runtime.network import Pair, Shape

SPARE_CHANNELS = 7
"""Behind every buffer; outputs that share a head may be so many more than there are."""


@final
@dataclass(frozen=True)
class Plane:
    """A buffer: channels of rows of vectors, with a frame of zeros around each channel.

    In batch lanes a vector holds one pixel of `lanes` images; bytes count all of it.
    """

    channels: int
    height: int
    width: int
    frame: Pair
    """Rows above and below, columns left and right."""
    lanes: int
    padded: int = 4
    """A channel takes a multiple of so many bytes."""

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
        return self.place(0, 0)

    def place(self, y: int, x: int) -> int:
        """Return the bytes from the start of a channel to a pixel; negative ones lie in the frame."""
        return (y + self.frame[0]) * self.row + (x + self.frame[1]) * self.column

    @property
    def bytes(self) -> int:
        """Size of the buffer, with spare channels for blocks of outputs that are not full."""
        return self.plane * (self.channels + SPARE_CHANNELS)


def planes(fused: FusedGraph, lanes: int) -> list[Plane]:
    """Return the layout of every buffer in batch lanes: framed as widely as its readers' padding needs.

    What is added to each other lies alike.
    """
    frames = [(0, 0)] * len(fused.shapes)
    for operation in fused.operations:
        if isinstance(operation, ConvOp | PoolOp):
            frames[operation.source] = _wider(frames[operation.source], operation.padding)
    alike = [
        [operation.residual, operation.out] if isinstance(operation, ConvOp) else [operation.source, operation.other]
        for operation in fused.operations
        if isinstance(operation, AddOp) or (isinstance(operation, ConvOp) and operation.residual is not None)
    ]
    while True:
        before = list(frames)
        for pair in alike:
            both = _wider(*(frames[buffer] for buffer in pair if buffer is not None))
            for buffer in pair:
                if buffer is not None:
                    frames[buffer] = both
        if frames == before:
            break
    return [Plane(*_three(shape), frame, lanes) for shape, frame in zip(fused.shapes, frames, strict=True)]


def _wider(a: Pair, b: Pair) -> Pair:
    return max(a[0], b[0]), max(a[1], b[1])


def _three(shape: Shape) -> tuple[int, int, int]:
    return shape[0], shape[1], shape[2]


@final
@dataclass(frozen=True, eq=False)
class WindowLayout:
    """Where a product finds its inputs, in bytes."""

    plane: int
    """From one input channel to the next."""
    down: NDArray[np.int64]
    """(height) of the window: from its first row to each of its others."""
    across: NDArray[np.int64]
    """(width) of the window: from its first column to each of its others."""
    base: int
    """From the start of a channel to the window of the first output."""
    row: int
    """From the window of one output to that of the next below."""
    column: int
    """From the window of one output to that of the next to its right."""

    def offsets(self, taps: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Return from an output's window to some of its taps, which are places in (channels, height, width)."""
        channel, place = np.divmod(taps, np.uint32(len(self.down) * len(self.across)))
        row, column = np.divmod(place, np.uint32(len(self.across)))
        found = channel.astype(np.int64) * self.plane + self.down[row] + self.across[column]
        return found.astype(np.uint32)


def reading(operation: ConvOp, read: Plane) -> WindowLayout:
    """Return how a product reads a plane."""
    (down, across), kernel = operation.dilation, operation.weight.shape[2:]
    down_to, across_to = np.arange(kernel[0]) * down * read.row, np.arange(kernel[1]) * across * read.column
    base = read.place(-operation.padding[0], -operation.padding[1])
    return WindowLayout(
        read.plane, down_to, across_to, base, operation.stride[0] * read.row, operation.stride[1] * read.column
    )


def tiles(source: WindowLayout, written: Plane, tile: Pair, vector: int = 1) -> NDArray[np.uint32]:
    """Return {input offset, output offset} of every tile; the last ones overlap where the tile does not fit.

    Args:
        source: where the windows are.
        written: layout of the output.
        tile: rows, and vectors in a row.
        vector: output columns in a vector.
    """
    y, x = starts(written.height, tile[0])[:, None], starts(written.width, tile[1] * vector)
    found = np.empty((len(y), len(x), 2), np.uint32)
    found[..., 0] = source.base + y * source.row + x * source.column
    found[..., 1] = written.origin + y * written.row + x * written.column
    return found.reshape(-1, 2)


def starts(size: int, step: int) -> NDArray[np.int64]:
    """Return where pieces of a length begin that cover a size; the last one overlaps where they do not fit."""
    return np.minimum(np.arange(0, size, step), size - step)


def displacements(row: int, column: int, tile: Pair, vector: int = 1) -> tuple[int, ...]:
    """Return where the vectors of a tile lie, in bytes from its first one."""
    return tuple(y * row + x * vector * column for y in range(tile[0]) for x in range(tile[1]))


def candidate_tiles(height: int, width: int, most: int) -> list[Pair]:
    """Return tiles of at most so many vectors, those first that waste least: by overlap, and by being small."""

    def cost(tile: Pair) -> float:
        vectors = tile[0] * tile[1]
        count = math.ceil(height / tile[0]) * math.ceil(width / tile[1])
        # A record costs its vectors and about two more; every vector of overlap is work for nothing; and the nearer to
        # a square, the fewer inputs two tiles share.
        shared = (tile[0] + 2) * (tile[1] + 2) / vectors
        return count * (vectors + 2) / (height * width) + 0.02 * shared + (0.05 if vectors > 16 else 0)

    found = [
        (rows, columns)
        for rows in range(1, min(height, most) + 1)
        for columns in range(1, min(width, most // rows) + 1)
    ]
    return sorted(found, key=cost)
