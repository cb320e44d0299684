"""Networks of the runtime in torch: the reference of every exported format, and what attacks search on."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemble.core.interfaces import Ensemble, combiners
from sparsemble.core.types import Images, Logits
from sparsemble.runtime import network as runtime
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.network import Network, Node

LARGEST_EXACT = 2**24
"""Whole numbers up to here are exact in float32, and so are sums that never exceed it, in any order."""
KEEPS_STEPS = (runtime.MaxPool, runtime.Flatten)
"""What gives numbers of its input, and so keeps their steps."""


def to_torch_ensemble(ensemble: PackedEnsemble) -> Ensemble:
    """Return a packed ensemble in torch, in eval mode."""
    members = [FoldedNetwork(member) for member in ensemble.members]
    return Ensemble(members, combiners.build(dict(ensemble.combiner))).eval()


@final
class FoldedNetwork(nn.Module):
    """Computes the operations of a runtime network; has no trainable parameter.

    A result in 8 bits is kept in steps, as q - zero, and layers add products of such whole numbers exactly. Gradients
    pass the rounding as if it were not there, and end where a value is beyond the range (straight-through estimator;
    Bengio et al. 2013).

    Args:
        network: with BatchNorm folded.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.nodes, self.steps = network.nodes, network.steps
        self.free = results_to_free(network.nodes)
        read = Counter(source for node in network.nodes for source in node.inputs)
        self.in_place = [  # the gradient of a sum does not need its result, if nothing else reads it
            isinstance(node, runtime.Relu)
            and isinstance(network.nodes[node.inputs[0]], runtime.Convolution | runtime.Linear | runtime.Add)
            and read[node.inputs[0]] == 1
            and node.inputs[0] not in network.steps
            for node in network.nodes
        ]
        for i, node in enumerate(network.nodes):
            if isinstance(node, runtime.Convolution | runtime.Linear):
                self._add_weight(i, node)
                self.register_buffer(f"shift{i}", torch.from_numpy(node.bias.copy()))
            elif isinstance(node, runtime.Affine):
                self.register_buffer(f"factor{i}", torch.from_numpy(node.scale.copy()))
                self.register_buffer(f"shift{i}", torch.from_numpy(node.shift.copy()))
        for i, steps in network.steps.items():
            # A tensor: what is divided by a number may be multiplied by its reciprocal instead.
            self.register_buffer(f"step{i}", torch.tensor(steps.scale))

    def forward(self, x: Images) -> Logits:
        """Return logits."""
        return run_nodes(self.nodes, self.free, x, self.run if self.steps else self._run)

    def run(self, index: int, node: Node, inputs: list[Tensor]) -> Tensor:
        """Return the result of an operation, one in 8 bits in steps.

        Args:
            index: of the operation.
            node: the operation.
            inputs: the results that it reads.
        """
        source = node.inputs[0]
        if source in self.steps and isinstance(node, KEEPS_STEPS):
            return self._run(index, node, inputs)
        integers = self._buffers.get(f"integers{index}")
        if integers is not None:
            total = self._sum(node, inputs[0].to(integers.dtype), integers).to(inputs[0].dtype)
            across = (-1, *(1,) * (total.ndim - 2))
            factor, shift = (self.get_buffer(f"{name}{index}").view(across) for name in ("factor", "shift"))
            result = total * factor + shift
        else:
            pairs = zip(node.inputs, inputs, strict=True)
            result = self._run(index, node, [self.value(source, result) for source, result in pairs])
        return self._in_steps(index, result) if index in self.steps else result

    def value(self, index: int, result: Tensor) -> Tensor:
        """Return the numbers that the result of an operation stands for."""
        return result * self.get_buffer(f"step{index}") if index in self.steps else result

    def _in_steps(self, index: int, value: Tensor) -> Tensor:
        zero = self.steps[index].zero
        inside = (value / self.get_buffer(f"step{index}")).clamp(-zero, 255 - zero)
        return inside + (inside.round() - inside).detach()  # the sum is exact, as the difference is

    def _add_weight(self, index: int, node: runtime.Convolution | runtime.Linear) -> None:
        """Add the weights of a layer; integers and the factor of their sums where it reads 8 bits."""
        weight, steps = node.weight, self.steps.get(node.inputs[0])
        if steps is None or weight.integers is None or weight.scales is None:
            self.register_buffer(f"factor{index}", torch.from_numpy(weight.dense()))
            return
        integers = torch.from_numpy(replace(weight, values=weight.integers.astype(np.float32)).dense())
        exact = torch.float32 if weight.largest_sum() * 255 <= LARGEST_EXACT else torch.float64
        self.register_buffer(f"integers{index}", integers.to(exact))
        self.register_buffer(f"factor{index}", torch.from_numpy(weight.scales * np.float32(steps.scale)))

    @staticmethod
    def _sum(node: Node, x: Tensor, integers: Tensor) -> Tensor:
        if isinstance(node, runtime.Convolution):
            return torch.conv2d(x, integers, None, node.stride, node.padding, node.dilation)
        return F.linear(x, integers)

    def _run(self, index: int, node: Node, inputs: list[Tensor]) -> Tensor:
        """Return the result of an operation in floats."""
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
