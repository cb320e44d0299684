"""What a model costs: multiply-accumulates and weights, dense and without the zeros."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of the convolutions and linear layers for one image."""

    dense: int
    """Zeros counted as work."""
    nonzero: int
    """Only what weights other than 0 need."""


@dataclass(frozen=True)
class Weights:
    """Prunable weights: those of Conv2d and Linear, without biases and BatchNorm."""

    total: int
    nonzeros: int

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that are 0, in [0, 1]."""
        return 1 - self.nonzeros / self.total


def count_macs(model: nn.Module, shape: tuple[int, int, int]) -> Macs:
    """Count the multiply-accumulates of one image of (channels, height, width); the model is left as found."""
    dense = nonzero = 0

    def add(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal dense, nonzero
        assert isinstance(module, nn.Conv2d | nn.Linear)
        # Each weight of a convolution is used once at every output position; grouped weights are stored once.
        positions = math.prod(output.shape[2:])
        dense += positions * module.weight.numel()
        nonzero += positions * int(module.weight.count_nonzero())

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(add) for layer in layers]
    training = model.training
    example = next(model.parameters())
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, *shape, dtype=example.dtype, device=example.device))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return Macs(dense, nonzero)


def count_weights(model: nn.Module) -> Weights:
    """Count the prunable weights and those that are not 0."""
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return Weights(sum(w.numel() for w in weights), sum(int(w.count_nonzero()) for w in weights))
