"""A runtime network in torch: the reference that every exported format is held to."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemble.core.interfaces import Ensemble, combiners
from sparsemble.core.types import Images, Logits
from sparsemble.runtime import network as runtime
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.network import Network, Node


def to_torch_ensemble(ensemble: PackedEnsemble) -> Ensemble:
    """Return a packed ensemble in torch, in eval mode."""
    members = [FoldedNetwork(member) for member in ensemble.members]
    return Ensemble(members, combiners.build(dict(ensemble.combiner))).eval()


@final
class FoldedNetwork(nn.Module):
    """Runs the operations of a runtime network; nothing in it is trained.

    Args:
        network: what to run.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.nodes = network.nodes
        self.layers = nn.ModuleDict()
        for place, node in enumerate(network.nodes):
            layer = _layer(node)
            if layer is not None:
                self.layers[f"node{place}"] = layer
            elif isinstance(node, runtime.Affine):
                self.register_buffer(f"scale{place}", torch.from_numpy(node.scale.copy()))
                self.register_buffer(f"shift{place}", torch.from_numpy(node.shift.copy()))
        self.requires_grad_(False)

    def forward(self, x: Images) -> Logits:
        """Return logits."""
        results: list[Tensor] = []
        for place, node in enumerate(self.nodes):
            given = [results[i] for i in node.inputs]
            results.append(x if isinstance(node, runtime.Input) else self._run(place, node, given))
        return results[-1]

    def _run(self, place: int, node: Node, given: list[Tensor]) -> Tensor:
        if isinstance(node, runtime.Affine):
            scale, shift = self.get_buffer(f"scale{place}"), self.get_buffer(f"shift{place}")
            return given[0] * scale[:, None, None] + shift[:, None, None]
        if isinstance(node, runtime.Convolution | runtime.Linear):
            found: Tensor = self.layers[f"node{place}"](given[0])
            return found
        if isinstance(node, runtime.MaxPool):
            return F.max_pool2d(given[0], node.kernel, node.stride, node.padding)
        if isinstance(node, runtime.AveragePool):
            return F.avg_pool2d(given[0], node.kernel, node.stride, node.padding)
        if isinstance(node, runtime.Relu):
            return F.relu(given[0])
        return given[0] + given[1] if isinstance(node, runtime.Add) else given[0].flatten(1)


def _layer(node: Node) -> nn.Module | None:
    """Return the layer of a node that has weights."""
    if not isinstance(node, runtime.Convolution | runtime.Linear):
        return None
    outputs, inputs, *kernel = node.weight.shape
    layer: nn.Conv2d | nn.Linear
    if isinstance(node, runtime.Linear):
        layer = nn.Linear(inputs, outputs, device="meta")
    else:
        size = (kernel[0], kernel[1])
        layer = nn.Conv2d(inputs, outputs, size, node.stride, node.padding, node.dilation, device="meta")
    layer.weight = nn.Parameter(torch.from_numpy(node.weight.dense()))
    layer.bias = nn.Parameter(torch.from_numpy(node.bias.copy()))
    return layer
