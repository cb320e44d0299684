"""From fused operations to an execution plan: the steps that batches and single images have in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.execution_plan import ExecutionPlan, KernelConfig
from sparsemble.runtime.compiler.fused import AddOp, AffineOp, ConvOp, FusedGraph, PoolOp
from sparsemble.runtime.compiler.im2col import Im2col
from sparsemble.runtime.compiler.layout import Plane
from sparsemble.runtime.network import Pair

L1_BYTES = 48 * 1024
"""Bytes of input that a tile may load into the L1 cache before all outputs have read it."""
SPARE_REGISTERS = 4
TILES_TRIED = 3
OUTPUT_BLOCKS = (4, 8)
"""Output channels that may share records, apart from 1."""
MAX_MARKED = 64
"""Possible positions for each weight up to which the positions are counted in a table of flags."""
LIKELY_FILLED, POSSIBLY_FILLED = 0.6, 0.4
"""Fraction of non-zero weights in blocks above which blocks are probably, or possibly, faster."""


class Planner(ABC):
    """Builds execution plans of one network.

    Args:
        fused: the operations.
        buffers: layouts of the operations' buffers, then of copies.
        lifetimes: first and last operation that reads each buffer of copies.
    """

    lanes: int
    """The most floats in a vector."""

    def __init__(self, fused: FusedGraph, buffers: Sequence[Plane | Im2col], lifetimes: Mapping[int, Pair]) -> None:
        self.fused, self.buffers, self.lifetimes = fused, buffers, lifetimes

    def plan(self, configs: Mapping[int, KernelConfig], threads: int = 1) -> ExecutionPlan:
        """Return an execution plan.

        Args:
            configs: how convolutions are computed, by the operation's index; a missing one is guessed.
            threads: that run the plan together; the kernels are the same for any number.
        """
        plan = self.empty_plan()
        plan.threads = threads
        self.add_pack(plan)
        for i, operation in enumerate(self.fused.operations):
            self.add_copies(plan, i)
            if isinstance(operation, ConvOp):
                config = configs.get(i)
                self.add_conv(plan, i, self.candidate_configs(i, operation)[0] if config is None else config)
            elif isinstance(operation, PoolOp):
                self.add_pool(plan, i, operation)
            else:
                self.add_elementwise(plan, operation)
        return plan

    def empty_plan(self) -> ExecutionPlan:
        """Return a plan without steps."""
        return ExecutionPlan(self.fused, self.buffers, self.lifetimes)

    @abstractmethod
    def add_pack(self, plan: ExecutionPlan) -> None:
        """Add the step that reads images."""

    @abstractmethod
    def add_copies(self, plan: ExecutionPlan, index: int) -> None:
        """Add the step that copies inputs for an operation, where it needs one."""

    @abstractmethod
    def candidate_configs(self, index: int, operation: ConvOp) -> list[KernelConfig]:
        """Return configurations that may be the fastest; the first one is rarely slow."""

    @abstractmethod
    def add_conv(self, plan: ExecutionPlan, index: int, config: KernelConfig) -> None:
        """Add a convolution or linear layer.

        Args:
            plan: where it is added.
            index: of the operation.
            config: how it is computed.
        """

    @abstractmethod
    def add_pool(self, plan: ExecutionPlan, index: int, operation: PoolOp) -> None:
        """Add a pool.

        Args:
            plan: where it is added.
            index: of the operation.
            operation: the pool.
        """

    @abstractmethod
    def add_elementwise(self, plan: ExecutionPlan, operation: AffineOp | AddOp) -> None:
        """Add a scale and shift, or a sum."""


def output_block_sizes(operation: ConvOp) -> list[int]:
    """Return how many output channels may share records, the number that is most likely fastest first.

    A block that has few zeros costs less than single weights: it reads each input once.
    """
    weight = operation.weight
    if len(operation.bias) < OUTPUT_BLOCKS[0]:
        return [1]
    size = int(np.prod(weight.shape[1:]))
    outputs, taps = np.divmod(weight.positions.astype(np.int64), size)
    filled = {}
    for block in OUTPUT_BLOCKS:
        records = _count_distinct(outputs // block * size + taps, -(-weight.shape[0] // block) * size)
        filled[block] = weight.nonzeros / max(1, block * records)
    likely = [block for block in OUTPUT_BLOCKS if filled[block] > LIKELY_FILLED]
    possible = [block for block in OUTPUT_BLOCKS if POSSIBLY_FILLED < filled[block] <= LIKELY_FILLED]
    return [*likely, 1, *possible]


def _count_distinct(values: NDArray[np.int64], end: int) -> int:
    """Return the number of distinct values, all of them below `end`."""
    if end > MAX_MARKED * len(values):
        # A table of flags could be larger than the file that the weights are from.
        return len(np.unique(values))
    present = np.zeros(end, bool)
    present[values] = True
    return int(np.count_nonzero(present))


def channels_in_cache(channel_bytes: int) -> int:
    """Return how many channels of a tile's input fit into the L1 cache."""
    return max(1, L1_BYTES // channel_bytes)
