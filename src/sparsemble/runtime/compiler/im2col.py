"""Where everything lies when one image runs: planes without frames, and copies of them that windows are read from.

A vector holds neighbouring outputs of a plane, row after row. Seen through one column of a window, the inputs of
neighbouring outputs lie side by side only within a row; so a plane that windows are read from is copied once for each
column of the window, shifted (and thinned out, for strides) until they do throughout, and where rows are shorter than
vectors once more for its rows. Then every read is one whole, aligned vector.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.fused import ConvOp, FusedGraph, PoolOp
from sparsemble.runtime.compiler.layout import Plane, WindowLayout
from sparsemble.runtime.network import Pair

LINE = 64
"""Bytes that memory moves at once."""
RUN = 24
"""Bytes that it takes to put three numbers into a table: where a row is copied from, where to, how much of it."""
Numbers = NDArray[np.int64]
Key = tuple[int, Pair, int, int]
"""What readers that share copies have in common: buffer, stride, output height and width."""


class Rows(NamedTuple):
    """Rows of a plane that a copy holds: those from `first`, every `stride`-th one."""

    downs: tuple[int, ...]
    """The displacements down that it is read for."""
    first: int
    rows: int


@final
@dataclass(frozen=True)
class Im2col:
    """A buffer of copies of a plane: channel, column of the window, rows that go together, rows, outputs across.

    Seen from a place of the window, the inputs of neighbouring outputs lie beside each other. Places outside the plane
    hold 0.
    """

    channels: int
    read: Pair
    """Height and width of the plane."""
    size: Pair
    """Outputs down and across."""
    stride: Pair
    columns: tuple[int, ...]
    """The displacements across that are there, rising."""
    downs: tuple[int, ...]
    """The displacements down, rising."""
    lanes: int
    """Floats of the vectors that are read."""

    @property
    def row(self) -> int:
        """Bytes from row to row."""
        return 4 * self.size[1]

    @functools.cached_property
    def rows(self) -> tuple[Rows, ...]:
        """The copies for one column: displacements share one if it holds their rows, each where a vector begins."""
        vector = 4 * self.lanes
        together = vector // math.gcd(vector, self.row) * self.stride[0]
        found: dict[int, list[int]] = {}
        for down in self.downs:
            found.setdefault(down % together, []).append(down)
        return tuple(
            Rows(tuple(downs), downs[0], self.size[0] + (downs[-1] - downs[0]) // self.stride[0])
            for downs in found.values()
        )

    @property
    def copy(self) -> int:
        """Bytes of one copy."""
        return -(-self.row * max(rows.rows for rows in self.rows) // LINE) * LINE

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
        return self.plane * self.channels + 16 * LINE

    def read_by(self, tile: int) -> int:
        """Return how many bytes of a channel are read for so many bytes of neighbouring outputs."""
        beyond = (self.row * (rows.rows - self.size[0]) for rows in self.rows)
        return len(self.columns) * sum(tile + more for more in beyond)

    def reading(self, downs: Numbers, across: Numbers) -> WindowLayout:
        """Return how outputs find a window of some displacements down and across."""
        down_to = {
            down: i * self.copy + (down - rows.first) // self.stride[0] * self.row
            for i, rows in enumerate(self.rows)
            for down in rows.downs
        }
        across_to = {away: i * self.column for i, away in enumerate(self.columns)}
        down_taps, across_taps = (
            np.array([to[place] for place in places.tolist()], np.int64)
            for to, places in ((down_to, downs), (across_to, across))
        )
        return WindowLayout(self.plane, down_taps, across_taps, 0, self.row, 4)

    def lines(self, source: Plane) -> NDArray[np.uint32]:
        """Return {place in the plane, place in the copies of the first column} of every row that is not all 0."""
        found = []
        for i, rows in enumerate(self.rows):
            step = self.stride[0]
            first = max(0, -(rows.first // step))
            row = np.arange(first, max(first, min(rows.rows, (self.read[0] - 1 - rows.first) // step + 1)))
            here = source.origin + (rows.first + row * step) * source.row
            found.append(np.stack([here, i * self.copy + row * self.row], 1).astype(np.uint32))
        return np.concatenate(found)

    def runs(self, source: Plane) -> NDArray[np.uint32]:
        """Return {place in the plane, place in the copies, floats} of all that is not 0, a run at a time."""
        lines, found = self.lines(source), [np.zeros((0, 3), np.uint32)]
        for i, away in enumerate(self.columns):
            first = max(0, -(away // self.stride[1]))
            last = min(self.size[1], (self.read[1] - 1 - away) // self.stride[1] + 1)
            if first < last:
                here, there = 4 * (first * self.stride[1] + away), i * self.column + 4 * first
                found.append(np.insert(lines + np.array([here, there], np.uint32), 2, last - first, axis=1))
        return np.concatenate(found)

    @property
    def table_bytes(self) -> int:
        """Most bytes that it takes to make the table of what is copied."""
        return RUN * len(self.columns) * sum(min(rows.rows, self.read[0]) for rows in self.rows)


def window_displacements(operation: ConvOp | PoolOp) -> tuple[Numbers, Numbers]:
    """Return how far the places of the window lie from the output's own, down and across."""
    if isinstance(operation, ConvOp):
        size, dilation = operation.weight.shape[2:], operation.dilation
    else:
        size, dilation = operation.kernel, (1, 1)
    down, across = (np.arange(n) * d - p for n, d, p in zip(size, dilation, operation.padding, strict=True))
    return down, across


