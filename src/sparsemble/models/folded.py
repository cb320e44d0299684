"""Networks of the runtime in torch: the reference of every exported format."""

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
    """Computes the operations of a runtime network; has no trainable parameter.

    Args:
        network: with BatchNorm folded.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.nodes = network.nodes
        self.layers = nn.ModuleDict()
        for i, node in enumerate(network.nodes):
            layer = _layer(node)
            if layer is not None:
                self.layers[f"node{i}"] = layer
            elif isinstance(node, runtime.Affine):
                self.register_buffer(f"scale{i}", torch.from_numpy(node.scale.copy()))
                self.register_buffer(f"shift{i}", torch.from_numpy(node.shift.copy()))
        self.requires_grad_(False)

    def forward(self, x: Images) -> Logits:
        """Return logits."""
        results: list[Tensor] = []
        for i, node in enumerate(self.nodes):
            inputs = [results[source] for source in node.inputs]
            results.append(x if isinstance(node, runtime.Input) else self._run(i, node, inputs))
        return results[-1]

    def _run(self, index: int, node: Node, inputs: list[Tensor]) -> Tensor:
        if isinstance(node, runtime.Affine):
            scale, shift = self.get_buffer(f"scale{index}"), self.get_buffer(f"shift{index}")
            return inputs[0] * scale[:, None, None] + shift[:, None, None]
        if isinstance(node, runtime.Convolution | runtime.Linear):
            result: Tensor = self.layers[f"node{index}"](inputs[0])
            return result
        if isinstance(node, runtime.MaxPool):
            return F.max_pool2d(inputs[0], node.kernel, node.stride, node.padding)
        if isinstance(node, runtime.AveragePool):
            return F.avg_pool2d(inputs[0], node.kernel, node.stride, node.padding)
        if isinstance(node, runtime.Relu):
            return F.relu(inputs[0])
        return inputs[0] + inputs[1] if isinstance(node, runtime.Add) else inputs[0].flatten(1)


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
