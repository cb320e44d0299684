"""The memory layout for one image: planes without frames, and shifted copies of them (im2col) that windows read.

A vector holds neighbouring outputs of a plane, row after row. For one column of a window, the inputs of neighbouring
outputs are contiguous only within a row. So a plane that windows read is copied once for each column of the
window, shifted (and subsampled, for strides), and once more for each row of the window where rows are shorter than
vectors. Then every read is one whole, aligned vector.
"""

import functools
import math
from dataclasses import dataclass, field
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.fused import ConvOp, FusedGraph, PoolOp
from sparsemble.runtime.compiler.layout import Plane, WindowLayout
from sparsemble.runtime.network import Pair

CACHE_LINE = 64
"""Bytes."""
RUN_BYTES = 24
"""Of an entry of the copy table: source offset, target offset, length."""
Numbers = NDArray[np.int64]
SharingKey = tuple[int, Pair, int, int]
"""Operations with equal buffer, stride, output height and width share copies."""


class RowCopy(NamedTuple):
    """Rows of a plane in one copy, every `stride`-th one from the first displacement on."""

    downs: tuple[int, ...]
    """The vertical displacements of the window that read this copy, rising."""
    rows: int


@final
@dataclass(frozen=True)
class Im2col:
    """A buffer of copies of a plane: (channel, column of the window, row copy, row, output column).

    For one pixel of the window, the inputs of neighbouring outputs are contiguous. Pixels outside the plane are 0.
    """

    channels: int
    read: Pair
    """Height and width of the plane."""
    size: Pair
    """Rows and columns of the output."""
    stride: Pair
    columns: tuple[int, ...]
    """The horizontal displacements of the window, rising."""
    downs: tuple[int, ...]
    """The vertical displacements, rising."""
    lanes: int
    """Floats of the vectors that are read."""
    fill: int = 0
    """The byte of pixels outside the plane: in 8 bits, the step that means 0."""

    @property
    def row(self) -> int:
        """Bytes from row to row."""
        return 4 * self.size[1]

    @functools.cached_property
    def rows(self) -> tuple[RowCopy, ...]:
        """The copies for one column: displacements share a copy if their rows are in it and begin at a vector."""
        vector = 4 * self.lanes
        period = vector // math.gcd(vector, self.row) * self.stride[0]
        groups: dict[int, list[int]] = {}
        for down in self.downs:
            groups.setdefault(down % period, []).append(down)
        return tuple(
            RowCopy(tuple(downs), self.size[0] + (downs[-1] - downs[0]) // self.stride[0]) for downs in groups.values()
        )

    @property
    def copy(self) -> int:
        """Bytes of one copy."""
        return -(-self.row * max(rows.rows for rows in self.rows) // CACHE_LINE) * CACHE_LINE

    @property
    def column(self) -> int:
        """Bytes from the copies for one column of the window to those for the next."""
        return self.copy * len(self.rows)

    @property
    def plane(self) -> int:
        """Bytes from a channel to the next."""
        return self.column * len(self.columns)

    @property
    def bytes(self) -> int:
        """Size of the buffer; vectors may be read and written beyond its end."""
        return self.plane * self.channels + 16 * CACHE_LINE

    def bytes_read(self, tile: int) -> int:
        """Return the bytes of a channel that are read for `tile` bytes of neighbouring outputs."""
        extra = (self.row * (rows.rows - self.size[0]) for rows in self.rows)
        return len(self.columns) * sum(tile + more for more in extra)

    def window_layout(self, operation: ConvOp | PoolOp) -> WindowLayout:
        """Return how outputs read a window."""
        down_offset = {
            down: i * self.copy + (down - rows.downs[0]) // self.stride[0] * self.row
            for i, rows in enumerate(self.rows)
            for down in rows.downs
        }
        across_offset = {column: i * self.column for i, column in enumerate(self.columns)}
        downs, across = _window_displacements(operation)
        down_offsets = np.array([down_offset[y] for y in downs.tolist()], np.int64)
        across_offsets = np.array([across_offset[x] for x in across.tolist()], np.int64)
        return WindowLayout(self.plane, down_offsets, across_offsets, 0, self.row, 4)

    def pool_table(self, operation: PoolOp, starts: Numbers) -> NDArray[np.uint32]:
        """Return (vectors, 1 + window) output offset, then input offsets of the window's pixels."""
        window = self.window_layout(operation)
        taps = np.add.outer(window.down, window.across).reshape(-1).astype(np.uint32)
        table = np.empty((len(starts), 1 + len(taps)), np.uint32)
        table[:, 0] = starts
        np.add(table[:, :1], taps, out=table[:, 1:])
        return table

    def row_table(self, source: Plane) -> NDArray[np.uint32]:
        """Return (rows, 2) offset in the plane and in the first column's copies, of every row that is not all 0."""
        table = []
        for i, rows in enumerate(self.rows):
            step = self.stride[0]
            first = max(0, -(rows.downs[0] // step))
            row = np.arange(first, max(first, min(rows.rows, (self.read[0] - 1 - rows.downs[0]) // step + 1)))
            offset = source.origin + (rows.downs[0] + row * step) * source.row
            table.append(np.stack([offset, i * self.copy + row * self.row], 1).astype(np.uint32))
        return np.concatenate(table)

    def run_table(self, source: Plane) -> NDArray[np.uint32]:
        """Return (runs, 3) offset in the plane, offset in the copies and length in floats, of all that is not 0."""
        rows, table = self.row_table(source), [np.zeros((0, 3), np.uint32)]
        for i, displacement in enumerate(self.columns):
            first = max(0, -(displacement // self.stride[1]))
            last = min(self.size[1], (self.read[1] - 1 - displacement) // self.stride[1] + 1)
            if first < last:
                read, written = 4 * (first * self.stride[1] + displacement), i * self.column + 4 * first
                table.append(np.insert(rows + np.array([read, written], np.uint32), 2, last - first, axis=1))
        return np.concatenate(table)

    @property
    def table_bytes(self) -> int:
        """Upper bound of the bytes of the table of copies."""
        return RUN_BYTES * len(self.columns) * sum(min(rows.rows, self.read[0]) for rows in self.rows)


def _window_displacements(operation: ConvOp | PoolOp) -> tuple[Numbers, Numbers]:
    """Return the displacements of a window's pixels from the output's own pixel, vertical and horizontal."""
    if isinstance(operation, ConvOp):
        size, dilation = operation.weight.shape[2:], operation.dilation
    else:
        size, dilation = operation.kernel, (1, 1)
    down, across = (np.arange(n) * d - p for n, d, p in zip(size, dilation, operation.padding, strict=True))
    return down, across


@final
@dataclass(frozen=True)
class PartialSums:
    """Memory for the integer sums of one tile, of each thread by itself."""

    bytes: int
    fill: int = 0


@final
@dataclass(frozen=True)
class BufferLayout:
    """The buffers of a run."""

    buffers: list[Plane | Im2col | PartialSums]
    """Those of the operations, then the copies and partial sums."""
    lifetimes: dict[int, Pair] = field(default_factory=dict)
    """The first and the last operation that reads a buffer of copies."""
    copies_of: dict[int, int] = field(default_factory=dict)
    """The buffer of copies that an operation reads, by the operation's index; others read the plane itself."""

    def inputs(self, index: int, buffer: int) -> Plane | Im2col:
        """Return the layout of what an operation reads: a buffer, or copies of it."""
        found = self.buffers[self.copies_of.get(index, buffer)]
        assert not isinstance(found, PartialSums)
        return found

    def plane(self, buffer: int) -> Plane:
        """Return the layout of a buffer that an operation writes."""
        plane = self.buffers[buffer]
        assert isinstance(plane, Plane)
        return plane


def single_image_layout(fused: FusedGraph, lanes: int) -> BufferLayout:
    """Return the layout of a run of one image, with at most `lanes` floats in a vector."""
    layout = BufferLayout([_unframed(fused.planes(i), lanes, fused.fill(i)) for i in range(len(fused.shapes))])
    sharing: dict[SharingKey, dict[int, tuple[Numbers, Numbers]]] = {}
    for i, operation in enumerate(fused.operations):
        if isinstance(operation, ConvOp | PoolOp) and _needs_copies(operation, fused):
            height, width = fused.shapes[operation.out][1:]
            readers = sharing.setdefault((operation.source, operation.stride, height, width), {})
            readers[i] = _window_displacements(operation)
    for (source, stride, height, width), readers in sharing.items():
        downs, across = zip(*readers.values(), strict=True)
        channels, *read = fused.planes(source)
        copies = Im2col(
            channels=channels,
            read=(read[0], read[1]),
            size=(height, width),
            stride=stride,
            columns=tuple(np.unique(np.concatenate(across)).tolist()),
            downs=tuple(np.unique(np.concatenate(downs)).tolist()),
            lanes=vector_width(height * width, lanes),
            fill=fused.fill(source),
        )
        layout.lifetimes[len(layout.buffers)] = (min(readers), max(readers))
        layout.copies_of.update(dict.fromkeys(readers, len(layout.buffers)))
        layout.buffers.append(copies)
    return layout


def vector_width(pixels: int, lanes: int) -> int:
    """Return the outputs in a vector of a plane of `pixels`: a power of two, at most `lanes`."""
    return min(lanes, 1 << pixels.bit_length() - 1)


def _unframed(shape: tuple[int, ...], lanes: int, fill: int) -> Plane:
    channels, height, width = shape
    return Plane(channels, height, width, (0, 0), 1, padded=4 * vector_width(height * width, lanes), fill=fill)


def _needs_copies(operation: ConvOp | PoolOp, fused: FusedGraph) -> bool:
    """Return whether the inputs of neighbouring outputs are not contiguous in the plane."""
    height, width = fused.shapes[operation.out][1:]
    if height * width == 1 and operation.padding == (0, 0):
        return False
    if isinstance(operation, PoolOp):
        # A maximum ignores padding, while copies have zeros there: its windows are gathered pixel by pixel.
        return not operation.is_max or operation.padding == (0, 0)
    return (
        any(offsets.any() for offsets in _window_displacements(operation))
        or operation.stride != (1, 1)
        or fused.shapes[operation.source][1:] != (height, width)
    )
