"""Absolute weight."""

from dataclasses import dataclass
from typing import final

from torch import nn

from sparsemble.models.plain_network import prunable_layers
from sparsemble.pruning.score import AdversarialBatches, PruningScore, Scores, pruning_scores


@final
@pruning_scores.register("magnitude")
@dataclass(frozen=True, kw_only=True)
class Magnitude(PruningScore):
    """The absolute weight; the simplest baseline."""

    def __call__(self, model: nn.Module, adversarial: AdversarialBatches) -> Scores:
        """Score every prunable weight."""
        return {name: layer.weight.detach().abs() for name, layer in prunable_layers(model).items()}
