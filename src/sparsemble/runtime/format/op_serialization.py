"""Nodes of a network as tables of the header, and back."""

from collections.abc import Callable, Mapping
from typing import Any

from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format.header import check_int, check_list, check_pair, get_field
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
"""Settings of a node that are two whole numbers, and the smallest value of each."""


def node_constants(node: Node) -> list[Floats]:
    """Return the constants of a node that are stored in float32."""
    if isinstance(node, Affine):
        return [node.scale, node.shift]
    return [node.bias] if isinstance(node, Convolution | Linear) else []


def node_to_dict(node: Node) -> dict[str, Any]:
    """Return kind, inputs and settings of a node; weights and constants are stored elsewhere."""
    kind = next(name for name, node_type in NODES.items() if type(node) is node_type)
    table: dict[str, Any] = {"kind": kind, "inputs": list(node.inputs)}
    for name, _ in PAIRS.get(kind, ()):
        table[name] = list(getattr(node, name))
    if isinstance(node, Affine):
        table["channels"] = len(node.scale)
    return table


def node_from_dict(
    table: Mapping[str, Any],
    where: str,
    next_weight: Callable[[], Weight],
    next_constants: Callable[[int], Floats],
) -> Node:
    """Return a node.

    Args:
        table: what `node_to_dict` returned, perhaps damaged.
        where: the node's place in the file, for messages.
        next_weight: returns the weights of the next layer.
        next_constants: returns the next constants, as many as it is given.

    Raises:
        RuntimeInputError: an unknown kind, or a setting that is missing or out of range.
    """
    kind = get_field(table, "kind", where)
    if not isinstance(kind, str) or kind not in NODES:
        raise RuntimeInputError(f"{where} is of the kind {kind!r:.60}, which this sparsemble does not know")
    inputs = tuple(
        check_int(index, f"{where}.inputs", 0, 10**6) for index in check_list(get_field(table, "inputs", where), where)
    )
    settings = {
        name: check_pair(get_field(table, name, where), f"{where}.{name}", low) for name, low in PAIRS.get(kind, ())
    }
    if kind == "input":
        return Input(inputs)
    if kind == "affine":
        channels = check_int(get_field(table, "channels", where), f"{where}.channels", 1)
        return Affine(inputs, next_constants(channels), next_constants(channels))
    if kind == "convolution":
        weight = next_weight()
        return Convolution(inputs, weight, next_constants(weight.shape[0]), **settings)
    if kind == "linear":
        weight = next_weight()
        return Linear(inputs, weight, next_constants(weight.shape[0]))
    if kind == "max_pool":
        return MaxPool(inputs, **settings)
    if kind == "average_pool":
        return AveragePool(inputs, **settings)
    simple: dict[str, type[Node]] = {"relu": Relu, "add": Add, "flatten": Flatten}
    return simple[kind](inputs)
