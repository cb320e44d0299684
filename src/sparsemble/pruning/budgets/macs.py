"""Multiply-accumulates."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from sparsemble.pruning.budget import Budget, budgets


@final
@budgets.register("macs")
@dataclass(frozen=True, kw_only=True)
class Macs(Budget):
    """A weight costs one multiply-accumulate at every position, which determines speed.

    In a ResNet-18 at 32x32 the first stage holds 27 % of these and 1.3 % of the weights.
    """

    def cost(self, nonzeros: Tensor, sizes: Tensor, positions: Tensor) -> Tensor:
        """Return the multiply-accumulates."""
        return nonzeros * positions
