"""Channels that can no longer influence the output, and the weights that serve only them."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from sparsemble.core.module_state import copy_network
from sparsemble.core.same_outputs import assert_same_outputs
from sparsemble.models.channel_groups import channel_groups
from sparsemble.models.graph import Graph, Operation
from sparsemble.pruning.mask import Mask


@final
@dataclass(frozen=True)
class DeadChannels:
    """Channels without influence on the output."""

    mask: Mask
    """The mask without them; the logits are the same on every image."""
    alive: dict[str, Tensor]
    """Which output channels of each layer (O) have influence, by layer."""
    channels: int
    """Number of channels without influence."""
    weights: int
    """Number of kept weights that serve only these."""


@torch.no_grad()
def find_dead_channels(mask: Mask, graph: Graph) -> DeadChannels:
    """Find the channels that a mask leaves without influence on the output.

    A channel is dead if no weight reads it, or if it is 0 on every image: then nothing needs to read it. A channel
    that is constant but not 0 stays, because padding makes its use differ at the border.

    Raises:
        InputError: the masked network gives other logits without these channels, so that its operations were misread.
    """
    keep = {name: layer.cpu().clone() for name, layer in mask.items()}
    groups = [group for group in channel_groups(graph) if group.free]
    alive = {name: torch.ones(len(layer), dtype=torch.bool) for name, layer in keep.items()}
    left = -1
    while left != (left := sum(int(layer.sum()) for layer in keep.values())):
        silent = _silent(graph, keep)
        for group in groups:
            read = torch.zeros(group.channels, dtype=torch.bool)
            for name in group.consumers:
                by_input = keep[name].view(len(keep[name]), group.channels, -1)
                by_input &= ~silent[graph.by_name[name].inputs[0]].view(1, -1, 1)
                read |= by_input.any(2).any(0)
            for name in group.producers:
                keep[name][~read] = False
                alive[name] = read
    channels = sum(int((~alive[group.producers[0]]).sum()) for group in groups)
    smaller = Mask({name: layer.to(mask[name].device) for name, layer in keep.items()})
    masked, without = copy_network(graph.model), copy_network(graph.model)
    mask.apply_(masked)
    smaller.apply_(without)
    assert_same_outputs(masked, without, graph.shape, "without the channels that seem to be dead")
    return DeadChannels(smaller, alive, channels, mask.nonzeros - smaller.nonzeros)


def _silent(graph: Graph, keep: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return which channels of each operation are 0 on every image."""
    constant: dict[str, Tensor] = {}
    for operation in graph.operations:
        constant[operation.name] = _constant(operation, [constant[name] for name in operation.inputs], keep)
    return {name: value == 0 for name, value in constant.items()}


def _constant(operation: Operation, inputs: list[Tensor], keep: dict[str, Tensor]) -> Tensor:
    """Return the value of each channel that is the same everywhere on every image; NaN for all others."""
    if operation.kind in ("input", "affine"):
        return torch.full((operation.shape[0],), torch.nan)
    if operation.kind in ("conv", "linear"):
        return _constant_of_layer(operation, inputs[0], keep[operation.name])
    if operation.kind == "add":
        return inputs[0] + inputs[1]
    if operation.kind == "relu":
        return inputs[0].clamp_min(0)
    if operation.kind == "norm":
        return _normalised(operation, inputs[0])
    # Average pooling over padding changes a constant other than 0; 0 stays 0.
    return torch.where(inputs[0] == 0, 0.0, torch.nan) if operation.kind == "pool" else inputs[0]


def _constant_of_layer(operation: Operation, constants: Tensor, keep: Tensor) -> Tensor:
    """Return the constant outputs of a layer: where every kept weight reads a channel that is 0 everywhere."""
    layer = operation.module
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    reads = (keep.view(len(keep), len(constants), -1).any(2) & (constants != 0)).any(1)
    bias = torch.zeros(len(keep)) if layer.bias is None else layer.bias.detach().cpu().float()
    return torch.where(reads, torch.nan, bias)


def _normalised(operation: Operation, constants: Tensor) -> Tensor:
    """Return the constants after a BatchNorm in eval mode."""
    norm = operation.module
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.running_mean is None or norm.running_var is None:
        return torch.full_like(constants, torch.nan)
    scale = norm.weight.detach().cpu() if norm.affine else torch.ones(norm.num_features)
    shift = norm.bias.detach().cpu() if norm.affine else torch.zeros(norm.num_features)
    mean, deviation = norm.running_mean.cpu(), (norm.running_var.cpu() + norm.eps).sqrt()
    # A channel that BatchNorm multiplies by 0 is constant for every input.
    return torch.where(scale == 0, shift, (constants - mean) / deviation * scale + shift)
