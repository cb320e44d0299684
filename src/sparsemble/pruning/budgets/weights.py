"""Number of weights."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from sparsemble.pruning.budget import Budget, budgets


@final
@budgets.register("weights")
@dataclass(frozen=True, kw_only=True)
class Weights(Budget):
    """Each weight costs the same: sparsity as in the literature."""

    def cost(self, nonzeros: Tensor, sizes: Tensor, positions: Tensor) -> Tensor:
        """Return the number of weights."""
        return nonzeros
