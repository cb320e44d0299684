"""Places for the buffers of a network in one block of memory: what is read no more makes room for what comes."""

import math
from dataclasses import dataclass
from typing import final

from sparsemble.runtime.compiler.fused import AddOp, AffineOp, ConvOp, FusedGraph, FusedOp, sources
from sparsemble.runtime.network import Shape

LEVELS = 256
"""Values of a pixel."""
MOST_PIXELS = 256
"""Pixels of an image that is converted to floats; a larger one is read through a table, which takes less memory."""


@final
@dataclass(frozen=True)
class Arena:
    """Where each buffer lies."""

    offsets: tuple[int, ...]
    """By buffer, in words of 4 bytes."""
    size: int
    """Of all of them, in words."""


@dataclass(eq=False)
class _Place:
    """Memory of one buffer, or of several that take over from each other."""

    size: int
    first: int
    last: int
    """First and last operation that needs it; -1: before the first one."""
    offset: int = 0


def place_buffers(graph: FusedGraph) -> Arena:
    """Return offsets at which no two buffers overlap that are needed at the same time; the largest are placed first.

    An operation that computes each number from those at the same index writes over one of them, if it is read no more
    and takes as much memory.
    """
    last_use = {0: 0, graph.logits_buffer: len(graph.operations)}
    for index, operation in enumerate(graph.operations):
        for buffer in (*sources(operation), operation.out):
            last_use[buffer] = max(index, last_use.get(buffer, 0))
    places = {0: _Place(words(graph, 0), -1, last_use[0])}
    for index, operation in enumerate(graph.operations):
        out = operation.out
        size = words(graph, out)
        reused = [b for b in _overwritable(operation) if last_use[b] == index and words(graph, b) == size]
        if reused:
            places[out] = places[reused[0]]
            places[out].last = last_use[out]
        else:
            places[out] = _Place(size, index, last_use[out])
    placed: list[_Place] = []
    for place in sorted(dict.fromkeys(places.values()), key=lambda place: -place.size):
        for other in sorted(placed, key=lambda other: other.offset):
            together = place.first <= other.last and other.first <= place.last
            if together and place.offset < other.offset + other.size and other.offset < place.offset + place.size:
                place.offset = other.offset + other.size
        placed.append(place)
    offsets = tuple(places[buffer].offset if buffer in places else 0 for buffer in range(len(graph.shapes)))
    return Arena(offsets, max(place.offset + place.size for place in placed))


def words(graph: FusedGraph, buffer: int) -> int:
    """Return the size of a buffer in words of 4 bytes: of one number, or of four in 8 bits; of the image, as read."""
    if buffer == 0 and reads_levels(graph):
        return graph.shapes[0][0] * LEVELS
    return -(-math.prod(graph.shapes[buffer]) // (4 if buffer in graph.steps else 1))


def reads_levels(graph: FusedGraph) -> bool:
    """Return whether the image is read as bytes, through a table of their values in each channel."""
    readers = [operation for operation in graph.operations if 0 in sources(operation)]
    convolutions = all(
        isinstance(operation, ConvOp) and operation.residual != 0 and not is_linear(operation, graph.shapes[0])
        for operation in readers
    )
    return convolutions and math.prod(graph.shapes[0][1:]) > MOST_PIXELS


def is_linear(operation: ConvOp, source: Shape) -> bool:
    """Return whether the window of a convolution is the whole plane, so that a position is an index of the input."""
    return operation.weight.shape[1:] == source and operation.padding == (0, 0) and operation.dilation == (1, 1)


def _overwritable(operation: FusedOp) -> list[int]:
    """Return the buffers that may be written while they are read."""
    if isinstance(operation, ConvOp):
        return [] if operation.residual in (None, operation.source) else [operation.residual]
    if isinstance(operation, AffineOp):
        return [operation.source]
    return [operation.source, operation.addend] if isinstance(operation, AddOp) else []
