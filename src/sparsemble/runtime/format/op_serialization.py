"""Nodes of a network as tables of the header, and back."""

from collections.abc import Callable
from typing import Any

from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format.header import Fields
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
    Steps,
    Weight,
)

NODES: dict[str, type[Any]] = {
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


def node_to_dict(node: Node, steps: Steps | None = None) -> dict[str, Any]:
    """Return kind, inputs and settings of a node, and the steps of its result in 8 bits.

    Weights and constants are stored elsewhere.
    """
    kind = next(name for name, node_type in NODES.items() if type(node) is node_type)
    table: dict[str, Any] = {"kind": kind, "inputs": list(node.inputs)}
    for name, _ in PAIRS.get(kind, ()):
        table[name] = list(getattr(node, name))
    if isinstance(node, Affine):
        table["channels"] = len(node.scale)
    if steps:
        table["steps"] = {"scale": steps.scale, "zero": steps.zero}
    return table


def steps_from_dict(fields: Fields) -> Steps | None:
    """Return the steps in which a node stores its result; None where that is float32.

    Args:
        fields: what `node_to_dict` returned, perhaps damaged.
    """
    if "steps" not in fields.values:
        return None
    table = fields.table("steps")
    scale, zero = table.number("scale"), table.integer("zero", 0, 255)
    try:
        return Steps(scale, zero)
    except RuntimeInputError as error:
        raise RuntimeInputError(f"{fields.name}: {error}") from None


def node_from_dict(fields: Fields, next_weight: Callable[[], Weight], next_constants: Callable[[int], Floats]) -> Node:
    """Return a node.

    Args:
        fields: what `node_to_dict` returned, perhaps damaged.
        next_weight: returns the weights of the next layer.
        next_constants: returns the next constants, as many as it is given.
    """
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in NODES:
        raise RuntimeInputError(f"{fields.name} is of the kind {kind!r:.60}, which this sparsemble does not know")
    inputs = fields.integers("inputs", high=10**6)
    settings = {name: fields.integers(name, 2, low, 2**16) for name, low in PAIRS.get(kind, ())}
    node_type = NODES[kind]
    constants: tuple[Any, ...] = ()
    if node_type is Affine:
        channels = fields.integer("channels", 1)
        constants = (next_constants(channels), next_constants(channels))
    elif node_type in (Convolution, Linear):
        weight = next_weight()
        constants = (weight, next_constants(weight.shape[0]))
    node: Node = node_type(inputs, *constants, **settings)
    return node
