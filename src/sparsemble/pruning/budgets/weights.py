"""Number of weights."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from sparsemble.pruning.budget import Budget, budgets


@final
@budgets.register("weights")
@dataclass(frozen=True, kw_only=True)
class Weights(Budget):
    """Each weight costs the same: what the literature calls sparsity."""

    def cost(self, kept: Tensor, sizes: Tensor, positions: Tensor) -> Tensor:
        """Count the weights."""
        return kept
