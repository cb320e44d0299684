"""Networks of one layout side by side: each layer is one convolution, with a group for each network."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemble.core.types import Images, MemberLogits
from sparsemble.models.folded import results_to_free, run_nodes, run_plain
from sparsemble.runtime import network as runtime
from sparsemble.runtime.network import Network, Node, Weight

SHAREABLE = (runtime.Affine, runtime.Relu, runtime.Add, runtime.MaxPool, runtime.AveragePool)
"""What has one result for all networks where it reads such results, and its constants are the same."""


def have_one_layout(networks: Sequence[Network]) -> bool:
    """Return whether networks compute in float32 and differ in nothing but their weights and constants."""
    return not any(network.steps for network in networks) and all(
        _layout(network) == _layout(networks[0]) for network in networks
    )


def _layout(network: Network) -> list[tuple[Any, ...]]:
    """Return kind and settings of each operation; of its tensors the shapes."""

    def setting(value: Any) -> Any:
        return tuple(value.shape) if isinstance(value, Weight | np.ndarray) else value

    return [
        (type(node), shape, *(setting(getattr(node, field.name)) for field in fields(node)))
        for node, shape in zip(network.nodes, network.shapes, strict=True)
    ]


@final
class FoldedMembers(nn.Module):
    """Computes the logits of all networks at once; has no trainable parameter.

    Feature maps are (B, M * C, H, W), network by network, and features (M, B, F). What all networks compute alike, as
    the normalisation of images, is computed once.

    Args:
        networks: M of one layout, with BatchNorm folded.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__()
        self.members = len(networks)
        self.nodes = networks[0].nodes
        self.free = results_to_free(self.nodes)
        self.shared: list[bool] = []
        """Whether each result is the same for all networks, (B, C, H, W)."""
        for i, alike in enumerate(zip(*(network.nodes for network in networks), strict=True)):
            self.shared.append(self._is_shared(alike))
            for name, tensor in _tensors(alike, self.shared[i]).items():
                self.register_buffer(f"{name}{i}", tensor)

    def forward(self, x: Images) -> MemberLogits:
        """Return the logits of every network."""
        return run_nodes(self.nodes, self.free, x, self._run)

    def _is_shared(self, alike: Sequence[Node]) -> bool:
        node = alike[0]
        if isinstance(node, runtime.Input):
            return True
        if not isinstance(node, SHAREABLE) or not all(self.shared[source] for source in node.inputs):
            return False
        return not isinstance(node, runtime.Affine) or all(
            np.array_equal(node.scale, other.scale) and np.array_equal(node.shift, other.shift)
            for other in alike
            if isinstance(other, runtime.Affine)
        )

    def _run(self, index: int, node: Node, inputs: list[Tensor]) -> Tensor:
        if type(node) is runtime.Convolution:
            weight, bias = self._buffer("weight", index), self._buffer("bias", index)
            groups = 1 if self.shared[node.inputs[0]] else self.members
            return F.conv2d(inputs[0], weight, bias, node.stride, node.padding, node.dilation, groups)
        if not self.shared[index]:
            shared = [self.shared[source] for source in node.inputs]
            inputs = [x.repeat(1, self.members, 1, 1) if s else x for x, s in zip(inputs, shared, strict=True)]
        kind = type(node)
        if kind is runtime.Linear:
            return torch.baddbmm(self._buffer("bias", index), inputs[0], self._buffer("weight", index))
        if kind is runtime.Affine:
            return inputs[0] * self._buffer("scale", index) + self._buffer("shift", index)
        if kind is runtime.Flatten:
            return inputs[0].reshape(len(inputs[0]), self.members, -1).transpose(0, 1)
        return run_plain(node, inputs)

    def _buffer(self, name: str, index: int) -> Tensor:
        return self.get_buffer(f"{name}{index}")


def _tensors(alike: Sequence[Node], shared: bool) -> dict[str, Tensor]:
    """Return the tensors of one operation of all networks, in the shape in which they are used."""

    def stacked(name: str) -> Tensor:
        arrays = [getattr(node, name) for node in alike]
        dense = [value.dense() if isinstance(value, Weight) else value for value in arrays]
        return torch.from_numpy(np.stack(dense[:1] if shared else dense))

    node = alike[0]
    if isinstance(node, runtime.Convolution):
        return {"weight": stacked("weight").flatten(0, 1), "bias": stacked("bias").flatten()}
    if isinstance(node, runtime.Linear):
        return {"weight": stacked("weight").transpose(1, 2).contiguous(), "bias": stacked("bias")[:, None]}
    if isinstance(node, runtime.Affine):
        return {name: stacked(name).view(-1, 1, 1) for name in ("scale", "shift")}
    return {}
