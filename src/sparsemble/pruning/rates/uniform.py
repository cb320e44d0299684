"""The same share of every layer."""

from dataclasses import dataclass
from typing import final

from sparsemble.pruning.layer_rates import KeepRates, LayerRates, layer_rates
from sparsemble.pruning.score import Scores


@final
@layer_rates.register("uniform")
@dataclass(frozen=True, kw_only=True)
class Uniform(LayerRates):
    """The same share of every layer stays."""

    def keep_rates(self, scores: Scores) -> KeepRates:
        """Return the level itself for each layer."""
        return lambda level: dict.fromkeys(scores, level)
