"""The graph of operations of any network, traced with torch.fx."""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

import jaxtyping
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparsemble.core.errors import InputError
from sparsemble.core.module_state import eval_mode

Kind = Literal["input", "affine", "conv", "norm", "linear", "relu", "pool", "flatten", "add", "same"]

MODULES: dict[type[nn.Module], Kind] = {
    nn.Conv2d: "conv",
    nn.BatchNorm2d: "norm",
    nn.Linear: "linear",
    nn.ReLU: "relu",
    nn.MaxPool2d: "pool",
    nn.AvgPool2d: "pool",
    nn.AdaptiveAvgPool2d: "pool",
    nn.AdaptiveMaxPool2d: "pool",
    nn.Flatten: "flatten",
    nn.Identity: "same",
    nn.Dropout: "same",
    nn.Dropout2d: "same",
}
FUNCTIONS: dict[Callable[..., Any], Kind] = {
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    F.relu: "relu",
    torch.relu: "relu",
    F.max_pool2d: "pool",
    F.avg_pool2d: "pool",
    F.adaptive_avg_pool2d: "pool",
    F.adaptive_max_pool2d: "pool",
    torch.flatten: "flatten",
    F.dropout: "same",
    operator.sub: "affine",
    operator.mul: "affine",
    operator.truediv: "affine",
}
METHODS: dict[str, Kind] = {
    "add": "add",
    "relu": "relu",
    "relu_": "relu",
    "mean": "pool",
    "flatten": "flatten",
    "view": "flatten",
    "reshape": "flatten",
    "contiguous": "same",
}
KNOWN = "Conv2d (ungrouped), BatchNorm2d, Linear, ReLU, pooling, flattening and adds"


@final
@dataclass(frozen=True)
class Operation:
    """One operation of a network."""

    name: str
    """Unique; for a module its name in the model, with `#2` and so on where it runs again."""
    kind: Kind
    inputs: tuple[str, ...]
    """Names of the operations whose results are its inputs."""
    shape: tuple[int, ...]
    """Shape of the result for one image: channels, height and width, or features."""
    module: nn.Module | None
    """The module, if the operation is one."""
    constant: Tensor | float | None = None
    """`affine`: what is subtracted, multiplied or divided by."""
    function: str = ""
    """Name of the function or method, if it is not a module."""
    arguments: tuple[Any, ...] = ()
    """Other arguments of the function or method, positional before keyword; sizes are those of one image."""

    @property
    def positions(self) -> int:
        """Number of spatial positions at which each weight is used for one image."""
        return math.prod(self.shape[1:])


@final
class Graph:
    """The operations of a network, in the order in which they run; the last one returns the logits."""

    def __init__(self, model: nn.Module, shape: tuple[int, int, int]) -> None:
        traced = _traced(model)
        with eval_mode(model), torch.no_grad():
            results = _results(traced, model, shape)
        self.operations: list[Operation] = []
        names: dict[fx.Node, str] = {}
        runs: dict[str, int] = {}
        for node in traced.graph.nodes:
            if node.op in ("get_attr", "output") or not isinstance(results[node], Tensor):
                continue  # a constant, or a size
            name = _unique(node, runs)
            names[node] = name
            self.operations.append(_operation(node, name, names, model, results))
        self.by_name = {operation.name: operation for operation in self.operations}
        output = next(node for node in traced.graph.nodes if node.op == "output").args[0]
        if not isinstance(output, fx.Node) or names.get(output) != self.operations[-1].name:
            raise InputError("the model must return the result of its last operation, its logits, and nothing else")
        self.consumers: dict[str, list[Operation]] = {operation.name: [] for operation in self.operations}
        for operation in self.operations:
            for source in dict.fromkeys(operation.inputs):
                self.consumers[source].append(operation)

    def layers(self) -> dict[str, Operation]:
        """Return the operations with prunable weights, by the name of their module."""
        return {operation.name: operation for operation in self.operations if operation.kind in ("conv", "linear")}


