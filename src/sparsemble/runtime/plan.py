"""From fused operations to kernels and their arguments, 16, 8 or 4 images side by side."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.fused import Fused, Operation, Pool, Product, Scale, Sum, sources
from sparsemble.runtime.kernels.compiled import registers
from sparsemble.runtime.kernels.products import Products
from sparsemble.runtime.kernels.small import Driver, Elementwise, Gather, Pack
from sparsemble.runtime.kernels.writer import Kernel
from sparsemble.runtime.layout import Plane, Reading, displacements, planes, reading, tile_shapes, tiles
from sparsemble.runtime.network import Pair
from sparsemble.runtime.records import stream

NEAREST_CACHE = 48 * 1024
"""Bytes of input that a tile may bring into the nearest cache before all outputs have read it."""
SPARE_REGISTERS = 4
DRIVER = "network"


@final
@dataclass(frozen=True)
class Choice:
    """How a sum of products is gone through."""

    tile: Pair
    """Rows and columns of output pixels whose sums are kept in registers."""
    block: int
    """Input channels gone through for all outputs before the next ones."""
    outputs: int
    """Channels that share records."""


@final
@dataclass(frozen=True)
class Address:
    """A place in the memory of a run: a buffer."""

    buffer: int


Argument = Address | NDArray[Any] | int


@final
@dataclass(frozen=True, eq=False)
class Step:
    """A kernel, what it is called with, and the range it goes over."""

    kernel: str
    arguments: tuple[Argument, ...]
    first: int
    last: int


@final
@dataclass(eq=False)
class Plan:
    """What runs a network: kernels by name, and steps in order; the first one packs images."""

    fused: Fused
    planes: list[Plane]
    kernels: dict[str, Kernel] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def add(self, kernel: Kernel, arguments: tuple[Argument, ...], last: int) -> None:
        """Add a step; equal kernels are one function."""
        names = {known: name for name, known in self.kernels.items()}
        name = names.get(kernel) or f"kernel{len(self.kernels)}"
        self.kernels[name] = kernel
        self.steps.append(Step(name, arguments, 0, last))

    def functions(self) -> dict[str, Kernel]:
        """Return all functions of the network, the one that calls the others last."""
        return {**self.kernels, DRIVER: Driver(tuple(step.kernel for step in self.steps))}


def plan(fused: Fused, lanes: int, choices: Mapping[int, Choice] | None = None) -> Plan:
    """Plan a network.

    Args:
        fused: its operations.
        lanes: images side by side.
        choices: how to go through products, by the place of the operation; others are guessed.
    """
    found = Plan(fused, planes(fused, lanes))
    image = found.planes[0]
    constants = np.stack([fused.scale, fused.shift], 1).astype(np.float32)
    size = 4 * image.height * image.width
    pack = Pack(lanes, image.height, image.width, size * image.channels, image.origin, image.row, image.plane)
    found.add(pack, (0, Address(0), constants, 0), image.channels)
    for place, operation in enumerate(fused.operations):
        if isinstance(operation, Product):
            choice = (choices or {}).get(place) or guess(operation, found.planes)
            add_product(found, operation, choice)
        elif isinstance(operation, Pool):
            add_pool(found, operation)
        else:
            add_elementwise(found, operation)
    return found


def guess(operation: Product, layout: list[Plane]) -> Choice:
    """Return a choice that is rarely bad."""
    read, written = layout[operation.source], layout[operation.out]
    outputs = 4 if is_dense(operation) else 1
    most = (registers() - SPARE_REGISTERS) // outputs
    tile = tile_shapes(written.height, written.width, most)[0]
    return Choice(tile, block_for(operation, read, tile), outputs)


def block_for(operation: Product, read: Plane, tile: Pair) -> int:
    """Return how many channels of a tile's input fit the nearest cache."""
    kernel = operation.weight.shape[2:]
    rows, columns = ((t - 1) * s + k for t, s, k in zip(tile, operation.stride, kernel, strict=True))
    return max(1, NEAREST_CACHE // int(rows * columns * read.column))


def is_dense(operation: Product) -> bool:
    """Return whether so many weights are left that blocks with zeros among them cost less than single weights."""
    return operation.weight.nonzeros > 0.6 * operation.weight.size and len(operation.bias) >= 4


def add_product(found: Plan, operation: Product, choice: Choice) -> None:
    """Add a convolution or linear layer."""
    read = found.planes[operation.source]
    products(found, operation, choice, reading(operation, read), Address(operation.source), read.lanes)


def products(
    found: Plan, operation: Product, choice: Choice, source: Reading, at: Address, lanes: int, vector: int = 1
) -> None:
    """Add the kernel of a product.

    Args:
        found: the plan.
        operation: the product.
        choice: how to go through it.
        source: where it finds its inputs.
        at: the buffer they are in.
        lanes: floats in a vector.
        vector: output columns in a vector.
    """
    written = found.planes[operation.out]
    kernel = Products(
        lanes=lanes,
        outputs=choice.outputs,
        reads=displacements(source.row, source.column, choice.tile, vector),
        writes=displacements(written.row, written.column, choice.tile, vector),
        plane=written.plane,
        residual=operation.residual is not None,
        relu=operation.relu,
        aligned=vector == 1,
    )
    work = stream(operation, source, written, outputs=choice.outputs, block=choice.block)
    all_tiles = tiles(source, written, choice.tile, vector)
    residual = operation.out if operation.residual is None else operation.residual
    arguments = (
        at,
        Address(operation.out),
        Address(residual),
        work.records,
        work.heads,
        work.head_count,
        all_tiles,
    )
    found.add(kernel, arguments, len(all_tiles))


def add_pool(found: Plan, operation: Pool) -> None:
    """Add a pool."""
    read, written = found.planes[operation.source], found.planes[operation.out]
    rows = []
    for y, x in itertools.product(range(written.height), range(written.width)):
        window = [
            (y * operation.stride[0] - operation.padding[0] + v, x * operation.stride[1] - operation.padding[1] + u)
            for v, u in itertools.product(range(operation.kernel[0]), range(operation.kernel[1]))
        ]
        inside = [(v, u) for v, u in window if 0 <= v < read.height and 0 <= u < read.width]
        # Padding never is the largest; in a mean it is the 0 of the frame.
        taken = [p if p in inside else inside[0] for p in window] if operation.largest else window
        rows.append([written.place(y, x), *(read.place(v, u) for v, u in taken)])
    size = operation.kernel[0] * operation.kernel[1]
    kernel = Gather(
        lanes=read.lanes,
        vectors=len(rows),
        window=size,
        how="largest" if operation.largest else "sum",
        scale=1.0 if operation.largest else 1 / size,
        read_plane=read.plane,
        write_plane=written.plane,
        aligned=True,
    )
    table = np.array(rows, dtype=np.uint32)
    found.add(kernel, (Address(operation.source), Address(operation.out), table), written.channels)


def add_elementwise(found: Plan, operation: Scale | Sum, vector: int = 1) -> None:
    """Add a scale and shift, or a sum; `vector` columns at once where each lies alone."""
    read, written = found.planes[operation.source], found.planes[operation.out]
    kernel = Elementwise(
        lanes=read.lanes * vector,
        rows=read.height,
        row_vectors=read.width // vector,
        read_offset=read.origin,
        read_row=read.row,
        read_plane=read.plane,
        write_offset=written.origin,
        write_row=written.row,
        write_plane=written.plane,
        what="scale" if isinstance(operation, Scale) else "add",
        relu=operation.relu,
        aligned=vector == 1,
    )
    constants = np.zeros((0, 2), np.float32)
    if isinstance(operation, Scale):
        constants = np.stack([operation.scale, operation.shift], 1).astype(np.float32)
    other = operation.other if isinstance(operation, Sum) else operation.source
    arguments = (Address(operation.source), Address(other), Address(operation.out), constants)
    found.add(kernel, arguments, read.channels)


def last_uses(fused: Fused) -> dict[int, int]:
    """Return after which operation nobody needs a buffer any more; the answer is needed to the end."""
    found = {0: -1}
    operations: list[Operation] = list(fused.operations)
    for place, operation in enumerate(operations):
        found.setdefault(operation.out, place)
        for buffer in sources(operation):
            found[buffer] = place
    found[fused.answer] = len(operations)
    return found
