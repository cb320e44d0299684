"""Single weights."""

from dataclasses import dataclass
from math import prod
from typing import final

from torch import Tensor

from sparsemble.pruning.granularity import Granularity, granularities
from sparsemble.pruning.mask import keep_top


@final
@granularities.register("weight")
@dataclass(frozen=True, kw_only=True)
class Weight(Granularity):
    """Single weights, independent of each other."""

    def check(self, shapes: dict[str, tuple[int, ...]], sparsity: float) -> None:
        """Accept every layer and sparsity."""

    def capacity(self, shape: tuple[int, ...]) -> int:
        """Return the number of weights; all may stay."""
        return prod(shape)

    def keep(self, scores: Tensor, count: int) -> Tensor:
        """Keep the `count` highest scores."""
        return keep_top(scores, count)
