"""How the nodes of a network are told in a header, and read from one."""

from collections.abc import Callable, Mapping
from typing import Any

from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format.header import field, items, pair, whole
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
    Node,
    Relu,
    Weight,
)

NODES: dict[str, type[Node]] = {
    "input": Input,
    "affine": Affine,
    "convolution": Convolution,
    "linear": Linear,
    "relu": Relu,
    "add": Add,
    "max_pool": MaxPool,
    "average_pool": AveragePool,
    "flatten": Flatten,
}
PAIRS: dict[str, tuple[tuple[str, int], ...]] = {
    "convolution": (("stride", 1), ("padding", 0), ("dilation", 1)),
    "max_pool": (("kernel", 1), ("stride", 1), ("padding", 0)),
    "average_pool": (("kernel", 1), ("stride", 1), ("padding", 0)),
}
"""Settings of a node that are two whole numbers, and the least of each."""


def node_to_dict(node: Node) -> dict[str, Any]:
    """Return kind, inputs and settings of a node; weights and constants are told elsewhere."""
    kind = next(name for name, made in NODES.items() if type(node) is made)
    told: dict[str, Any] = {"kind": kind, "inputs": list(node.inputs)}
    for name, _ in PAIRS.get(kind, ()):
        told[name] = list(getattr(node, name))
    if isinstance(node, Affine):
        told["channels"] = len(node.scale)
    return told


def node_from_dict(
    told: Mapping[str, Any], where: str, weight: Callable[[], Weight], floats: Callable[[int], Floats]
) -> Node:
    """Return a node; `weight` and `floats` hand out what comes next in the parts.

    Raises:
        RuntimeInputError: a kind that is not known, or settings that cannot be.
    """
    kind = field(told, "kind", where)
    if not isinstance(kind, str) or kind not in NODES:
        raise RuntimeInputError(f"{where} is of the kind {kind!r:.60}, which this sparsemble does not know")
    inputs = tuple(whole(one, f"{where}.inputs", 0, 10**6) for one in items(field(told, "inputs", where), where))
    settings = {name: pair(field(told, name, where), f"{where}.{name}", low) for name, low in PAIRS.get(kind, ())}
    if kind == "input":
        return Input(inputs)
    if kind == "affine":
        channels = whole(field(told, "channels", where), f"{where}.channels", 1)
        return Affine(inputs, floats(channels), floats(channels))
    if kind == "convolution":
        found = weight()
        return Convolution(inputs, found, floats(found.shape[0]), **settings)
    if kind == "linear":
        found = weight()
        return Linear(inputs, found, floats(found.shape[0]))
    if kind == "max_pool":
        return MaxPool(inputs, **settings)
    if kind == "average_pool":
        return AveragePool(inputs, **settings)
    simple: dict[str, type[Node]] = {"relu": Relu, "add": Add, "flatten": Flatten}
    return simple[kind](inputs)
