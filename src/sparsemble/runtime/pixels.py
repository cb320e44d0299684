"""Planning for one image at a time: a vector holds neighbouring outputs of a plane."""

import math
from collections.abc import Mapping
from typing import final

import numpy as np

from sparsemble.runtime.copies import Copies, displacements_of, single, vector_of
from sparsemble.runtime.fused import Fused, Pool, Product
from sparsemble.runtime.kernels.compiled import registers
from sparsemble.runtime.kernels.spread import Slide, Spread
from sparsemble.runtime.layout import reading
from sparsemble.runtime.plan import (
    SPARE_REGISTERS,
    Address,
    Choice,
    Plan,
    Tiles,
    add_elementwise,
    add_gather,
    add_pack,
    add_pool,
    add_tiles,
    block_for,
    is_dense,
)

LONGEST_CODE = 256
"""Vectors of a row of copies up to which each has code of its own."""
BUSY = 16
"""Sums side by side that keep a processor from waiting for its own results."""


def plan_pixels(fused: Fused, lanes: int, choices: Mapping[int, Choice] | None = None) -> Plan:
    """Plan a network for single images.

    Args:
        fused: its operations.
        lanes: the most outputs in a vector.
        choices: how to go through products, by the place of the operation; tiles count vectors across.
    """
    return _Planning(fused, lanes).run(choices or {})


@final
class _Planning:
    def __init__(self, fused: Fused, lanes: int) -> None:
        self.lanes = lanes
        self.single = single(fused, lanes)
        self.plan = Plan(fused, self.single.buffers, self.single.lives)

    def run(self, choices: Mapping[int, Choice]) -> Plan:
        add_pack(self.plan, 1)
        for place, operation in enumerate(self.plan.fused.operations):
            self._copy(place)
            if isinstance(operation, Product):
                self._product(place, operation, choices.get(place))
            elif isinstance(operation, Pool):
                self._pool(place, operation)
            else:
                lanes, vectors = self._vectors(operation.out)
                add_elementwise(self.plan, operation, lanes, (1, vectors))
        return self.plan

    def _vectors(self, buffer: int) -> tuple[int, int]:
        """Return how many floats a vector of a plane takes, and how many vectors a channel."""
        plane = self.plan.plane(buffer)
        lanes = vector_of(plane.height, plane.width, self.lanes)
        return lanes, -(-plane.height * plane.width // lanes)

    def _copies(self, place: int) -> tuple[int, Copies] | None:
        """Return the copies that an operation reads, if it does not read the plane itself."""
        buffer = self.single.of.get(place)
        if buffer is None:
            return None
        found = self.plan.buffers[buffer]
        assert isinstance(found, Copies)
        return buffer, found

    def _copy(self, place: int) -> None:
        """Make the copies that this operation is the first to read."""
        found = self._copies(place)
        if found is None or self.plan.lives[found[0]][0] != place:
            return
        operation, (buffer, copies) = self.plan.fused.operations[place], found
        assert isinstance(operation, Product | Pool)
        read, width = self.plan.plane(operation.source), copies.size[1]
        lanes = vector_of(1, width, self.lanes)
        starts = tuple(min(start, width - lanes) for start in range(0, width, lanes))
        if len(starts) * len(copies.columns) <= LONGEST_CODE:
            table = copies.lines(read)
            kernel: Spread | Slide = Spread(
                lanes=lanes,
                starts=starts,
                stride=copies.stride[1],
                columns=copies.columns,
                width=read.width,
                copy=copies.column,
                read_plane=read.plane,
                write_plane=copies.plane,
            )
        else:
            table = copies.runs(read)
            kernel = Slide(stride=copies.stride[1], read_plane=read.plane, write_plane=copies.plane)
        self.plan.add(kernel, (Address(operation.source), Address(buffer), table, len(table)), read.channels)

    def _product(self, place: int, operation: Product, choice: Choice | None) -> None:
        copied = self._copies(place)
        if copied:
            buffer, copies = copied
            source = copies.reading(displacements_of(operation))
        else:
            buffer, source = operation.source, reading(operation, self.plan.plane(operation.source))
        lanes, vectors = self._vectors(operation.out)
        choice = choice or _guess(operation, lanes, vectors, copied[1] if copied else None)
        wide = choice.tile[1]
        begins = np.array([min(v, vectors - wide) for v in range(0, vectors, wide)]) * 4 * lanes
        steps = tuple(4 * lanes * i for i in range(wide))
        places = np.stack([source.base + begins, begins], 1).astype(np.uint32)
        through = Tiles(lanes=lanes, reads=steps, writes=steps, places=places, aligned=False)
        add_tiles(self.plan, operation, choice, through, (Address(buffer), source))

    def _pool(self, place: int, operation: Pool) -> None:
        copied = self._copies(place)
        if not copied:
            add_pool(self.plan, operation)
            return
        buffer, copies = copied
        lanes, vectors = self._vectors(operation.out)
        begins = np.arange(vectors)[:, None] * 4 * lanes
        taps = copies.reading(displacements_of(operation)).taps.reshape(1, -1)
        table = np.concatenate([begins, begins + taps], 1).astype(np.uint32)
        add_gather(self.plan, operation, table, lanes, Address(buffer), copies.plane)


def _guess(operation: Product, lanes: int, vectors: int, copies: Copies | None) -> Choice:
    """Return a choice that is rarely bad: tiles with little overlap, and enough sums side by side."""
    outputs = 4 if is_dense(operation) else 1
    most = (registers() - SPARE_REGISTERS) // outputs
    # A record costs its vectors and about two more.
    wide = min(range(1, min(vectors, most) + 1), key=lambda w: (math.ceil(vectors / w) * (w + 2), w))
    chains = max(1, min(8 // outputs, BUSY // (wide * outputs)))
    tile = 4 * lanes * wide
    return Choice((1, wide), block_for(copies.read_by(tile) if copies else tile), outputs, chains)
