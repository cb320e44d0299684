"""BNSF: the weight, scaled by the BatchNorm that follows (EED main paper, eq. 11)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.models.graph import Graph, trace
from sparsemble.models.plain_network import prunable_layers
from sparsemble.pruning.score import AdversarialBatches, PruningScore, Scores, pruning_scores


@final
@pruning_scores.register("bnsf")
@dataclass(frozen=True, kw_only=True)
class BNSF(PruningScore):
    """|gamma_j w_jk| / sqrt(sigma_j^2 + eps) with running sigma; layers without a BatchNorm after them: |w|.

    Source: EED main paper, eq. 11. Departs: the square root of variance + eps, not the variance.
    """

    def __call__(self, model: nn.Module, adversarial: AdversarialBatches) -> Scores:
        """Score every prunable weight."""
        trace(model)  # refuses what cannot be traced before images are crafted
        x, _ = next(iter(adversarial()))
        norms = _norms_by_layer(Graph(model, (x.shape[1], x.shape[2], x.shape[3])))
        scores: Scores = {}
        for name, layer in prunable_layers(model).items():
            magnitude = layer.weight.detach().abs()
            if name in norms:
                factor = norm_factor(norms[name])
                magnitude = magnitude * factor.view(-1, *[1] * (magnitude.ndim - 1))
            scores[name] = magnitude
        return scores


def _norms_by_layer(graph: Graph) -> dict[str, nn.BatchNorm2d]:
    """Return the BatchNorm behind each layer, with at most an Identity or a dropout between them."""
    norms: dict[str, nn.BatchNorm2d] = {}
    for operation in graph.operations:
        if isinstance(operation.module, nn.BatchNorm2d):
            before = graph.by_name[operation.inputs[0]]
            while before.kind == "same":
                before = graph.by_name[before.inputs[0]]
            norms[before.name] = operation.module
    return norms


def norm_factor(norm: nn.BatchNorm2d) -> Tensor:
    """Return |gamma| / sqrt(running variance + eps) of each channel.

    Raises:
        InputError: the BatchNorm keeps no running variance.
    """
    if norm.running_var is None:
        raise InputError("a BatchNorm without running statistics gives its weights no score; use another, such as erm")
    deviation = (norm.running_var + norm.eps).sqrt()
    return (norm.weight.detach().abs() if norm.affine else torch.ones_like(deviation)) / deviation