@final
@dataclass
class Single:
    """The buffers of a run of one image."""

    buffers: list[Plane | Im2col]
    """Those of the operations, then copies."""
    lives: dict[int, Pair] = field(default_factory=dict)
    """The first and the last operation that needs a copy."""
    of: dict[int, int] = field(default_factory=dict)
    """The copy that an operation reads, by its place; others read the plane itself."""


def single(fused: FusedGraph, lanes: int) -> Single:
    """Lay out a run of one image."""
    found = Single([_flat(shape, lanes) for shape in fused.shapes])
    sharing: dict[Key, list[int]] = {}
    for place, operation in enumerate(fused.operations):
        if isinstance(operation, ConvOp | PoolOp) and _needs_copies(operation, fused):
            height, width = fused.shapes[operation.out][1:]
            sharing.setdefault((operation.source, operation.stride, height, width), []).append(place)
    for (source, stride, height, width), places in sharing.items():
        downs, across = zip(*(window_displacements(one) for one in _at(fused, places)), strict=True)
        channels, *read = fused.shapes[source]
        copies = Im2col(
            channels=channels,
            read=(read[0], read[1]),
            size=(height, width),
            stride=stride,
            columns=tuple(int(x) for x in np.unique(np.concatenate(across))),
            downs=tuple(int(y) for y in np.unique(np.concatenate(downs))),
            lanes=vector_width(height, width, lanes),
        )
        buffer = len(found.buffers)
        found.buffers.append(copies)
        found.lives[buffer] = (places[0], places[-1])
        found.of |= dict.fromkeys(places, buffer)
    return found


def vector_width(height: int, width: int, lanes: int) -> int:
    """Return how many outputs of a plane a vector takes: a power of two, at most all."""
    return min(lanes, 1 << int(math.log2(height * width)))


def _flat(shape: tuple[int, ...], lanes: int) -> Plane:
    channels, height, width = shape
    return Plane(channels, height, width, (0, 0), 1, padded=4 * vector_width(height, width, lanes))


def _needs_copies(operation: ConvOp | PoolOp, fused: FusedGraph) -> bool:
    """Return whether neighbouring outputs do not find their inputs side by side in the plane."""
    height, width = fused.shapes[operation.out][1:]
    if height * width == 1 and operation.padding == (0, 0):
        return False
    if isinstance(operation, PoolOp):
        # Padding is not 0 to the largest: that is looked up place by place.
        return not operation.largest or operation.padding == (0, 0)
    downs, across = window_displacements(operation)
    return (
        bool(downs.any() or across.any())
        or operation.stride != (1, 1)
        or fused.shapes[operation.source][1:] != (height, width)
    )


def _at(fused: FusedGraph, places: list[int]) -> Iterator[ConvOp | PoolOp]:
    for operation in (fused.operations[place] for place in places):
        assert isinstance(operation, ConvOp | PoolOp)
        yield operation
