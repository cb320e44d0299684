"""Whole channels."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from sparsemble.pruning.granularity import Granularity, granularities
from sparsemble.pruning.mask import keep_top


@final
@granularities.register("channel")
@dataclass(frozen=True, kw_only=True)
class Channel(Granularity):
    """Output channels with all that they read and all that reads them; what is left is a smaller dense network.

    Channels that are added to each other stay or go together. Channels are ranked by the mean score of their weights.
    """

    whole_channels: ClassVar[bool] = True

    def keep(self, scores: Tensor, count: int) -> Tensor:
        """Keep the best channels of one layer, as many as come nearest to `count` weights, and at least one."""
        channels = min(max(round(count / scores[0].numel()), 1), len(scores))
        best = keep_top(scores.detach().flatten(1).mean(1), channels)
        return best.view(-1, *[1] * (scores.ndim - 1)).expand_as(scores).clone()
