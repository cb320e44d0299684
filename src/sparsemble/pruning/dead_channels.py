"""Channels that can no longer influence the output, and the weights that serve only them."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from sparsemble.models.channel_groups import channel_groups
from sparsemble.models.graph import Graph, Operation
from sparsemble.pruning.mask import Mask


@final
@dataclass(frozen=True)
class DeadChannels:
    """What has no say."""

    mask: Mask
    """What is left without it; the logits are the same on every image."""
    alive: dict[str, Tensor]
    """For each layer, which of its output channels still matter, (O)."""
    channels: int
    """Channels that do not."""
    weights: int
    """Weights that stayed and serve only these."""


@torch.no_grad()
def find_dead_channels(mask: Mask, graph: Graph) -> DeadChannels:
    """Find what a mask leaves without influence on the output.

    A channel is dead if no weight reads it, or if it is 0 on every image: then nothing needs to read it. A channel
    that is constant but not 0 stays, because padding makes its use differ at the border.

    Args:
        mask: of the network.
        graph: of the network; its biases and BatchNorms count, its weights do not.
    """
    keep = {name: one.cpu().clone() for name, one in mask.items()}
    groups = [space for space in channel_groups(graph) if space.free]
    alive = {name: torch.ones(len(one), dtype=torch.bool) for name, one in keep.items()}
    left = -1
    while left != (left := sum(int(one.sum()) for one in keep.values())):
        silent = _silent(graph, keep)
        for space in groups:
            read = torch.zeros(space.channels, dtype=torch.bool)
            for name in space.consumers:
                by_input = keep[name].view(len(keep[name]), space.channels, -1)
                by_input &= ~silent[graph.by_name[name].inputs[0]].view(1, -1, 1)
                read |= by_input.any(2).any(0)
            for name in space.producers:
                keep[name][~read] = False
                alive[name] = read
    channels = sum(int((~alive[space.producers[0]]).sum()) for space in groups)
    found = Mask({name: one.to(mask[name].device) for name, one in keep.items()})
    return DeadChannels(found, alive, channels, mask.nonzeros - found.nonzeros)


def _silent(graph: Graph, keep: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return for each operation which of its channels are 0 on every image."""
    constant: dict[str, Tensor] = {}
    for operation in graph.operations:
        constant[operation.name] = _constant(operation, [constant[name] for name in operation.inputs], keep)
    return {name: value == 0 for name, value in constant.items()}


def _constant(operation: Operation, given: list[Tensor], keep: dict[str, Tensor]) -> Tensor:
    """Return the value of each channel that is the same everywhere on every image; NaN for all others."""
    if operation.kind in ("input", "affine"):
        return torch.full((operation.shape[0],), torch.nan)
    if operation.kind in ("conv", "linear"):
        return _constant_of_layer(operation, given[0], keep[operation.name])
    if operation.kind == "add":
        return given[0] + given[1]
    if operation.kind == "relu":
        return given[0].clamp_min(0)
    if operation.kind == "norm":
        return _normalised(operation, given[0])
    # Average pooling over padding changes a constant other than 0; 0 stays 0.
    return torch.where(given[0] == 0, 0.0, torch.nan) if operation.kind == "pool" else given[0]


def _constant_of_layer(operation: Operation, given: Tensor, keep: Tensor) -> Tensor:
    """A layer's output is constant where every weight that is left reads a channel that is 0 everywhere."""
    layer = operation.module
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    reads = (keep.view(len(keep), len(given), -1).any(2) & (given != 0)).any(1)
    bias = torch.zeros(len(keep)) if layer.bias is None else layer.bias.detach().cpu().float()
    return torch.where(reads, torch.nan, bias)


def _normalised(operation: Operation, given: Tensor) -> Tensor:
    norm = operation.module
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach().cpu() if norm.affine else torch.ones(norm.num_features)
    shift = norm.bias.detach().cpu() if norm.affine else torch.zeros(norm.num_features)
    mean, deviation = norm.running_mean.cpu(), (norm.running_var.cpu() + norm.eps).sqrt()
    # A channel that BatchNorm multiplies by 0 is constant, whatever comes in.
    return torch.where(scale == 0, shift, (given - mean) / deviation * scale + shift)
