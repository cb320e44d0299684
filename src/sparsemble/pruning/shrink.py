"""A smaller dense network with the same outputs: dead channels physically removed."""

import torch
from torch import Tensor, nn

from sparsemble.core.module_state import copy_network, unwrapped
from sparsemble.core.same_outputs import assert_same_outputs
from sparsemble.models.channel_groups import ChannelGroup, channel_groups
from sparsemble.models.graph import Graph
from sparsemble.models.plain_network import make_plain_
from sparsemble.pruning.dead_channels import find_dead_channels
from sparsemble.pruning.mask import Mask


@torch.no_grad()
def shrink(model: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """Return a copy of a pruned model without the channels that cannot influence the logits, in plain layers.

    Channels that are added to each other stay or go together. At least one channel of each group stays, so that every
    layer can run.

    Args:
        model: any network that can be pruned; left as found.
        shape: channels, height and width of an image.

    Returns:
        The smaller network, which gives the same logits on random images.

    Raises:
        InputError: an operation that is not known, or a forward pass that depends on the sizes that change.
    """
    small = copy_network(unwrapped(model))
    make_plain_(small, shape)
    graph = Graph(small, shape)
    dead = find_dead_channels(Mask.of(small), graph)
    dead.mask.apply_(small)
    for group in channel_groups(graph):
        if not group.free:
            continue
        alive = dead.alive[group.producers[0]].clone()
        alive[0] |= not bool(alive.any())
        stays = alive.nonzero()[:, 0]
        select_channels_(graph, group, stays)
    assert_same_outputs(model, small, shape, "when its dead channels are removed")
    return small


def select_channels_(graph: Graph, group: ChannelGroup, indices: Tensor) -> None:
    """Keep some channels of a group, or put them into another order, in every layer and BatchNorm that has them.

    Args:
        graph: of the network to change.
        group: channels that it can go without.
        indices: the channels to keep, in their new order.
    """
    norms = {id(graph.by_name[name].module): graph.by_name[name].module for name in group.operations}
    for module in norms.values():
        if isinstance(module, nn.BatchNorm2d):
            _narrow_norm_(module, indices)
    for name in group.producers:
        _narrow_(graph.by_name[name].module, indices, 0)
    for name in group.consumers:
        _narrow_(graph.by_name[name].module, indices, 1, group.channels)


def _narrow_(layer: nn.Module | None, stays: Tensor, dim: int, channels: int = 0) -> None:
    """Keep some outputs (dim 0) or inputs (dim 1) of a layer; a linear layer may read each channel several times."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    stays = stays.to(layer.weight.device)
    if dim == 1 and isinstance(layer, nn.Linear):
        repeats = layer.in_features // channels
        stays = (stays[:, None] * repeats + torch.arange(repeats, device=stays.device)).flatten()
    layer.weight = nn.Parameter(layer.weight.index_select(dim, stays), layer.weight.requires_grad)
    if dim == 0 and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[stays], layer.bias.requires_grad)
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    else:
        layer.out_features, layer.in_features = layer.weight.shape


def _narrow_norm_(norm: nn.BatchNorm2d, stays: Tensor) -> None:
    for name in ("weight", "bias"):
        old = getattr(norm, name)
        if old is not None:
            setattr(norm, name, nn.Parameter(old[stays.to(old.device)], old.requires_grad))
    for name in ("running_mean", "running_var"):
        buffer = getattr(norm, name)
        if buffer is not None:
            norm.register_buffer(name, buffer[stays.to(buffer.device)])
    norm.num_features = len(stays)
