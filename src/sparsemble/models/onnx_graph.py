"""An ONNX graph as it was seen to run, and the torch graph that is built from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, fx, nn

from sparsemble.core.errors import InputError

Values = Mapping[str, np.ndarray]
"""Every result of a run, by name."""


@final
@dataclass(frozen=True)
class Call:
    """An operator of the graph, with its settings."""

    kind: str
    """Its name in ONNX, such as Conv."""
    name: str
    inputs: tuple[str, ...]
    """Names of results; "" where one is left out."""
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    domain: str = ""

    def get(self, name: str, default: Any) -> Any:
        """Return a setting, or its default."""
        return self.attributes.get(name, default)

    def __str__(self) -> str:
        domain = f"{self.domain}." if self.domain not in ("", "ai.onnx") else ""
        return f"the operator {domain}{self.kind} ({self.name or self.outputs[0]})"


@final
@dataclass(frozen=True, kw_only=True)
class Run:
    """What a graph computed from random images."""

    calls: tuple[Call, ...]
    input: str
    """Name of the images."""
    output: str
    values: Values
    """Of one batch, constants included."""
    others: Values | None
    """Of a batch with one image more; None: the file fixes the size of the batch."""
    varying: frozenset[str]
    """Names of the results that depend on the images, not only on their shape."""


@final
class Builder:
    """Builds the torch graph of a run, operator by operator."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.input = self.graph.placeholder("x")
        self.nodes: dict[str, fx.Node] = {run.input: self.input}
        """Nodes of the results that depend on the images, by name."""
        self.producers = {name: call for call in run.calls for name in call.outputs}
        self.consumers: dict[str, list[Call]] = {}
        for call in run.calls:
            for name in call.inputs:
                self.consumers.setdefault(name, []).append(call)
        self.biased: set[str] = set()
        """Products to which their layer adds what the graph adds afterwards."""
        self._buffers: dict[str, fx.Node] = {}

    def varies(self, name: str) -> bool:
        """Return whether a result depends on the images."""
        return name in self.run.varying

    def grows(self, name: str) -> bool:
        """Return whether a result has another shape for another number of images."""
        return self.run.others is not None and self.run.values[name].shape != self.run.others[name].shape

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that was observed."""
        return tuple(self.run.values[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """Return the type of the numbers that were observed."""
        return torch.from_numpy(self.run.values[name][..., None][:0].copy()).dtype

    def constant(self, name: str) -> np.ndarray:
        """Return a value that does not depend on the images.

        Raises:
            InputError: it does, or it depends on their number.
        """
        if self.varies(name):
            raise InputError(f"{self._reader(name)} is set by a number that depends on the image")
        value, other = self.run.values[name], (self.run.others or self.run.values)[name]
        if value.shape != other.shape or not np.array_equal(value, other, equal_nan=value.dtype.kind == "f"):
            raise InputError(f"{self._reader(name)} is set by the number of images in a batch")
        return value

    def batch_axis(self, name: str) -> int | None:
        """Return the axis along which a result grows with the batch; None if it does not.

        Raises:
            InputError: several do.
        """
        shape = self.shape(name)
        if self.run.others is None:
            return 0 if shape and shape[0] % self.shape(self.run.input)[0] == 0 else None
        others = self.run.others[name].shape
        axes = [i for i, (size, other) in enumerate(zip(shape, others, strict=True)) if size != other]
        if len(axes) > 1:
            raise InputError(f"{name} grows with the batch along {len(axes)} axes")
        return axes[0] if axes else None

    def tensor(self, name: str) -> fx.Node:
        """Return the node of a result or a constant.

        Raises:
            InputError: it is a constant that depends on the number of images in another way than by repetition.
        """
        if name in self.nodes:
            return self.nodes[name]
        return self._repeated(name) if self.grows(name) else self.buffer(self.constant(name), name)

    def batched(self, name: str) -> fx.Node:
        """Return the node of a tensor that is joined to others: a constant of one image is repeated for any number."""
        alone = self.run.others is None and not self.varies(name) and self.shape(name)[0] == 1
        return self._repeated(name) if alone else self.tensor(name)

    def buffer(self, value: np.ndarray | np.generic, name: str = "") -> fx.Node:
        """Return the node of a constant, which moves to devices with the model."""
        key = name or f"#{len(self._buffers)}"
        if key not in self._buffers:
            attribute = f"constant{len(self._buffers)}"
            self.root.register_buffer(attribute, torch.from_numpy(np.array(value)))
            self._buffers[key] = self.graph.get_attr(attribute)
        return self._buffers[key]

    def layer(self, call: Call, module: nn.Module, x: fx.Node) -> fx.Node:
        """Add a layer, named after its weight if that is named after it, else by its kind and number.

        Args:
            call: the operator; its second input is the weight.
            module: the layer.
            x: its input.
        """
        stem, _, end = (call.inputs[1] if len(call.inputs) > 1 else "").rpartition(".")
        parts = stem.split(".")
        named = end == "weight" and all(part and part.replace("_", "").isalnum() for part in parts)
        number = sum(node.op == "call_module" for node in self.graph.nodes)
        name = stem if named and not self._taken(parts) else f"{call.kind.lower()}{number}"
        *parents, last = name.split(".")
        place = self.root
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, nn.Module())
            place = getattr(place, parent)
        place.add_module(last, module)
        return self.graph.call_module(name, (x,))

    def function(self, function: Any, *arguments: Any) -> fx.Node:
        """Add a call of a function."""
        return self.graph.call_function(function, arguments)

    def method(self, name: str, *arguments: Any) -> fx.Node:
        """Add a call of a tensor's method."""
        return self.graph.call_method(name, arguments)

    def take_bias(self, product: str, outputs: int) -> np.ndarray | None:
        """Return the constant that is added to a product and to nothing else, and let the layer add it."""
        users = self.consumers.get(product, [])
        if len(users) != 1 or users[0].kind != "Add" or product == self.run.output:
            return None
        (other,) = [name for name in users[0].inputs if name != product] or [product]
        if self.varies(other) or self.constant(other).shape != (outputs,):
            return None
        self.biased.add(product)
        return self.constant(other)

    def finish(self) -> fx.GraphModule:
        """Return the network, from images to the output."""
        self.graph.output(self.nodes[self.run.output])
        return fx.GraphModule(self.root, self.graph, "ConvertedNetwork").eval()

    def _repeated(self, name: str) -> fx.Node:
        """Return a constant of one image, repeated for every image along the first axis."""
        value, images = self.run.values[name], self.shape(self.run.input)[0]
        rows = len(value) // images if self.run.others is not None else len(value)
        if len(value) % rows or not (value.reshape(-1, rows, *value.shape[1:]) == value[:rows]).all():
            raise InputError(f"{self._reader(name)} has a constant for each image of a batch")
        batch = self.method("size", self.input, 0)
        return self.method("repeat", self.buffer(value[:rows], name), batch, *[1] * (value.ndim - 1))

    def _reader(self, name: str) -> str:
        return str(self.consumers[name][0]) if self.consumers.get(name) else name

    def _taken(self, parts: Sequence[str]) -> bool:
        """Return whether the name of a layer stands for something else already."""
        place: Any = self.root
        for part in parts:
            if isinstance(place, Tensor) or (
                place is not self.root and any(True for _ in place.parameters(recurse=False))
            ):
                return True
            if not hasattr(place, part):
                return False
            place = getattr(place, part)
        return True
