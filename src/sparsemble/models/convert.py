"""Convert torch networks to networks of the runtime; BatchNorm is folded into the layer before it."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.module_state import copy_network, unwrapped
from sparsemble.core.same_outputs import assert_same_outputs
from sparsemble.models.folded import FoldedNetwork
from sparsemble.models.graph import Graph, Operation
from sparsemble.models.plain_network import make_plain_
from sparsemble.models.pooling import as_pair, pool_node
from sparsemble.runtime import network as runtime
from sparsemble.runtime.network import Floats, Node

SIMPLE: Mapping[str, type[Node]] = {"relu": runtime.Relu, "add": runtime.Add, "flatten": runtime.Flatten}
"""Kinds of operations without settings, and their nodes."""


def convert_model(model: nn.Module, shape: tuple[int, int, int]) -> runtime.Network:
    """Convert a trained network.

    BatchNorm is folded, in double precision, into the convolution or linear layer before it, if nothing else reads that
    layer; otherwise (in pre-activation networks) it becomes a scale and shift.

    Args:
        model: any network; left as found, computed as in eval mode.
        shape: channels, height and width of an image.

    Returns:
        The network, which gives the same logits on random images.

    Raises:
        InputError: an operation that the runtime does not know, with its name, or one that becomes another there.
    """
    plain = copy_network(unwrapped(model))
    make_plain_(plain, shape)
    network = _Conversion(Graph(plain, shape), shape).run()
    assert_same_outputs(model, FoldedNetwork(network), shape, "in the runtime")
    return network


class _Conversion:
    """Converts the operations of a graph in order; one that is folded into another shares its node."""

    def __init__(self, graph: Graph, shape: tuple[int, int, int]) -> None:
        self.graph, self.shape = graph, shape
        self.nodes: list[Node] = []
        self.node_of: dict[str, int] = {}

    def run(self) -> runtime.Network:
        for operation in self.graph.operations:
            if operation.name not in self.node_of:
                node = self._node(operation)
                if node is None:
                    self.node_of[operation.name] = self.node_of[operation.inputs[0]]
                else:
                    self.nodes.append(node)
                    self.node_of[operation.name] = len(self.nodes) - 1
        return runtime.Network(self.shape, tuple(self.nodes))

    def _node(self, operation: Operation) -> Node | None:
        """Return the node of an operation; None where it changes nothing."""
        inputs = tuple(self.node_of[name] for name in operation.inputs)
        if operation.kind == "input":
            return runtime.Input()
        if operation.kind == "same":
            return None
        if operation.kind in SIMPLE:
            return SIMPLE[operation.kind](inputs)
        if operation.kind == "affine":
            return runtime.Affine(inputs, *_affine(operation, self.graph.by_name[operation.inputs[0]].shape[0]))
        if operation.kind == "norm":
            return runtime.Affine(inputs, *(_floats(constants) for constants in _norm(operation.module)))
        if operation.kind == "pool":
            return self._pool(operation, inputs)
        return self._layer(operation, inputs)

    def _layer(self, operation: Operation, inputs: tuple[int, ...]) -> Node:
        layer = operation.module
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        weight = layer.weight.detach().double()
        bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach()
        bias = bias.double().to(weight.device)
        after = self.graph.consumers[operation.name]
        if len(after) == 1 and after[0].kind == "norm":
            scale, shift = _norm(after[0].module)
            weight, bias = weight * scale.view(-1, *[1] * (weight.ndim - 1)), bias * scale + shift
            self.node_of[after[0].name] = len(self.nodes)
        if isinstance(layer, nn.Linear):
            return runtime.Linear(inputs, runtime.Weight.from_dense(_floats(weight)), _floats(bias))
        if isinstance(layer.padding, str):
            raise InputError(f'layer {operation.name} has padding "{layer.padding}"; give it as numbers')
        return runtime.Convolution(
            inputs,
            runtime.Weight.from_dense(_floats(weight)),
            _floats(bias),
            as_pair(layer.stride),
            as_pair(layer.padding),
            as_pair(layer.dilation),
        )

    def _pool(self, operation: Operation, inputs: tuple[int, ...]) -> Node | None:
        """Return a pool; a mean over the plane also drops its two axes, unless it keeps them."""
        pool = pool_node(operation, self.graph.by_name[operation.inputs[0]].shape, inputs)
        if len(operation.shape) == 3:
            return None if (pool.kernel, pool.stride, pool.padding) == ((1, 1), (1, 1), (0, 0)) else pool
        self.nodes.append(pool)
        return runtime.Flatten((len(self.nodes) - 1,))


def _affine(operation: Operation, channels: int) -> tuple[Floats, Floats]:
    """Return scale and shift of an operation with a constant: added, subtracted, multiplied or divided by."""
    constant = operation.constant
    value = torch.as_tensor(constant if constant is not None else 0.0).detach().double().flatten().cpu()
    value = value.expand(channels) if value.numel() == 1 else value
    ones, zeros = torch.ones(channels, dtype=torch.double), torch.zeros(channels, dtype=torch.double)
    if operation.function == "sub":
        return _floats(ones), _floats(-value)
    return _floats(1 / value if operation.function == "truediv" else value), _floats(zeros)


def _norm(module: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a BatchNorm in eval mode, in double precision."""
    assert isinstance(module, nn.BatchNorm2d)
    if module.running_mean is None or module.running_var is None:
        raise InputError("a BatchNorm without running statistics depends on the batch; it cannot be deployed")
    scale = (module.running_var.detach().double() + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight.detach().double()
    shift = -module.running_mean.detach().double() * scale
    return scale, shift if module.bias is None else shift + module.bias.detach().double()


def _floats(tensor: Tensor) -> Floats:
    array: Floats = np.ascontiguousarray(tensor.detach().cpu().numpy().astype(np.float32))
    return array
