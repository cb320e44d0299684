"""The graph of a trained network: operations on arrays, in running order."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.tensors import Floats, Pair, Shape, Steps, Weight

__all__ = ["Floats", "Network", "Node", "Pair", "Shape", "Steps", "Weight"]


@dataclass(frozen=True, eq=False)
class Node(ABC):
    """One operation on the results of earlier ones."""

    inputs: tuple[int, ...]
    """Indices of the nodes that it reads."""

    @abstractmethod
    def shape(self, *inputs: Shape) -> Shape:
        """Return the shape of the result for those of `self.inputs`, in their order.

        Raises:
            RuntimeInputError: the operation does not fit these shapes.
        """


@final
@dataclass(frozen=True, eq=False)
class Input(Node):
    """The image, float in [0, 1]; always the first node, and the only one without inputs."""

    inputs: tuple[int, ...] = ()

    def shape(self, *inputs: Shape) -> Shape:
        """Return the shape of an image, which is given."""
        return inputs[0]


@final
@dataclass(frozen=True, eq=False)
class Affine(Node):
    """scale x + shift for each channel: normalisation of images, or BatchNorm that cannot be folded."""

    scale: Floats
    """(C)"""
    shift: Floats
    """(C)"""

    def shape(self, *inputs: Shape) -> Shape:
        """Return the shape of the input."""
        (shape,) = inputs
        if self.scale.shape != shape[:1] or self.shift.shape != shape[:1]:
            raise RuntimeInputError(
                f"affine has {len(self.scale)} scales and {len(self.shift)} shifts for shape {shape}"
            )
        return shape


@final
@dataclass(frozen=True, eq=False)
class Convolution(Node):
    """Cross-correlation with zero padding, plus bias."""

    weight: Weight
    """(outputs, inputs, height, width)"""
    bias: Floats
    """(outputs)"""
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def shape(self, *inputs: Shape) -> Shape:
        """Return (outputs, height, width)."""
        (shape,) = inputs
        outputs, channels, *kernel = self.weight.shape
        if len(shape) != 3 or shape[0] != channels or self.bias.shape != (outputs,):
            raise RuntimeInputError(
                f"convolution of weight {self.weight.shape} and {len(self.bias)} biases meets shape {shape}"
            )
        extent = tuple(dilation * (size - 1) + 1 for dilation, size in zip(self.dilation, kernel, strict=True))
        return (outputs, *_window_counts(shape, (extent[0], extent[1]), self.stride, self.padding))


@final
@dataclass(frozen=True, eq=False)
class Linear(Node):
    """weight x + bias on features."""

    weight: Weight
    """(outputs, inputs)"""
    bias: Floats
    """(outputs)"""

    def shape(self, *inputs: Shape) -> Shape:
        """Return (outputs)."""
        (shape,) = inputs
        if shape != self.weight.shape[1:] or self.bias.shape != self.weight.shape[:1]:
            raise RuntimeInputError(
                f"linear layer of weight {self.weight.shape} and {len(self.bias)} biases meets shape {shape}"
            )
        return self.weight.shape[:1]


@final
@dataclass(frozen=True, eq=False)
class Relu(Node):
    """max(x, 0)."""

    def shape(self, *inputs: Shape) -> Shape:
        """Return the shape of the input."""
        return inputs[0]


@final
@dataclass(frozen=True, eq=False)
class Add(Node):
    """The sum of two results of the same shape."""

    def shape(self, *inputs: Shape) -> Shape:
        """Return their shape."""
        first, second = inputs
        if first != second:
            raise RuntimeInputError(f"add meets shapes {first} and {second}, which must be the same")
        return first


@dataclass(frozen=True, eq=False)
class Pool(Node):
    """Reduces each window to one number."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)

    def shape(self, *inputs: Shape) -> Shape:
        """Return (channels, height, width)."""
        (shape,), kernel, padding = inputs, self.kernel, self.padding
        if len(shape) != 3:
            raise RuntimeInputError(f"pooling meets shape {shape}, which has no rows and columns")
        if 2 * padding[0] > kernel[0] or 2 * padding[1] > kernel[1]:
            raise RuntimeInputError(f"pooling of {kernel} with padding {padding} would have windows outside the image")
        return (shape[0], *_window_counts(shape, kernel, self.stride, padding))


