"""ERM: the weight, scaled by its layer's fan-in (EED main paper, eq. 9)."""

from dataclasses import dataclass
from typing import final

from torch import nn

from sparsemble.models.plain_network import prunable_layers
from sparsemble.pruning.score import AdversarialBatches, PruningScore, Scores, pruning_scores, rescale


@final
@pruning_scores.register("erm")
@dataclass(frozen=True, kw_only=True)
class ERM(PruningScore):
    """sqrt(6 / fan_in) |w| / max |w|, the initial scores of HYDRA and HARP.

    Source: EED main paper, eq. 9.
    """

    def __call__(self, model: nn.Module, adversarial: AdversarialBatches) -> Scores:
        """Score every prunable weight."""
        return rescale({name: layer.weight.detach().abs() for name, layer in prunable_layers(model).items()})
