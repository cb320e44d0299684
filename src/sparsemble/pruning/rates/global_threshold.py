"""One threshold for all layers."""

from dataclasses import dataclass
from typing import final

import torch

from sparsemble.pruning.layer_rates import KeepRates, LayerRates, layer_rates
from sparsemble.pruning.score import Scores


@final
@layer_rates.register("global_threshold")
@dataclass(frozen=True, kw_only=True)
class GlobalThreshold(LayerRates):
    """The highest scores of the whole network stay; use it with scores that are comparable between layers."""

    def keep_rates(self, scores: Scores) -> KeepRates:
        """Return the share of each layer above the threshold that keeps a share `level` of all weights."""
        ordered = {name: score.detach().double().flatten().sort().values for name, score in scores.items()}
        everything = torch.cat(list(ordered.values())).sort().values

        def rates(level: float) -> dict[str, float]:
            count = round(level * len(everything))
            if count == 0:
                return dict.fromkeys(scores, 0.0)
            threshold = everything[len(everything) - count]
            return {
                name: 1 - int(torch.searchsorted(values, threshold)) / len(values) for name, values in ordered.items()
            }

        return rates


layer_rates.alias("global", "global_threshold")
