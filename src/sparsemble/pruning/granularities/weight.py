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
    """Each weight for itself."""

    def check(self, shapes: dict[str, tuple[int, ...]], sparsity: float) -> None:
        """Nothing is refused."""

    def capacity(self, shape: tuple[int, ...]) -> int:
        """All weights may stay."""
        return prod(shape)

    def keep(self, scores: Tensor, count: int) -> Tensor:
        """Keep the `count` highest scores."""
        return keep_top(scores, count)
