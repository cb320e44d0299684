"""Networks masked by learned scores: score learning with a straight-through top-k, for HYDRA, HARP and RST."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.pruning.layer_rates import KeepRates
from sparsemble.pruning.mask import Mask
from sparsemble.pruning.method import LearnerNetwork
from sparsemble.pruning.score import Scores
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.loss import LossOutput, TrainingLoss

Layers = Mapping[str, nn.Conv2d | nn.Linear]


def remove_masks_(network: nn.Module, layers: Layers, *, keep_masked: bool = False) -> nn.Module:
    """Remove the weight parametrizations of a network and make all its parameters trainable.

    Args:
        network: the network to change.
        layers: its parametrized layers, by name.
        keep_masked: keep the masked weights instead of the weights behind the masks.
    """
    for layer in layers.values():
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=keep_masked)
        layer.weight = nn.Parameter(layer.weight.detach().clone())
    return network.requires_grad_(True)


@final
class ScoredNetwork(LearnerNetwork):
    """A network whose weights are frozen and masked by the top-k of learned scores, layer by layer.

    Only absolute values of scores count. Gradients pass straight through the mask to them and, where it is learned
    (`keep_rates`, a module for each layer), to the keep rate; else the target divides the budget among the layers. With
    `free_norms`, scale and shift of BatchNorm are trained, too.
    """

    def __init__(
        self,
        network: nn.Module,
        scores: Scores,
        target: SparsityTarget,
        *,
        free_norms: bool,
        keep_rates: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__(network, target)
        norms = {id(p) for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
        for parameter in network.parameters():
            parameter.requires_grad_(free_norms and id(parameter) in norms)
        self.masks = {}
        counts = {} if keep_rates else target.counts({name: score.abs() for name, score in scores.items()})
        for name, layer in self.layers.items():
            count_or_rate = keep_rates[name] if keep_rates else counts[name]
            self.masks[name] = _ScoredMask(name, scores[name], count_or_rate, target)
            parametrize.register_parametrization(layer, "weight", self.masks[name])

    @torch.no_grad()
    def final_mask(self, keep_rates: KeepRates | None = None) -> Mask:
        """Return the exact mask of the present scores; `keep_rates`, by level, replace those of the target."""
        return self.target.mask({name: mask.scores.abs() for name, mask in self.masks.items()}, keep_rates)

    def pruned_(self, mask: Mask) -> nn.Module:
        """Remove the parametrizations and return the network with its own weights, the removed ones 0."""
        network = remove_masks_(self.network, self.layers)
        mask.apply_(network)
        return network


@final
class _ScoredMask(nn.Module):
    """Multiplies a layer's weights by the 0/1 mask of their learned scores."""

    def __init__(self, name: str, scores: Tensor, count_or_rate: "int | nn.Module", target: SparsityTarget) -> None:
        super().__init__()
        self.name, self.target = name, target
        self.scores = nn.Parameter(scores.clone())
        self.kept = count_or_rate
        """Number of weights to keep, or the module that returns the learned keep rate."""

    def forward(self, weight: Tensor) -> Tensor:
        straight, count = self.scores.abs(), self.kept
        if isinstance(count, nn.Module):
            keep_rate = count()
            straight = straight + keep_rate
            count = weight.numel() - math.floor((1 - float(keep_rate.detach())) * weight.numel())
        hard = self.target.keep(self.name, self.scores.detach().abs(), count)
        # Equal to the 0/1 mask in value; its gradient reaches each |score| alone, and the keep rate as the sum.
        return weight * (hard.to(weight.dtype) + (straight - straight.detach()))


def with_cached_masks(inner: TrainingLoss, layers: Layers) -> TrainingLoss:
    """Return a loss of a masked network that computes the masked weights once a batch."""
    return _CachedMasks(inner=inner, layers=layers)


@final
@dataclass(frozen=True, kw_only=True)
class _CachedMasks(TrainingLoss):
    """A loss of a masked network that computes the masked weights once a batch, for crafting and training alike."""

    inner: TrainingLoss
    """The loss."""
    layers: Layers
    """The masked layers, by name."""

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the inner loss."""
        with parametrize.cached():
            for layer in self.layers.values():
                _ = layer.weight  # with a gradient, even if an attack disables it
            return self.inner(model, x, y, threat, rng=rng)
