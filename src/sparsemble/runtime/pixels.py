"""Planning for one image at a time: a vector holds neighbouring columns of a row."""

from collections.abc import Mapping
from typing import final

import numpy as np

from sparsemble.runtime.fused import Fused, Pool, Product
from sparsemble.runtime.kernels.compiled import registers
from sparsemble.runtime.kernels.small import Deal, Pack
from sparsemble.runtime.layout import Plane, Reading, planes, reading, tile_shapes
from sparsemble.runtime.plan import (
    SPARE_REGISTERS,
    Address,
    Choice,
    Plan,
    add_elementwise,
    add_pool,
    block_for,
    is_dense,
    products,
)


def plan_pixels(fused: Fused, lanes: int, choices: Mapping[int, Choice] | None = None) -> Plan:
    """Plan a network for single images.

    Args:
        fused: its operations.
        lanes: the most columns in a vector.
        choices: how to go through products, by the place of the operation; tiles count vectors across.
    """
    return _Planning(fused, lanes).run(choices or {})


def vector_of(plane: Plane, lanes: int) -> int:
    """Return how many columns of a plane a vector takes: a power of two, at most the width."""
    found = lanes
    while found > plane.width:
        found //= 2
    return found


@final
class _Planning:
    def __init__(self, fused: Fused, lanes: int) -> None:
        self.lanes = lanes
        self.plan = Plan(fused, planes(fused, 1))
        self.dealt: dict[int, int] = {}

    def run(self, choices: Mapping[int, Choice]) -> Plan:
        fused, image = self.plan.fused, self.plan.planes[0]
        constants = np.stack([fused.scale, fused.shift], 1).astype(np.float32)
        size = 4 * image.height * image.width * image.channels
        pack = Pack(1, image.height, image.width, size, image.origin, image.row, image.plane)
        self.plan.add(pack, (0, Address(0), constants, 0), image.channels)
        for place, operation in enumerate(fused.operations):
            if isinstance(operation, Product):
                self._product(operation, choices.get(place))
            elif isinstance(operation, Pool):
                add_pool(self.plan, operation)
            else:
                width = self.plan.planes[operation.source].width
                even = width & -width  # the largest power of two that divides it
                add_elementwise(self.plan, operation, min(even, self.lanes))
        return self.plan

    def _product(self, operation: Product, choice: Choice | None) -> None:
        read, written = self.plan.planes[operation.source], self.plan.planes[operation.out]
        vector, at, source = 1, Address(operation.source), reading(operation, read)
        if operation.stride[1] == 1:
            vector = vector_of(written, self.lanes)
        elif operation.stride[1] == 2 and written.width > 1:
            vector = vector_of(written, self.lanes)
            at, source = self._halves(operation, read)
        if choice is None:
            outputs = 4 if is_dense(operation) else 1
            most = (registers() - SPARE_REGISTERS) // outputs
            tile = tile_shapes(written.height, written.width // vector, most)[0]
            choice = Choice(tile, block_for(operation, read, (tile[0], tile[1] * vector)), outputs)
        products(self.plan, operation, choice, source, at, vector, vector)

    def _halves(self, operation: Product, read: Plane) -> tuple[Address, Reading]:
        """Return where a product of stride 2 finds its columns: even and odd ones apart, so that they are close."""
        lanes = min(self.lanes, 8)
        half = -(-(read.width + 2 * read.frame[1] + 1) // (2 * lanes))
        buffer = self.dealt.get(operation.source)
        if buffer is None:
            buffer = self.dealt[operation.source] = len(self.plan.planes)
            self.plan.planes.append(Plane(read.channels, read.height, 2 * half * lanes, (read.frame[0], 0), 1))
            halves = self.plan.planes[buffer]
            rows = read.height + 2 * read.frame[0]
            deal = Deal(lanes, rows, half, read.row, read.plane, halves.row, halves.plane)
            self.plan.add(deal, (Address(operation.source), Address(buffer)), read.channels)
        halves = self.plan.planes[buffer]
        (down, across), kernel = operation.dilation, operation.weight.shape[2:]
        columns = np.arange(kernel[1]) * across - operation.padding[1] + read.frame[1]
        aside = (columns % 2) * half * lanes * 4 + (columns // 2) * 4
        taps = np.arange(kernel[0])[:, None] * down * halves.row + aside
        base = halves.place(-operation.padding[0], 0)
        return Address(buffer), Reading(halves.plane, taps, base, operation.stride[0] * halves.row, 4)