@final
@dataclass(frozen=True, eq=False)
class MaxPool(Pool):
    """The maximum of each window; padding is ignored."""


@final
@dataclass(frozen=True, eq=False)
class AveragePool(Pool):
    """The mean of each window, padding counted as zeros."""


@final
@dataclass(frozen=True, eq=False)
class Flatten(Node):
    """(channels, height, width) as (features,)."""

    def shape(self, *inputs: Shape) -> Shape:
        """Return (features)."""
        return (math.prod(inputs[0]),)


def _window_counts(shape: Shape, window: Pair, stride: Pair, padding: Pair) -> Pair:
    """Return the number of windows down and across."""
    if min(*window, *stride) < 1 or min(padding) < 0:
        raise RuntimeInputError(f"a window of {window}, moved by {stride} with padding {padding}, is none")
    down, across = (
        (size + 2 * pad - extent) // step + 1
        for size, extent, step, pad in zip(shape[1:], window, stride, padding, strict=True)
    )
    if down < 1 or across < 1:
        raise RuntimeInputError(f"a window of {window} does not fit into shape {shape} with padding {padding}")
    return down, across


@final
class Network:
    """Operations in running order; the last one returns the logits.

    Args:
        shape: channels, height and width of an image.
        nodes: an `Input` first; every other node reads earlier ones.
        steps: of the results that are stored in 8 bits, by the node's index; neither of the image nor of the logits.

    Raises:
        RuntimeInputError: an operation that does not fit its inputs, named by its index; steps of a node that can have
            none; a sum of 8-bit products that may exceed 32 bits.
    """

    def __init__(
        self, shape: tuple[int, int, int], nodes: tuple[Node, ...], steps: Mapping[int, Steps] | None = None
    ) -> None:
        if len(shape) != 3 or min(shape) < 1:
            raise RuntimeInputError(f"an image of shape {shape} is none; channels, height and width must be 1 or more")
        if not nodes or not isinstance(nodes[0], Input):
            raise RuntimeInputError("a network must begin with the image")
        self.image, self.nodes = shape, nodes
        shapes: list[Shape] = []
        for i, node in enumerate(nodes):
            count = {Input: 0, Add: 2}.get(type(node), 1)
            if len(node.inputs) != count or not all(0 <= source < i for source in node.inputs):
                raise RuntimeInputError(f"operation {i} reads {list(node.inputs)}; it needs {count} earlier results")
            if i and isinstance(node, Input):
                raise RuntimeInputError(f"operation {i} is a second image; there can be one")
            try:
                shapes.append(node.shape(*([shapes[source] for source in node.inputs] if i else [shape])))
            except RuntimeInputError as error:
                raise RuntimeInputError(f"operation {i}: {error}") from None
        if len(shapes[-1]) != 1:
            raise RuntimeInputError(f"the last operation gives shape {shapes[-1]}; logits have one axis")
        self.shapes = tuple(shapes)
        self.steps = _all_steps(nodes, steps or {})
        """Of every result that is stored in 8 bits: maxima and flattened results keep the steps of their input."""

    @property
    def classes(self) -> int:
        """Number of logits."""
        return self.shapes[-1][0]

    def weights(self) -> list[Weight]:
        """Return the prunable weights: those of convolutions and linear layers."""
        return [node.weight for node in self.nodes if isinstance(node, Convolution | Linear)]


def _all_steps(nodes: tuple[Node, ...], given: Mapping[int, Steps]) -> dict[int, Steps]:
    """Return the given steps and those that maxima and flattened results have from their input."""
    for index in given:
        if not 0 < index < len(nodes) - 1:
            raise RuntimeInputError(
                f"operation {index} cannot be stored in 8 bits: steps belong to 1..{len(nodes) - 2}"
            )
    steps: dict[int, Steps] = {}
    for i, node in enumerate(nodes):
        source = steps.get(node.inputs[0]) if node.inputs else None
        kept = source if isinstance(node, MaxPool | Flatten) else None
        found = given.get(i, kept)
        if kept and found != kept:
            raise RuntimeInputError(f"operation {i} keeps the 8-bit steps of its input, {kept}; it is given {found}")
        if found:
            steps[i] = found
        if source and isinstance(node, Convolution | Linear) and node.weight.largest_sum() * 255 >= 2**31:
            raise RuntimeInputError(f"operation {i} adds so many 8-bit products that their sum may exceed 32 bits")
    return steps
