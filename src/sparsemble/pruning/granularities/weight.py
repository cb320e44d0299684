"""Single weights."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from sparsemble.pruning.granularity import Granularity, granularities
from sparsemble.pruning.mask import keep_top


@final
@granularities.register("weight")
@dataclass(frozen=True, kw_only=True)
class Weight(Granularity):
    """Single weights, independent of each other."""

    def keep(self, scores: Tensor, count: int) -> Tensor:
        """Keep the `count` highest scores."""
        return keep_top(scores, count)
