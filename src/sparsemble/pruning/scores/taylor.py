"""Taylor: squared first-order change of the adversarial loss (Molchanov et al. 2019)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from sparsemble.models.plain_network import prunable_layers
from sparsemble.pruning.score import AdversarialBatches, PruningScore, Scores, pruning_scores, weight_gradients


@final
@pruning_scores.register("taylor")
@dataclass(frozen=True, kw_only=True)
class Taylor(PruningScore):
    """(g w)^2, summed over batches: gradients of opposite sign do not cancel, as they do in `snip`.

    Source: Molchanov et al. 2019, eq. 8, for single weights and on adversarial images.
    """

    def __call__(self, model: nn.Module, adversarial: AdversarialBatches) -> Scores:
        """Score every prunable weight."""
        layers = prunable_layers(model)
        total = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}
        for gradients in weight_gradients(model, iter(adversarial())):
            for name, gradient in gradients.items():
                total[name] += (gradient * layers[name].weight.detach()).square()
        return total
