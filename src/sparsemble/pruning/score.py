"""How much each weight matters."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from sparsemble.core.registry import Component, Registry
from sparsemble.core.types import Images, Labels
from sparsemble.pruning.mask import prunable_layers

Scores = dict[str, Tensor]
"""For each prunable layer, by name, one number >= 0 a weight; higher = keep."""


class PruningScore(Component):
    """Scores the weights of a trained model; leaves it as found."""

    @abstractmethod
    def __call__(self, model: nn.Module, adversarial: Callable[[], Iterable[tuple[Images, Labels]]]) -> Scores:
        """Score every prunable weight.

        Args:
            model: trained, in eval mode.
            adversarial: makes batches of adversarial training images with their labels, for scores that want data.
        """


def fan_in(weight: Tensor) -> int:
    """Return the number of inputs of one output of a Conv2d or Linear weight."""
    return weight[0].numel()


def rescale(scores: Scores) -> Scores:
    """Bring every layer to the range HARP learns in: sqrt(6 / fan_in) * s / max s (method.md 2.3)."""
    return {name: math.sqrt(6 / fan_in(s)) * s / s.max().clamp_min(1e-30) for name, s in scores.items()}


def following_batch_norms(model: nn.Module, x: Images) -> dict[str, nn.BatchNorm2d]:
    """Return, for each Conv2d whose output goes straight into a BatchNorm2d, that BatchNorm.

    Found by watching one forward pass, so it works for any module names.
    """
    made: dict[int, str] = {}
    alive: list[Tensor] = []  # keeps every id valid until the pass is over
    found: dict[str, nn.BatchNorm2d] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            made[id(output)] = name
            alive.append(output)

        return hook

    def look_up(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in made and isinstance(module, nn.BatchNorm2d):
            found[made[id(inputs[0])]] = module

    handles = [layer.register_forward_hook(remember(name)) for name, layer in prunable_layers(model).items()]
    handles += [m.register_forward_pre_hook(look_up) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


pruning_scores: Registry[PruningScore] = Registry("pruning score", PruningScore)
