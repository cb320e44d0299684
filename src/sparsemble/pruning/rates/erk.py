"""Higher keep rates for small layers than for large ones."""

from dataclasses import dataclass
from typing import final

from sparsemble.core.errors import InputError
from sparsemble.pruning.layer_rates import KeepRates, LayerRates, layer_rates
from sparsemble.pruning.score import Scores


@final
@layer_rates.register("erk")
@dataclass(frozen=True, kw_only=True)
class ERK(LayerRates):
    """Keep rates in proportion to (inputs + outputs + kernel height + width) / (their product), at most 1.

    Source: Evci et al. 2020 (RigL), section 3, the Erdos-Renyi-Kernel distribution.
    """

    def keep_rates(self, scores: Scores) -> KeepRates:
        """Return the layers' densities times the level, scaled so that level 1 keeps everything."""
        for name, score in scores.items():
            if score.ndim < 2:
                raise InputError(f"rates = erk needs layers with inputs and outputs, {name} has neither; use uniform")
        density = {name: sum(score.shape) / score.numel() for name, score in scores.items()}
        lowest = min(density.values())
        return lambda level: {name: min(1.0, level * layer_density / lowest) for name, layer_density in density.items()}