def _traced(model: nn.Module) -> fx.GraphModule:
    """Trace the model symbolically; torch's own modules are single operations, others are traced into."""
    disabled = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)  # symbolic values have no shape to check
    try:
        return fx.symbolic_trace(model)
    except (fx.proxy.TraceError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{type(model).__name__} decides by its input what it computes ({reason})") from None
    finally:
        jaxtyping.config.update("jaxtyping_disable", disabled)


def _results(traced: fx.GraphModule, model: nn.Module, shape: tuple[int, int, int]) -> dict[fx.Node, Any]:
    """Run one image of zeros and return the result of every node."""
    example = next(model.parameters())
    results: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            results[n] = super().run_node(n)
            return results[n]

    # The traced copy shares parameters with the model, but has a train/eval mode of its own.
    traced.eval()
    Recorder(traced).run(torch.zeros(1, *shape, dtype=example.dtype, device=example.device))
    return results


def _unique(node: fx.Node, runs: dict[str, int]) -> str:
    """Return a unique name: that of the module, or of the traced node in parentheses."""
    name = str(node.target) if node.op == "call_module" else f"({node.name})"
    runs[name] = runs.get(name, 0) + 1
    return name if runs[name] == 1 else f"{name}#{runs[name]}"


def _operation(
    node: fx.Node, name: str, names: dict[fx.Node, str], model: nn.Module, results: dict[fx.Node, Any]
) -> Operation:
    kind, module = _kind(node, name, model)
    if kind in ("conv", "linear") and "#" in name:
        raise InputError(f"layer {node.target} runs twice in a pass; each layer may run once")
    inputs = tuple(names[source] for source in node.all_input_nodes if source in names)
    shape = tuple(results[node].shape[1:])
    constant = None
    if kind in ("add", "affine"):
        others = [arg for arg in node.args if not (isinstance(arg, fx.Node) and arg in names)]
        if kind == "add" and (len(others) or len(inputs) != 2):
            raise InputError(f"operation {name} adds something that is not a feature map; known: {KNOWN}")
        if kind == "affine" and (len(others) != 1 or len(inputs) != 1 or node.args[0] in others):
            raise InputError(f"operation {name} combines feature maps by {_target(node)}; known: {KNOWN}")
        if others:
            constant = results[others[0]] if isinstance(others[0], fx.Node) else float(others[0])  # type: ignore[arg-type]
    if kind == "flatten" and len(shape) != 1:
        raise InputError(f"operation {name} reshapes to {(1, *shape)}; only flattening to (B, features) is known")
    arguments = () if node.op == "call_module" else _arguments(node, results)
    return Operation(name, kind, inputs, shape, module, constant, _target(node) if module is None else "", arguments)


def _kind(node: fx.Node, name: str, model: nn.Module) -> tuple[Kind, nn.Module | None]:
    kind: Kind | None = None
    module: nn.Module | None = None
    if node.op == "placeholder":
        return "input", None
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        kind = MODULES.get(type(module))
        if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
            kind = None
        text = repr(module)
    elif node.op == "call_function":
        kind, text = FUNCTIONS.get(node.target), _target(node)  # type: ignore[arg-type]
    else:
        kind, text = METHODS.get(str(node.target)), _target(node)
    if kind is None:
        raise InputError(f"layer {name} is {text}, which cannot be pruned; known: {KNOWN}")
    return kind, module


def _target(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _arguments(node: fx.Node, results: dict[fx.Node, Any]) -> tuple[Any, ...]:
    """Return the arguments of a call other than tensors; sizes such as `x.shape[2]` as integers."""

    def value(argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda source: results[source])

    positional = [value(arg) for arg in node.args if not _is_tensor(arg, results)]
    keyword = [(key, value(arg)) for key, arg in node.kwargs.items() if not _is_tensor(arg, results)]
    return (*positional, *keyword)


def _is_tensor(argument: Any, results: dict[fx.Node, Any]) -> bool:
    return isinstance(argument, fx.Node) and isinstance(results[argument], Tensor)
