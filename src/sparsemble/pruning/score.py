"""Pruning scores: the importance of each weight."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemble.core.registry import Component, Registry
from sparsemble.core.types import Images, Labels
from sparsemble.models.plain_network import prunable_layers

Scores = dict[str, Tensor]
"""One number >= 0 for each weight of each prunable layer, by layer; higher = keep."""

AdversarialBatches = Callable[[], Iterable[tuple[Images, Labels]]]
"""Returns batches of adversarial training images and their labels, for scores that need data."""


class PruningScore(Component):
    """Scores the weights of a trained model; leaves it as found."""

    @abstractmethod
    def __call__(self, model: nn.Module, adversarial: AdversarialBatches) -> Scores:
        """Score every prunable weight of a trained model in eval mode."""


def fan_in(weight: Tensor) -> int:
    """Return the number of inputs of one output of a Conv2d or Linear weight."""
    return weight[0].numel()


def rescale(scores: Scores) -> Scores:
    """Rescale every layer to the range in which HYDRA and HARP learn: sqrt(6 / fan_in) s / max s.

    Source: EED main paper, eq. 9, for any score.
    """
    return {name: math.sqrt(6 / fan_in(s)) * s / s.max().clamp_min(1e-30) for name, s in scores.items()}


@torch.enable_grad()
def inputs_and_output_gradients(
    network: nn.Module, x: Images, y: Labels
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the input of each layer, and the gradient of the summed cross-entropy at its output.

    Args:
        network: left as found.
        x: images (B, C, H, W) in [0, 1].
        y: true classes (B).
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_module: nn.Module, layer_inputs: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name], outputs[name] = layer_inputs[0].detach(), output

        return hook

    layers = prunable_layers(network)
    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        losses = F.cross_entropy(network(x.detach().requires_grad_()), y, reduction="sum")
        gradients = torch.autograd.grad(losses, [outputs[name] for name in layers])
    finally:
        for handle in handles:
            handle.remove()
    return inputs, dict(zip(layers, gradients, strict=True))


def weight_gradients(model: nn.Module, batches: Iterator[tuple[Images, Labels]]) -> Iterator[dict[str, Tensor]]:
    """Yield the gradients of the mean cross-entropy of each batch with respect to the prunable weights, by layer."""
    layers = prunable_layers(model)
    weights = [layer.weight for layer in layers.values()]
    required = [weight.requires_grad for weight in weights]
    for x, y in batches:
        for weight in weights:
            weight.requires_grad_(True)
        try:
            with torch.enable_grad():
                loss = F.cross_entropy(model(x), y)
            gradients = torch.autograd.grad(loss, weights)
        finally:
            for weight, before in zip(weights, required, strict=True):
                weight.requires_grad_(before)
        yield dict(zip(layers, gradients, strict=True))


pruning_scores: Registry[PruningScore] = Registry("pruning score", PruningScore)
