"""Random scores."""

from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.types import seeded
from sparsemble.models.plain_network import prunable_layers
from sparsemble.pruning.score import AdversarialBatches, PruningScore, Scores, pruning_scores


@final
@pruning_scores.register("random")
@dataclass(frozen=True, kw_only=True)
class Random(PruningScore):
    """Uniform random numbers in [0, 1), 0 for weights that are already 0; the lower baseline."""

    seed: int = 0
    """Seed of the random numbers, >= 0."""

    def __post_init__(self) -> None:
        check_at_least(0, seed=self.seed)

    def __call__(self, model: nn.Module, adversarial: AdversarialBatches) -> Scores:
        """Draw a score for every prunable weight."""
        rng = seeded(self.seed)
        scores: Scores = {}
        for name, layer in prunable_layers(model).items():
            drawn = torch.rand(layer.weight.shape, generator=rng).to(layer.weight.device)
            scores[name] = drawn * (layer.weight.detach() != 0)
        return scores
