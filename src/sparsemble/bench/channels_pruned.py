"""A dense network with fewer channels, which needs as many multiply-adds as a sparse network keeps."""

import torch
from torch import nn

from sparsemble.core.types import seeded
from sparsemble.models.convert import convert_model
from sparsemble.models.graph import Graph
from sparsemble.pruning import SparsityTarget, prunable_layers
from sparsemble.pruning.budgets.macs import Macs
from sparsemble.pruning.granularities.channel import Channel
from sparsemble.pruning.shrink import shrink
from sparsemble.runtime.network import Network


def without_channels(model: nn.Module, shape: tuple[int, int, int], kept: float) -> Network:
    """Return a dense network of which channels were removed at random, the same fraction of every group.

    Args:
        model: the dense network; gets a mask.
        shape: channels, height and width of an image.
        kept: fraction of its multiply-adds that remain, in (0, 1].

    Raises:
        InputError: one channel of each group needs more.
    """
    target = SparsityTarget(graph=Graph(model, shape), sparsity=1 - kept, granularity=Channel(), budget=Macs())
    rng = seeded(0)
    scores = {name: torch.rand(layer.weight.shape, generator=rng) for name, layer in prunable_layers(model).items()}
    target.mask(scores).apply_(model)
    return convert_model(shrink(model, shape), shape)
