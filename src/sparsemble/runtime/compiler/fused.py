"""A network as few operations as the kernels can do: everything that can ride along with a sum of products does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.network import (
    Add,
    Affine,
    AveragePool,
    Convolution,
    Flatten,
    Floats,
    Input,
    Linear,
    MaxPool,
    Network,
    Node,
    Pair,
    Relu,
    Shape,
    Weight,
)


@final
@dataclass(frozen=True, eq=False)
class ConvOp:
    """A convolution, or a linear layer as one whose window is the whole plane; plus a residual, then perhaps ReLU."""

    source: int
    out: int
    weight: Weight
    """(outputs, inputs, height, width)"""
    bias: Floats
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    residual: int | None = None
    relu: bool = False
    wanted: NDArray[np.bool_] | None = None
    """(outputs) which of them somebody reads; none: all."""


@final
@dataclass(frozen=True, eq=False)
class PoolOp:
    """The largest or the mean of each window."""

    source: int
    out: int
    kernel: Pair
    stride: Pair
    padding: Pair
    largest: bool


@final
@dataclass(frozen=True, eq=False)
class AffineOp:
    """Scale and shift of each channel, then perhaps ReLU."""

    source: int
    out: int
    scale: Floats
    shift: Floats
    relu: bool = False


@final
@dataclass(frozen=True, eq=False)
class AddOp:
    """Two results added, then perhaps ReLU."""

    source: int
    other: int
    out: int
    relu: bool = False


LARGEST_WINDOW = 64
"""Of a pool that is written out as one sum."""
FusedOp = ConvOp | PoolOp | AffineOp | AddOp


@final
@dataclass(frozen=True, eq=False)
class FusedGraph:
    """Operations on buffers; buffer 0 is the image, scaled and shifted."""

    shapes: tuple[Shape, ...]
    """Channels, height and width of each buffer."""
    operations: tuple[FusedOp, ...]
    scale: Floats
    """Of the image's channels."""
    shift: Floats
    answer: int
    """The buffer that holds the logits, read in C order."""
    classes: int
    readers: Mapping[int, list[FusedOp]] = field(init=False)
    """The operations that read each buffer."""

    def __post_init__(self) -> None:
        readers: dict[int, list[FusedOp]] = {buffer: [] for buffer in range(len(self.shapes))}
        for operation in self.operations:
            for buffer in sources(operation):
                readers[buffer].append(operation)
        object.__setattr__(self, "readers", readers)


def sources(operation: FusedOp) -> list[int]:
    """Return the buffers that an operation reads."""
    if isinstance(operation, ConvOp) and operation.residual is not None:
        return [operation.source, operation.residual]
    return [operation.source, operation.other] if isinstance(operation, AddOp) else [operation.source]


def fuse(network: Network) -> FusedGraph:
    """Fuse a network."""
    return _Fuser(network).run()


