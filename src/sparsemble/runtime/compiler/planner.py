"""A way to go through a network: which kernels run one after the other, and on what."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.execution_plan import ExecutionPlan, KernelConfig
from sparsemble.runtime.compiler.fused import AddOp, AffineOp, ConvOp, FusedGraph, PoolOp
from sparsemble.runtime.compiler.im2col import Im2col
from sparsemble.runtime.compiler.layout import Plane
from sparsemble.runtime.network import Pair

NEAREST_CACHE = 48 * 1024
"""Bytes of input that a tile may bring into the nearest cache before all outputs have read it."""
SPARE_REGISTERS = 4
TILES_TRIED = 3
BLOCKS = (4, 8)
"""Channels that may share records, apart from 1."""
MOST_MARKED = 64
"""Places for each weight up to which those that are read are marked in a table."""
LIKELY_FILLED, POSSIBLY_FILLED = 0.6, 0.4
"""Share of weights in blocks that are not 0, from which blocks probably, or perhaps, are faster."""


class Planner(ABC):
    """A way to go through a network, step by step."""

    lanes: int
    """Floats in a vector, at most."""

    def __init__(self, fused: FusedGraph, buffers: Sequence[Plane | Im2col], lives: Mapping[int, Pair]) -> None:
        self.fused, self.buffers, self.lives = fused, buffers, lives

    def plan(self, choices: Mapping[int, KernelConfig], threads: int = 1) -> ExecutionPlan:
        """Plan a network.

        Args:
            choices: how to go through products, by the place of the operation; others are guessed.
            threads: how many go through it side by side; the kernels are the same for any number.
        """
        found = self.empty()
        found.threads = threads
        self.pack(found)
        for place, operation in enumerate(self.fused.operations):
            self.prepare(found, place)
            if isinstance(operation, ConvOp):
                choice = choices.get(place)
                self.product(found, place, self.candidate_configs(place, operation)[0] if choice is None else choice)
            elif isinstance(operation, PoolOp):
                self.pool(found, place, operation)
            else:
                self.elementwise(found, operation)
        return found

    def empty(self) -> ExecutionPlan:
        """Return a plan without a step."""
        return ExecutionPlan(self.fused, self.buffers, self.lives)

    @abstractmethod
    def pack(self, found: ExecutionPlan) -> None:
        """Add what brings images in."""

    @abstractmethod
    def prepare(self, found: ExecutionPlan, place: int) -> None:
        """Add what an operation needs before it."""

    @abstractmethod
    def candidate_configs(self, place: int, operation: ConvOp) -> list[KernelConfig]:
        """Return ways through a product that may be the fastest; first one that is rarely bad."""

    @abstractmethod
    def product(self, found: ExecutionPlan, place: int, choice: KernelConfig) -> None:
        """Add a convolution or linear layer."""

    @abstractmethod
    def pool(self, found: ExecutionPlan, place: int, operation: PoolOp) -> None:
        """Add a pool."""

    @abstractmethod
    def elementwise(self, found: ExecutionPlan, operation: AffineOp | AddOp) -> None:
        """Add a scale and shift, or a sum."""


def output_block_sizes(operation: ConvOp) -> list[int]:
    """Return how many channels may share records, the likeliest to be fast first.

    Blocks with zeros among their weights cost less than single weights where few are 0: they read each input once.
    """
    weight = operation.weight
    if len(operation.bias) < BLOCKS[0]:
        return [1]
    size = int(np.prod(weight.shape[1:]))
    outputs, taps = np.divmod(weight.positions.astype(np.int64), size)
    filled = {}
    for block in BLOCKS:
        read = _distinct(outputs // block * size + taps, -(-weight.shape[0] // block) * size)
        filled[block] = weight.nonzeros / max(1, block * read)
    likely = [block for block in BLOCKS if filled[block] > LIKELY_FILLED]
    possible = [block for block in BLOCKS if POSSIBLY_FILLED < filled[block] <= LIKELY_FILLED]
    return [*likely, 1, *possible]


def _distinct(places: NDArray[np.int64], end: int) -> int:
    """Return how many different ones there are of some places below an end."""
    if end > MOST_MARKED * len(places):
        # Few in very many places: a table of all could be larger than the file they are from.
        return len(np.unique(places))
    there = np.zeros(end, bool)
    there[places] = True
    return int(np.count_nonzero(there))


def channels_in_cache(size: int) -> int:
    """Return how many channels of a tile's input fit the nearest cache, if one takes so many bytes."""
    return max(1, NEAREST_CACHE // size)
