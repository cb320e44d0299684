"""Networks that are seen through masks while something about them is learned."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, Logits
from sparsemble.pruning.mask import Mask, prunable_layers
from sparsemble.pruning.score import Scores
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.loss import LossOutput, TrainingLoss


@contextlib.contextmanager
def cached_weights(layers: Mapping[str, nn.Conv2d | nn.Linear]) -> Iterator[None]:
    """Work the masked weights out once for all passes inside, with gradients even if an attack starts without them."""
    with parametrize.cached():
        for layer in layers.values():
            _ = layer.weight
        yield


def remove_masks_(
    network: nn.Module, layers: Mapping[str, nn.Conv2d | nn.Linear], *, masked: bool = False
) -> nn.Module:
    """Take the masks off and make everything trainable again.

    Args:
        network: whose layers are seen through masks.
        layers: these layers.
        masked: keep the weights as seen through the masks, not as they are behind them.
    """
    for layer in layers.values():
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=masked)
        layer.weight = nn.Parameter(layer.weight.detach().clone())
    return network.requires_grad_(True)


@final
class ScoredNetwork(nn.Module):
    """A network whose weights are frozen and seen through the masks of scores that are learned.

    Each layer keeps as many weights as the target gives it; gradients pass straight through the mask to the scores.
    """

    def __init__(self, network: nn.Module, scores: Scores, target: SparsityTarget, *, free_norms: bool) -> None:
        super().__init__()
        norms = {id(p) for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
        for parameter in network.parameters():
            parameter.requires_grad_(free_norms and id(parameter) in norms)
        self.network, self.target = network, target
        self.layers = prunable_layers(network)
        self.masks = {}
        counts = target.counts({name: score.abs() for name, score in scores.items()})
        for name, layer in self.layers.items():
            self.masks[name] = _ScoredMask(name, scores[name], counts[name], target)
            parametrize.register_parametrization(layer, "weight", self.masks[name])

    def forward(self, x: Images) -> Logits:
        """Return the logits of the masked network."""
        logits: Logits = self.network(x)
        return logits

    @torch.no_grad()
    def final_mask(self) -> Mask:
        """Return the mask of the scores as they are now."""
        return self.target.mask({name: mask.scores.abs() for name, mask in self.masks.items()})

    def plain(self) -> nn.Module:
        """Return the network with its own weights, all trainable."""
        return remove_masks_(self.network, self.layers)


@final
class _ScoredMask(nn.Module):
    """Weight times a 0/1 mask of its learned scores."""

    def __init__(self, name: str, scores: Tensor, count: int, target: SparsityTarget) -> None:
        super().__init__()
        self.name, self.count, self.target = name, count, target
        self.scores = nn.Parameter(scores.clone())

    def forward(self, weight: Tensor) -> Tensor:
        straight = self.scores.abs()
        hard = self.target.keep(self.name, straight.detach(), self.count)
        return weight * (hard.to(weight.dtype) + (straight - straight.detach()))


def masked(inner: TrainingLoss, layers: Mapping[str, nn.Conv2d | nn.Linear]) -> TrainingLoss:
    """Return a robust loss with the masks worked out once a batch, for crafting and training alike."""
    return _Masked(inner=inner, layers=layers)


@final
@dataclass(frozen=True, kw_only=True)
class _Masked(TrainingLoss):
    """What `masked` returns."""

    inner: TrainingLoss
    layers: Mapping[str, nn.Conv2d | nn.Linear]

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss."""
        with cached_weights(self.layers):
            return self.inner(model, x, y, threat, rng=rng)
