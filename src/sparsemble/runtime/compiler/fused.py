"""A network as the operations that kernels compute: residual sums and ReLUs are part of the operation before them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.network import (
    Add,
    Affine,
    Convolution,
    Flatten,
    Floats,
    Input,
    Linear,
    MaxPool,
    Network,
    Node,
    Pair,
    Pool,
    Relu,
    Shape,
    Steps,
    Weight,
)

CHANNELS_OF_LANE = 4
"""In 8 bits: they are the bytes of one 32-bit lane."""
LARGEST_WINDOW = 64
"""Pixels; the pool of a larger window is computed in two steps, along rows and then along columns."""


@final
@dataclass(frozen=True, eq=False)
class ConvOp:
    """relu(convolution + bias + residual); a linear layer is a convolution whose window is the whole plane."""

    source: int
    """Buffer that is read."""
    out: int
    """Buffer that is written."""
    weight: Weight
    """(outputs, inputs, height, width)"""
    bias: Floats
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    residual: int | None = None
    """Buffer that is added."""
    relu: bool = False
    needed_outputs: NDArray[np.bool_] | None = None
    """(outputs) whether a later operation reads the channel; None: all are read."""


@final
@dataclass(frozen=True, eq=False)
class PoolOp:
    """The maximum or the mean of each window."""

    source: int
    out: int
    kernel: Pair
    stride: Pair
    padding: Pair
    is_max: bool


@final
@dataclass(frozen=True, eq=False)
class AffineOp:
    """relu(scale x + shift) for each channel."""

    source: int
    out: int
    scale: Floats
    shift: Floats
    relu: bool = False


@final
@dataclass(frozen=True, eq=False)
class AddOp:
    """relu(x + addend)."""

    source: int
    addend: int
    """Buffer that is added."""
    out: int
    relu: bool = False


@final
@dataclass(frozen=True, eq=False)
class ConvertOp:
    """Floats as 8-bit steps, or steps as floats."""

    source: int
    out: int


FusedOp = ConvOp | PoolOp | AffineOp | AddOp | ConvertOp


@final
@dataclass(frozen=True, eq=False)
class FusedGraph:
    """Operations on buffers; buffer 0 is the image, scaled and shifted."""

    shapes: tuple[Shape, ...]
    """Channels, height and width of each buffer."""
    operations: tuple[FusedOp, ...]
    """In running order."""
    scale: Floats
    """Of the image's channels."""
    shift: Floats
    logits_buffer: int
    """The buffer of the logits, in C order."""
    classes: int
    steps: Mapping[int, Steps] = field(default_factory=dict)
    """Of the buffers that hold 8 bits."""

    def planes(self, buffer: int) -> Shape:
        """Return planes, height and width of a buffer: in 8 bits, four channels share a plane."""
        channels, height, width = self.shapes[buffer]
        return (-(-channels // CHANNELS_OF_LANE) if buffer in self.steps else channels), height, width

    def fill(self, buffer: int) -> int:
        """Return the byte of pixels outside a buffer: the step that means 0."""
        return self.steps[buffer].zero if buffer in self.steps else 0

    def reads_integers(self, operation: FusedOp) -> bool:
        """Return whether a convolution adds integers: it reads 8-bit steps, and its weights are integers."""
        return (
            isinstance(operation, ConvOp) and operation.source in self.steps and operation.weight.integers is not None
        )


def sources(operation: FusedOp) -> list[int]:
    """Return the buffers that an operation reads."""
    if isinstance(operation, ConvOp) and operation.residual is not None:
        return [operation.source, operation.residual]
    return [operation.source, operation.addend] if isinstance(operation, AddOp) else [operation.source]


def fuse(network: Network) -> FusedGraph:
    """Return the operations of a network, each with the residual sum and ReLU that follow it."""
    return _Fuser(network).run()


def fused_groups(network: Network) -> dict[int, int]:
    """Return the buffer of each node's result; nodes that are computed in one go share one."""
    fuser = _Fuser(network)
    fuser.run()
    return fuser.buffers


class _Fuser:
    """Reads the nodes in order; a node that is fused into an earlier one shares the buffer of that node."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.consumers: list[list[int]] = [[] for _ in network.nodes]
        for i, node in enumerate(network.nodes):
            for source in node.inputs:
                self.consumers[source].append(i)
        self.buffers: dict[int, int] = {0: 0}
        """The buffer of each node's result."""
        self.shapes: list[Shape] = [network.image]
        self.operations: list[FusedOp] = []
        self.steps: dict[int, Steps] = {}
        """Of the buffers."""
        channels = network.image[0]
        self.scale, self.shift = np.ones(channels, np.float32), np.zeros(channels, np.float32)

    def run(self) -> FusedGraph:
        """Return the fused graph."""
        for i, node in enumerate(self.network.nodes):
            if i not in self.buffers:
                self._add_node(i, node)
        return FusedGraph(
            shapes=tuple(self.shapes),
            operations=tuple(self.operations),
            scale=self.scale,
            shift=self.shift,
            logits_buffer=self.buffers[len(self.network.nodes) - 1],
            classes=self.network.classes,
            steps=self.steps,
        )

    def _add_node(self, index: int, node: Node) -> None:
        source = self.buffers[node.inputs[0]]
        if isinstance(node, Flatten):
            self.buffers[index] = source
        elif (
            isinstance(node, Affine)
            and source == 0
            and self.consumers[node.inputs[0]] == [index]
            and self._exact(index)
        ):
            self.scale, self.shift = self.scale * node.scale, self.shift * node.scale + node.shift
            self.buffers[index] = 0
        elif isinstance(node, Convolution | Linear):
            self._add_conv(index, node, source)
        elif isinstance(node, Pool):
            self._add_pool(index, node, source)
        elif isinstance(node, Affine):
            self._check_layout(index, self.shapes[source], (len(node.scale), *self.shapes[source][1:]))
            out, relu = self._new_buffer_with_relu([index])
            self.operations.append(AffineOp(source, out, node.scale, node.shift, relu))
        elif isinstance(node, Add):
            addend = self.buffers[node.inputs[1]]
            self._check_layout(index, self.shapes[source], self.shapes[addend])
            out, relu = self._new_buffer_with_relu([index])
            self.operations.append(AddOp(source, addend, out, relu))
        elif isinstance(node, Relu):
            ones, zeros = (np.full(self.shapes[source][0], v, np.float32) for v in (1, 0))
            self.operations.append(AffineOp(source, self._new_buffer([index]), ones, zeros, True))
        elif not isinstance(node, Input):
            raise RuntimeInputError(f"operation {index} is {type(node).__name__}, which the engine does not know")

    def _check_layout(self, index: int, first: Shape, second: Shape) -> None:
        """Refuse to combine flattened planes with features, number by number: they lie differently in memory."""
        if first != second:
            raise RuntimeInputError(
                f"operation {index} is {type(self.network.nodes[index]).__name__} of {first} and {second} numbers: "
                "the engine does not combine flattened planes with features"
            )

    def _add_conv(self, index: int, node: Convolution | Linear, source: int) -> None:
        fused, residual = [index], None
        after = self.consumers[index]
        if len(after) == 1 and isinstance(self.network.nodes[after[0]], Add) and self._exact(index):
            first, second = self.network.nodes[after[0]].inputs
            other = second if first == index else first
            # The later of the two summands adds the earlier one, if that is computed already.
            if other != index and other in self.buffers and self.shapes[self.buffers[other]] == self._own_shape(index):
                fused, residual = [index, after[0]], self.buffers[other]
        out, relu = self._new_buffer_with_relu(fused)
        if isinstance(node, Convolution):
            operation = ConvOp(
                source, out, node.weight, node.bias, node.stride, node.padding, node.dilation, residual, relu
            )
        else:
            weight = replace(node.weight, shape=(len(node.bias), *self.shapes[source]))
            operation = ConvOp(source, out, weight, node.bias, residual=residual, relu=relu)
        self.operations.append(operation)

    def _add_pool(self, index: int, node: Pool, source: int) -> None:
        """Add a pool; that of a large window as two, along rows and then along columns."""
        is_max, windows = isinstance(node, MaxPool), [(node.kernel, node.stride, node.padding)]
        if node.kernel[0] * node.kernel[1] > LARGEST_WINDOW and min(node.kernel) > 1:
            windows = [
                ((1, node.kernel[1]), (1, node.stride[1]), (0, node.padding[1])),
                ((node.kernel[0], 1), (node.stride[0], 1), (node.padding[0], 0)),
            ]
            channels, height, _ = self.shapes[source]
            self.shapes.append((channels, height, self.network.shapes[index][2]))
            between = len(self.shapes) - 1
            if is_max and source in self.steps:
                self.steps[between] = self.steps[source]
            self.operations.append(PoolOp(source, between, *windows[0], is_max))
            source, windows = between, windows[1:]
        self.operations.append(PoolOp(source, self._new_buffer([index]), *windows[0], is_max))

    def _exact(self, index: int) -> bool:
        """Return whether a result is not rounded to 8 bits, so that what reads it may be fused with it."""
        return index not in self.network.steps

    def _new_buffer_with_relu(self, nodes: list[int]) -> tuple[int, bool]:
        """Return a new buffer for these nodes and a ReLU that alone reads them, and whether there is one."""
        after = self.consumers[nodes[-1]]
        relu = len(after) == 1 and isinstance(self.network.nodes[after[0]], Relu) and self._exact(nodes[-1])
        return self._new_buffer([*nodes, *after] if relu else nodes), relu

    def _own_shape(self, index: int) -> Shape:
        """Return channels, height and width of a node's result; features are channels of one pixel."""
        shape = self.network.shapes[index]
        return shape if len(shape) == 3 else (*shape, 1, 1)

    def _new_buffer(self, nodes: Sequence[int]) -> int:
        """Return a new buffer for the result of these nodes."""
        node, shape = self.network.nodes[nodes[0]], self._own_shape(nodes[-1])
        if isinstance(node, Relu | Add | Affine):
            shape = self.shapes[self.buffers[node.inputs[0]]]  # of flattened planes, still planes
        self.shapes.append(shape)
        for index in nodes:
            self.buffers[index] = len(self.shapes) - 1
        if nodes[-1] in self.network.steps:
            self.steps[len(self.shapes) - 1] = self.network.steps[nodes[-1]]
        return len(self.shapes) - 1
