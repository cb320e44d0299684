"""Networks of the runtime in torch: the reference of every exported format, and what attacks search on."""

from collections import Counter
from collections.abc import Callable, Sequence
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
        self.free = results_to_free(network.nodes)
        read = Counter(source for node in network.nodes for source in node.inputs)
        self.in_place = [  # the gradient of a sum does not need its result, if nothing else reads it
            isinstance(node, runtime.Relu)
            and isinstance(network.nodes[node.inputs[0]], runtime.Convolution | runtime.Linear | runtime.Add)
            and read[node.inputs[0]] == 1
            for node in network.nodes
        ]
        for i, node in enumerate(network.nodes):
            if isinstance(node, runtime.Convolution | runtime.Linear):
                self.register_buffer(f"factor{i}", torch.from_numpy(node.weight.dense()))
                self.register_buffer(f"shift{i}", torch.from_numpy(node.bias.copy()))
            elif isinstance(node, runtime.Affine):
                self.register_buffer(f"factor{i}", torch.from_numpy(node.scale.copy()))
                self.register_buffer(f"shift{i}", torch.from_numpy(node.shift.copy()))

    def forward(self, x: Images) -> Logits:
        """Return logits."""
        return run_nodes(self.nodes, self.free, x, self._run)

    def _run(self, index: int, node: Node, inputs: list[Tensor]) -> Tensor:
        if self.in_place[index]:
            return inputs[0].relu_()
        kind = type(node)  # isinstance is slow on abstract classes, and this runs for every operation of every pass
        if kind is runtime.Flatten:
            return inputs[0].flatten(1)
        factor = self._buffers.get(f"factor{index}")
        shift = self._buffers.get(f"shift{index}")
        if factor is None or shift is None:
            return run_plain(node, inputs)
        if isinstance(node, runtime.Convolution):
            return torch.conv2d(inputs[0], factor, shift, node.stride, node.padding, node.dilation)
        if kind is runtime.Linear:
            return F.linear(inputs[0], factor, shift)
        return inputs[0] * factor[:, None, None] + shift[:, None, None]


def results_to_free(nodes: Sequence[Node]) -> list[list[int]]:
    """Return, for each operation, the results that no later one reads."""
    last = {source: i for i, node in enumerate(nodes) for source in node.inputs}
    return [[source for source in sorted(last) if last[source] == i] for i in range(len(nodes))]


def run_plain(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Return the result of an operation without weights, each channel by itself.

    Args:
        node: a pool, a ReLU or an addition.
        inputs: what it reads, (B, C, H, W); for a ReLU or an addition also of any other shape.
    """
    kind = type(node)
    if kind is runtime.Relu:
        return F.relu(inputs[0])
    if kind is runtime.Add:
        return inputs[0] + inputs[1]
    assert isinstance(node, runtime.MaxPool | runtime.AveragePool)
    pool = F.max_pool2d if kind is runtime.MaxPool else F.avg_pool2d
    return pool(inputs[0], node.kernel, node.stride, node.padding)


def run_nodes(
    nodes: Sequence[Node], free: Sequence[Sequence[int]], x: Images, run: Callable[[int, Node, list[Tensor]], Tensor]
) -> Tensor:
    """Return the result of the last operation of a network.

    Args:
        nodes: operations, each after those that it reads.
        free: for each operation, the results that none after it reads.
        x: (B, C, H, W) images, the result of what reads nothing.
        run: computes an operation, from its index and the results that it reads.
    """
    results: dict[int, Tensor] = {}
    for i, node in enumerate(nodes):
        inputs = [results[source] for source in node.inputs]
        results[i] = run(i, node, inputs) if inputs else x
        for unread in free[i]:
            del results[unread]
    return results[len(nodes) - 1]
