"""NIS: importance that flows back from the logits (EED main paper, eqs. 7-8)."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import Images, Labels
from sparsemble.pruning.mask import prunable_layers
from sparsemble.pruning.score import PruningScore, Scores, pruning_scores
from sparsemble.pruning.scores.bnsf import norm_factor

PASS_THROUGH = (nn.ReLU, nn.Dropout, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@final
@pruning_scores.register("nis")
@dataclass(frozen=True, kw_only=True)
class NIS(PruningScore):
    """|w_jk| I_j, where I_j is the importance of output j and every logit starts with 1.

    The recursion I_k = sum_j |w_jk| I_j, summed over the taps of a convolution, through BatchNorm's |gamma| / sigma,
    ReLU, pooling and residual adds, is the gradient of the same network with absolute weights on a single pixel; so
    autograd walks it for any layout.

    Source: EED main paper, eqs. 7-8, read as method.md 2.3 says (E-7).
    """

    def __call__(self, model: nn.Module, adversarial: Callable[[], Iterable[tuple[Images, Labels]]]) -> Scores:
        """Score every prunable weight."""
        x, _ = next(iter(adversarial()))
        importance, _ = neuron_importance(model, x.shape[1])
        scores: Scores = {}
        for name, layer in prunable_layers(model).items():
            magnitude = layer.weight.detach().abs()
            output = importance[name] / importance[name].max()
            scores[name] = magnitude * output.to(magnitude).view(-1, *[1] * (magnitude.ndim - 1))
        return scores


def neuron_importance(model: nn.Module, in_channels: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the importance of every prunable layer's output and input channels, float64, by layer name.

    Raises:
        InputError: the importance overflows, or does not reach a layer.
    """
    linear = copy.deepcopy(model).double().eval()
    layers = prunable_layers(linear)
    _linearise(linear)
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name], outputs[name] = given[0], output

        return hook

    replaced = dict(linear.named_modules())
    for name in layers:
        replaced[name].register_forward_hook(keep(name))
    weight = next(iter(layers.values())).weight
    x = torch.zeros(1, in_channels, 1, 1, dtype=torch.float64, device=weight.device, requires_grad=True)
    logits = linear(x)
    names = list(layers)
    gradients = torch.autograd.grad(logits.sum(), [outputs[n] for n in names] + [inputs[n] for n in names])
    for name, gradient in zip(names * 2, gradients, strict=True):
        if not gradient.isfinite().all() or not gradient.max() > 0:
            raise InputError(f"the importance that reaches layer {name} is 0 or not finite, so NIS cannot rank it")
    flat = [g.flatten() for g in gradients]
    return dict(zip(names, flat[: len(names)], strict=True)), dict(zip(names, flat[len(names) :], strict=True))


def _linearise(model: nn.Module) -> None:
    """Replace every layer by its absolute, single-pixel, bias-free form."""
    for name, module in list(model.named_modules()):
        new: nn.Module | None = None
        if isinstance(module, nn.Conv2d):
            new = nn.Conv2d(module.in_channels, module.out_channels, 1, groups=module.groups, bias=False, device="meta")
            new.weight = nn.Parameter(module.weight.detach().abs().sum((2, 3), keepdim=True))
        elif isinstance(module, nn.Linear):
            new = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            new.weight = nn.Parameter(module.weight.detach().abs())
        elif isinstance(module, nn.BatchNorm2d):
            new = _Scale(norm_factor(module))
        elif isinstance(module, PASS_THROUGH):
            new = nn.Identity()
        if new is not None:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)


@final
class _Scale(nn.Module):
    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor.view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("factor")
