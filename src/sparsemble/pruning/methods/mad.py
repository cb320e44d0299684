"""MAD: masking adversarial damage (Lee et al. 2022)."""

import copy
import itertools
import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.pgd import PGD
from sparsemble.core.argument_checks import check_above_zero, check_at_least
from sparsemble.core.types import Images, Labels
from sparsemble.models.plain_network import prunable_layers
from sparsemble.pruning.method import PruningContext, PruningMethod, PruningResult, pruning_methods
from sparsemble.pruning.score import Scores, inputs_and_output_gradients
from sparsemble.pruning.target import SparsityTarget

SMALLEST = 1e-4
"""Smallest soft mask; softplus never returns 0."""


@final
@pruning_methods.register("mad")
@dataclass(frozen=True, kw_only=True)
class MAD(PruningMethod):
    """Removes the weights that contribute least to the adversarial loss, by soft masks and second-order information.

    For each batch of adversarial images a soft mask m = softplus(free values), initially 1 and clamped to [0, 1] after
    every step, is fitted to lower the loss; dw = w - m w is the part that it removes. The importance of a weight is
    1/2 G_jj dw_ja (dw_j A)_a, with K-FAC's A = E[a a^T] of the inputs and the diagonal of G = E[g g^T] of the output
    gradients (true labels) of the masked network, averaged over batches; it may be negative.

    Within a linear layer all outputs keep equally many weights (`equalise_rows`): G_jj differs so much between classes
    that one of them would lose all its weights.

    Source: Lee et al. 2022, section 3, with its settings. Departs: the target divides the budget (theirs: one threshold
    for all convolutions, `rates = "global"`); the given scores are ignored. Memory: the activations of one batch and
    one A, fan_in x fan_in (85 MB for 512 channels of 3x3).
    """

    version: ClassVar[int] = 2

    batches: int = 0
    """Batches of training images used; 0: all of one epoch."""
    fits: int = 20
    """Adam steps on the soft masks for each batch, >= 1."""
    learning_rate: float = 0.1
    """Learning rate of these steps, > 0."""
    attack: Attack = PGD(steps=10, keep_best=False)
    """Crafts the adversarial images."""

    def __post_init__(self) -> None:
        check_at_least(0, batches=self.batches)
        check_at_least(1, fits=self.fits)
        check_above_zero(learning_rate=self.learning_rate)

    def __call__(
        self, model: nn.Module, scores: Scores, target: SparsityTarget, context: PruningContext
    ) -> PruningResult:
        """Measure the importance of all weights, and remove the least important."""
        batches = context.images(self.name)
        target.mask(scores)  # refuses impossible scores before any work
        network = copy.deepcopy(model).eval().requires_grad_(False)
        importance = {name: torch.zeros_like(layer.weight) for name, layer in prunable_layers(network).items()}
        every = batches.epoch(context.rng)
        for x, y in itertools.islice(every, self.batches) if self.batches else every:
            x_adv = self.attack(network, x, y, context.threat, rng=context.rng)
            for name, value in self.importance(network, x_adv, y).items():
                importance[name] += value
        for name, layer in prunable_layers(network).items():
            if isinstance(layer, nn.Linear):
                importance[name] = equalise_rows(importance[name])
        mask = target.mask(importance)
        pruned = copy.deepcopy(model)
        mask.apply_(pruned)
        return PruningResult(pruned, mask, [])

    def importance(self, network: nn.Module, x: Images, y: Labels) -> Scores:
        """Return the importance of each weight on a batch; it may be negative.

        Args:
            network: in eval mode, without gradients.
            x: adversarial images (B, C, H, W) in [0, 1].
            y: true classes (B).

        Source: Lee et al. 2022, section 3.
        """
        layers = prunable_layers(network)
        soft = self.fit_masks(network, x, y)
        masked = copy.deepcopy(network)
        for name, layer in prunable_layers(masked).items():
            layer.weight.mul_(soft[name])
        inputs, gradients = inputs_and_output_gradients(masked, x, y)
        importance: Scores = {}
        for name, layer in layers.items():
            removed = (layer.weight * (1 - soft[name])).flatten(1)
            a, g = unfold_inputs(layer, inputs[name]), flatten_gradients(gradients[name])
            correlated = removed @ a.T @ a / len(x)
            curvature = g.square().sum(0) / len(g)
            importance[name] = (0.5 * curvature[:, None] * removed * correlated).view_as(layer.weight)
        return importance

    @torch.enable_grad()
    def fit_masks(self, network: nn.Module, x: Images, y: Labels) -> Scores:
        """Return the soft mask of each layer, in [0, 1], fitted to lower the loss.

        Args:
            network: in eval mode.
            x: adversarial images (B, C, H, W) in [0, 1].
            y: true classes (B).
        """
        layers = prunable_layers(network)
        lowest, highest = (math.log(math.expm1(mask)) for mask in (SMALLEST, 1.0))
        free = {name: torch.full_like(layer.weight, highest).requires_grad_() for name, layer in layers.items()}
        adam = torch.optim.Adam(list(free.values()), lr=self.learning_rate)
        for _ in range(self.fits):
            masked = {f"{name}.weight": layers[name].weight * F.softplus(free[name]) for name in layers}
            loss = F.cross_entropy(functional_call(network, masked, (x,)), y)
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                for value in free.values():
                    value.clamp_(lowest, highest)
        return {name: F.softplus(value).clamp(max=1).detach() for name, value in free.items()}


def equalise_rows(importance: Tensor) -> Tensor:
    """Set the n-th best weight of every output (O, I) to the mean importance of the n-th best ones of all outputs."""
    ranked, positions = importance.sort(1)
    return torch.empty_like(importance).scatter_(1, positions, ranked.mean(0).expand_as(importance))


def unfold_inputs(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """Return the inputs of one output of a layer, for every image and position, (B * positions, fan_in)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    assert not isinstance(layer.padding, str)
    patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.transpose(1, 2).flatten(0, 1)


def flatten_gradients(gradient: Tensor) -> Tensor:
    """Return output gradients as (B * positions, outputs)."""
    return gradient.flatten(2).transpose(1, 2).flatten(0, 1) if gradient.ndim > 2 else gradient
