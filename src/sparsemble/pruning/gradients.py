"""Gradients of a loss with respect to the weights, leaving the model as found."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemble.core.types import Images, Labels
from sparsemble.pruning.mask import prunable_layers


def weight_gradients(model: nn.Module, batches: Iterator[tuple[Images, Labels]]) -> Iterator[dict[str, Tensor]]:
    """Yield the gradient of the mean cross-entropy of each batch, by layer; the model is in eval mode."""
    layers = prunable_layers(model)
    weights = [layer.weight for layer in layers.values()]
    wanted = [weight.requires_grad for weight in weights]
    for x, y in batches:
        for weight in weights:
            weight.requires_grad_(True)
        try:
            with torch.enable_grad():
                loss = F.cross_entropy(model(x), y)
            found = torch.autograd.grad(loss, weights)
        finally:
            for weight, was in zip(weights, wanted, strict=True):
                weight.requires_grad_(was)
        yield dict(zip(layers, found, strict=True))
