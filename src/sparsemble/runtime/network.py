"""A network as the runtime knows it: a list of operations on arrays, nothing to train."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.errors import RuntimeInputError

Shape = tuple[int, ...]
"""Of one image's result: channels, height and width, or features."""
Pair = tuple[int, int]
"""Down and across."""
Floats = NDArray[np.float32]


@final
@dataclass(frozen=True, eq=False)
class Weight:
    """Weights of a layer without the zeros among them."""

    shape: Shape
    """(outputs, inputs) or (outputs, inputs, height, width)."""
    positions: NDArray[np.uint32]
    """Places of the others in C order, rising."""
    values: Floats
    """What is there."""

    @staticmethod
    def of(array: NDArray[Any]) -> "Weight":
        """Take the zeros out of an array."""
        flat = np.ascontiguousarray(array, np.float32).reshape(-1)
        positions = np.flatnonzero(flat).astype(np.uint32)
        return Weight(tuple(array.shape), positions, flat[positions])

    @property
    def size(self) -> int:
        """How many weights there are, zeros included."""
        return math.prod(self.shape)

    @property
    def nonzeros(self) -> int:
        """How many are not 0."""
        return len(self.positions)

    def dense(self) -> Floats:
        """Return all weights."""
        found = np.zeros(self.size, np.float32)
        found[self.positions] = self.values
        return found.reshape(self.shape)

    def as_shape(self, shape: Shape) -> "Weight":
        """Return the same weights seen in another shape of the same size."""
        return Weight(shape, self.positions, self.values)


@dataclass(frozen=True, eq=False)
class Node(ABC):
    """One operation; it reads the results of earlier ones."""

    inputs: tuple[int, ...]
    """Places of these in the network."""

    @abstractmethod
    def shape(self, *given: Shape) -> Shape:
        """Return the shape of the result.

        Raises:
            RuntimeInputError: the operation does not fit what it is given.
        """


@final
@dataclass(frozen=True, eq=False)
class Input(Node):
    """The image, float in [0, 1]; always the first node, and the only one without inputs."""

    inputs: tuple[int, ...] = ()

    def shape(self, *given: Shape) -> Shape:
        """Return the shape of an image: the network knows it, not this node."""
        (image,) = given
        return image


@final
@dataclass(frozen=True, eq=False)
class Affine(Node):
    """Scales and shifts each channel: normalisation of images, BatchNorm that cannot be folded."""

    scale: Floats
    """(C)"""
    shift: Floats
    """(C)"""

    def shape(self, *given: Shape) -> Shape:
        """Return the shape of the result, which is that of what is given."""
        (shape,) = given
        if self.scale.shape != shape[:1] or self.shift.shape != shape[:1]:
            raise RuntimeInputError(
                f"affine has {len(self.scale)} scales and {len(self.shift)} shifts for shape {shape}"
            )
        return shape


@final
@dataclass(frozen=True, eq=False)
class Convolution(Node):
    """Cross-correlation with zero padding, then bias."""

    weight: Weight
    """(outputs, inputs, height, width)"""
    bias: Floats
    """(outputs)"""
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def shape(self, *given: Shape) -> Shape:
        """Return (outputs, height, width)."""
        (shape,) = given
        outputs, channels, *kernel = self.weight.shape
        if len(shape) != 3 or shape[0] != channels or self.bias.shape != (outputs,):
            raise RuntimeInputError(
                f"convolution of weight {self.weight.shape} and {len(self.bias)} biases meets shape {shape}"
            )
        reach = tuple(dilation * (size - 1) + 1 for dilation, size in zip(self.dilation, kernel, strict=True))
        return (outputs, *_places(shape, (reach[0], reach[1]), self.stride, self.padding))


@final
@dataclass(frozen=True, eq=False)
class Linear(Node):
    """Matrix product with features, then bias."""

    weight: Weight
    """(outputs, inputs)"""
    bias: Floats
    """(outputs)"""

    def shape(self, *given: Shape) -> Shape:
        """Return (outputs)."""
        (shape,) = given
        if shape != self.weight.shape[1:] or self.bias.shape != self.weight.shape[:1]:
            raise RuntimeInputError(
                f"linear layer of weight {self.weight.shape} and {len(self.bias)} biases meets shape {shape}"
            )
        return self.weight.shape[:1]


