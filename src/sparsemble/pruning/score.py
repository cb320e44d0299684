"""Pruning scores: the importance of each weight."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemble.core.registry import Component, Registry
from sparsemble.core.types import Images, Labels
from sparsemble.pruning.mask import prunable_layers

Scores = dict[str, Tensor]
"""One number >= 0 for each weight of each prunable layer, by layer; higher = keep."""


class PruningScore(Component):
    """Scores the weights of a trained model; leaves it as found."""

    @abstractmethod
    def __call__(self, model: nn.Module, adversarial: Callable[[], Iterable[tuple[Images, Labels]]]) -> Scores:
        """Score every prunable weight of a trained model in eval mode.

        `adversarial` returns batches of adversarial training images and their labels, for scores that need data.
        """


def fan_in(weight: Tensor) -> int:
    """Return the number of inputs of one output of a Conv2d or Linear weight."""
    return weight[0].numel()


def rescale(scores: Scores) -> Scores:
    """Rescale every layer to the range in which HYDRA and HARP learn: sqrt(6 / fan_in) s / max s.

    Source: EED main paper, eq. 9, for any score.
    """
    return {name: math.sqrt(6 / fan_in(s)) * s / s.max().clamp_min(1e-30) for name, s in scores.items()}


def following_batch_norms(model: nn.Module, x: Images) -> dict[str, nn.BatchNorm2d]:
    """Return the BatchNorm2d directly behind each Conv2d, by layer, found in one pass of a model in eval mode."""
    producer: dict[int, str] = {}
    outputs: list[Tensor] = []  # keeps every id valid until the pass is over
    norms: dict[str, nn.BatchNorm2d] = {}

    def record_output(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            producer[id(output)] = name
            outputs.append(output)

        return hook

    def record_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in producer and isinstance(module, nn.BatchNorm2d):
            norms[producer[id(inputs[0])]] = module

    handles = [layer.register_forward_hook(record_output(name)) for name, layer in prunable_layers(model).items()]
    handles += [m.register_forward_pre_hook(record_norm) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return norms


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
