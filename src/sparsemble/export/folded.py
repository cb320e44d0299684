"""A runtime network in torch: the reference that every exported format is held to."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemble.core.types import Images, Logits
from sparsemble.runtime import network as runtime
from sparsemble.runtime.network import Floats, Network, Node


@final
class FoldedNetwork(nn.Module):
    """Runs the operations of a runtime network; its weights are buffers, nothing is trained.

    Args:
        network: what to run.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.nodes = network.nodes
        for place, node in enumerate(network.nodes):
            for name, value in _constants(node).items():
                self.register_buffer(f"{name}{place}", torch.from_numpy(value.copy()))

    def forward(self, x: Images) -> Logits:
        """Return logits."""
        results: list[Tensor] = []
        for place, node in enumerate(self.nodes):
            given = [results[i] for i in node.inputs]
            results.append(x if isinstance(node, runtime.Input) else self._run(place, node, given))
        return results[-1]

    def _run(self, place: int, node: Node, given: list[Tensor]) -> Tensor:
        def constant(name: str) -> Tensor:
            return self.get_buffer(f"{name}{place}")

        if isinstance(node, runtime.Affine):
            return given[0] * constant("scale")[:, None, None] + constant("shift")[:, None, None]
        if isinstance(node, runtime.Convolution):
            weight, bias = constant("weight"), constant("bias")
            return F.conv2d(given[0], weight, bias, node.stride, node.padding, node.dilation)
        if isinstance(node, runtime.Linear):
            return F.linear(given[0], constant("weight"), constant("bias"))
        if isinstance(node, runtime.MaxPool):
            return F.max_pool2d(given[0], node.kernel, node.stride, node.padding)
        if isinstance(node, runtime.AveragePool):
            return F.avg_pool2d(given[0], node.kernel, node.stride, node.padding)
        if isinstance(node, runtime.Relu):
            return F.relu(given[0])
        return given[0] + given[1] if isinstance(node, runtime.Add) else given[0].flatten(1)


def _constants(node: Node) -> dict[str, Floats]:
    if isinstance(node, runtime.Affine):
        return {"scale": node.scale, "shift": node.shift}
    if isinstance(node, runtime.Convolution | runtime.Linear):
        return {"weight": node.weight.dense(), "bias": node.bias}
    return {}
