"""ASE: the rise of the adversarial loss when a weight is removed (EED main paper, eq. 10; MAD, Lee et al. 2022)."""

from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemble.models.plain_network import prunable_layers
from sparsemble.pruning.score import (
    AdversarialBatches,
    PruningScore,
    Scores,
    inputs_and_output_gradients,
    pruning_scores,
)


@final
@pruning_scores.register("ase")
@dataclass(frozen=True, kw_only=True)
class ASE(PruningScore):
    """1/2 G_jj A_aa w_ja^2 on adversarial images: the K-FAC diagonal of the loss, never negative.

    A_aa is the mean square of input a, G_jj that of the loss gradient at output j (true labels), both over images
    and positions. Constant factors of a layer do not change its order and are left out.

    Source: EED main paper, eq. 10. Departs: K-FAC diagonal on adversarial images and full removal, without MAD's soft
    masks; the raw Hessian diagonal may be negative.
    """

    def __call__(self, model: nn.Module, adversarial: AdversarialBatches) -> Scores:
        """Score every prunable weight."""
        layers = prunable_layers(model)
        squares_in = {name: torch.zeros_like(layer.weight[:1]) for name, layer in layers.items()}
        squares_out = {
            name: torch.zeros(len(layer.weight), device=layer.weight.device) for name, layer in layers.items()
        }
        for x, y in adversarial():
            inputs, gradients = inputs_and_output_gradients(model, x, y)
            for name, layer in layers.items():
                squares_in[name] += _input_squares(layer, inputs[name])
                squares_out[name] += _channel_sum(gradients[name].square())
        return {
            name: 0.5
            * squares_out[name].view(-1, *[1] * (layer.weight.ndim - 1))
            * squares_in[name]
            * layer.weight.detach().square()
            for name, layer in layers.items()
        }


def _input_squares(module: nn.Module, x: Tensor) -> Tensor:
    """Return the sum of squares of the inputs that each weight of one output multiplies, (1, ...) like the weight."""
    if isinstance(module, nn.Linear):
        return x.square().reshape(-1, x.shape[-1]).sum(0, keepdim=True)
    assert isinstance(module, nn.Conv2d)
    layout: dict[str, Any] = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
    shape = (1, x.shape[1], *module.weight.shape[2:])
    probe = torch.zeros(shape, dtype=x.dtype, device=x.device, requires_grad=True)
    with torch.enable_grad():
        response = F.conv2d(x.square(), probe, **layout)
    return torch.autograd.grad(response.sum(), probe)[0]


def _channel_sum(squares: Tensor) -> Tensor:
    """Sum (B, C, ...) over everything but C."""
    return squares.transpose(0, 1).flatten(1).sum(1)