class _Fuser:
    """Goes through the nodes once; a node that is absorbed by an earlier one has that one's buffer."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.consumers: list[list[int]] = [[] for _ in network.nodes]
        for place, node in enumerate(network.nodes):
            for given in node.inputs:
                self.consumers[given].append(place)
        self.buffers: dict[int, int] = {0: 0}
        self.shapes: list[Shape] = [network.image]
        self.operations: list[FusedOp] = []
        channels = network.image[0]
        self.scale, self.shift = np.ones(channels, np.float32), np.zeros(channels, np.float32)

    def run(self) -> FusedGraph:
        """Return what is left."""
        for place, node in enumerate(self.network.nodes):
            if place not in self.buffers:
                self._take(place, node)
        return FusedGraph(
            shapes=tuple(self.shapes),
            operations=tuple(self.operations),
            scale=self.scale,
            shift=self.shift,
            answer=self.buffers[len(self.network.nodes) - 1],
            classes=self.network.classes,
        )

    def _take(self, place: int, node: Node) -> None:
        source = self.buffers[node.inputs[0]]
        if isinstance(node, Flatten):
            self.buffers[place] = source
        elif isinstance(node, Affine) and source == 0 and self.consumers[node.inputs[0]] == [place]:
            self.scale, self.shift = self.scale * node.scale, self.shift * node.scale + node.shift
            self.buffers[place] = 0
        elif isinstance(node, Convolution | Linear):
            self._product(place, node, source)
        elif isinstance(node, MaxPool | AveragePool):
            self._pool(place, node, source)
        elif isinstance(node, Affine):
            absorbed, relu = self._relu_after(place)
            self.operations.append(AffineOp(source, self._buffer(absorbed), node.scale, node.shift, relu))
        elif isinstance(node, Add):
            absorbed, relu = self._relu_after(place)
            other = self.buffers[node.inputs[1]]
            self.operations.append(AddOp(source, other, self._buffer(absorbed), relu))
        elif isinstance(node, Relu):
            ones, zeros = (np.full(self.network.shapes[place][0], v, np.float32) for v in (1, 0))
            self.operations.append(AffineOp(source, self._buffer([place]), ones, zeros, True))
        elif not isinstance(node, Input):
            raise RuntimeInputError(f"operation {place} is {type(node).__name__}, which the engine does not know")

    def _product(self, place: int, node: Convolution | Linear, source: int) -> None:
        absorbed, residual = [place], None
        after = self.consumers[place]
        if len(after) == 1 and isinstance(self.network.nodes[after[0]], Add):
            first, second = self.network.nodes[after[0]].inputs
            other = second if first == place else first
            # The later of the two summands takes the earlier one along, if that is there already.
            if other != place and other in self.buffers:
                absorbed, residual = [place, after[0]], self.buffers[other]
        after, relu = self._relu_after(absorbed[-1])
        out = self._buffer([*absorbed, *after])
        if isinstance(node, Convolution):
            operation = ConvOp(
                source, out, node.weight, node.bias, node.stride, node.padding, node.dilation, residual, relu
            )
        else:
            weight = node.weight.as_shape((len(node.bias), *self.shapes[source]))
            operation = ConvOp(source, out, weight, node.bias, residual=residual, relu=relu)
        self.operations.append(operation)

    def _pool(self, place: int, node: MaxPool | AveragePool, source: int) -> None:
        """Pool a window at once, or, where it is large, its rows and then its columns."""
        largest, windows = isinstance(node, MaxPool), [(node.kernel, node.stride, node.padding)]
        if node.kernel[0] * node.kernel[1] > LARGEST_WINDOW and min(node.kernel) > 1:
            windows = [
                ((1, node.kernel[1]), (1, node.stride[1]), (0, node.padding[1])),
                ((node.kernel[0], 1), (node.stride[0], 1), (node.padding[0], 0)),
            ]
            channels, height, _ = self.shapes[source]
            self.shapes.append((channels, height, self.network.shapes[place][2]))
            between = len(self.shapes) - 1
            self.operations.append(PoolOp(source, between, *windows[0], largest))
            source, windows = between, windows[1:]
        self.operations.append(PoolOp(source, self._buffer([place]), *windows[0], largest))

    def _relu_after(self, place: int) -> tuple[list[int], bool]:
        """Return a node with the ReLU that alone reads it, if there is one."""
        after = self.consumers[place]
        if len(after) == 1 and isinstance(self.network.nodes[after[0]], Relu):
            return [place, after[0]], True
        return [place], False

    def _buffer(self, places: Sequence[int]) -> int:
        """Make a buffer that holds the result of these nodes."""
        self.shapes.append(self._as_planes(self.network.shapes[places[-1]]))
        for place in places:
            self.buffers[place] = len(self.shapes) - 1
        return len(self.shapes) - 1

    @staticmethod
    def _as_planes(shape: Shape) -> Shape:
        """Return features as channels of one pixel."""
        return shape if len(shape) == 3 else (shape[0], 1, 1)
