"""SNIP: connection sensitivity (Lee et al. 2019)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from sparsemble.models.plain_network import prunable_layers
from sparsemble.pruning.score import AdversarialBatches, PruningScore, Scores, pruning_scores, weight_gradients


@final
@pruning_scores.register("snip")
@dataclass(frozen=True, kw_only=True)
class SNIP(PruningScore):
    """|g w|, with g the gradient of the loss on all images together: the effect of a small change of the weight's mask.

    Source: Lee et al. 2019, eq. 6. Departs: on adversarial images of a trained network, not on one batch of clean ones
    at the start; a layer's scores are not divided by their sum.
    """

    def __call__(self, model: nn.Module, adversarial: AdversarialBatches) -> Scores:
        """Score every prunable weight."""
        layers = prunable_layers(model)
        total = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}
        for gradients in weight_gradients(model, iter(adversarial())):
            for name, gradient in gradients.items():
                total[name] += gradient
        return {name: (total[name] * layer.weight.detach()).abs() for name, layer in layers.items()}