@final
@dataclass(frozen=True, eq=False)
class Relu(Node):
    """What is above 0."""

    def shape(self, *given: Shape) -> Shape:
        """Return the shape of what is given."""
        (shape,) = given
        return shape


@final
@dataclass(frozen=True, eq=False)
class Add(Node):
    """The sum of two results of one shape."""

    def shape(self, *given: Shape) -> Shape:
        """Return their shape."""
        first, second = given
        if first != second:
            raise RuntimeInputError(f"add meets shapes {first} and {second}, which must be the same")
        return first


@final
@dataclass(frozen=True, eq=False)
class MaxPool(Node):
    """The largest in each window; padding never wins."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)

    def shape(self, *given: Shape) -> Shape:
        """Return (channels, height, width)."""
        return _pooled(given[0], self.kernel, self.stride, self.padding)


@final
@dataclass(frozen=True, eq=False)
class AveragePool(Node):
    """The mean of each window, padding counted as zeros; a window as large as the plane is the global average."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)

    def shape(self, *given: Shape) -> Shape:
        """Return (channels, height, width)."""
        return _pooled(given[0], self.kernel, self.stride, self.padding)


@final
@dataclass(frozen=True, eq=False)
class Flatten(Node):
    """Channels, rows and columns as one row of features."""

    def shape(self, *given: Shape) -> Shape:
        """Return (features)."""
        return (math.prod(given[0]),)


def _places(shape: Shape, window: Pair, stride: Pair, padding: Pair) -> Pair:
    """Return how often a window fits down and across."""
    if min(*window, *stride) < 1 or min(padding) < 0:
        raise RuntimeInputError(f"a window of {window}, moved by {stride} with padding {padding}, is none")
    down, across = (
        (size + 2 * edge - reach) // step + 1
        for size, reach, step, edge in zip(shape[1:], window, stride, padding, strict=True)
    )
    if down < 1 or across < 1:
        raise RuntimeInputError(f"a window of {window} does not fit into shape {shape} with padding {padding}")
    return down, across


def _pooled(shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Shape:
    if len(shape) != 3:
        raise RuntimeInputError(f"pooling meets shape {shape}, which has no rows and columns")
    if 2 * padding[0] > kernel[0] or 2 * padding[1] > kernel[1]:
        raise RuntimeInputError(f"pooling of {kernel} with padding {padding} would have windows outside the image")
    return (shape[0], *_places(shape, kernel, stride, padding))


@final
class Network:
    """Operations in the order in which they run; the last one gives the logits.

    Args:
        shape: channels, height and width of an image.
        nodes: an `Input` first; every other one reads earlier ones.

    Raises:
        RuntimeInputError: an operation that does not fit what it reads, named by its place.
    """

    def __init__(self, shape: tuple[int, int, int], nodes: tuple[Node, ...]) -> None:
        if len(shape) != 3 or min(shape) < 1:
            raise RuntimeInputError(f"an image of shape {shape} is none; channels, height and width must be 1 or more")
        if not nodes or not isinstance(nodes[0], Input):
            raise RuntimeInputError("a network must begin with the image")
        self.image, self.nodes = shape, nodes
        shapes: list[Shape] = []
        for place, node in enumerate(nodes):
            wanted = {Input: 0, Add: 2}.get(type(node), 1)
            if len(node.inputs) != wanted or not all(0 <= given < place for given in node.inputs):
                raise RuntimeInputError(
                    f"operation {place} reads {list(node.inputs)}; it needs {wanted} earlier results"
                )
            if place and isinstance(node, Input):
                raise RuntimeInputError(f"operation {place} is a second image; there can be one")
            try:
                shapes.append(node.shape(*([shapes[given] for given in node.inputs] if place else [shape])))
            except RuntimeInputError as error:
                raise RuntimeInputError(f"operation {place}: {error}") from None
        if len(shapes[-1]) != 1:
            raise RuntimeInputError(f"the last operation gives shape {shapes[-1]}; logits have one axis")
        self.shapes = tuple(shapes)

    @property
    def classes(self) -> int:
        """How many logits there are."""
        return self.shapes[-1][0]

    def weights(self) -> list[Weight]:
        """Return the weights that pruning counts: those of convolutions and linear layers."""
        return [node.weight for node in self.nodes if isinstance(node, Convolution | Linear)]
