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
from sparsemble.core.source_file import first_line

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
    torch.relu_: "relu",
    F.max_pool2d: "pool",
    F.avg_pool2d: "pool",
    F.adaptive_avg_pool2d: "pool",
    F.adaptive_max_pool2d: "pool",
    torch.mean: "pool",
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
    """The operations that the logits of a network depend on, in the order in which they run; the last returns them."""

    def __init__(self, model: nn.Module, shape: tuple[int, int, int]) -> None:
        self.model, self.shape = model, shape
        with eval_mode(model), torch.no_grad():
            traced = trace(model)
            recorder = _Recorder(traced, model, shape)
        results = recorder.results
        sources, output = _dependencies(traced, recorder)
        if not isinstance(output, fx.Node) or not isinstance(results[output], Tensor):
            raise InputError("the model must return the result of its last operation, its logits, and nothing else")
        self.operations: list[Operation] = []
        names: dict[fx.Node, str] = {}
        runs: dict[str, int] = {}
        for node in _needed(traced, sources, output):
            if node.op in ("get_attr", "output") or not isinstance(results[node], Tensor):
                continue  # a constant, or a size
            names[node] = _unique(node, runs)
            inputs = tuple(names[source] for source in sources[node] if source in names)
            self.operations.append(_operation(node, names, inputs, model, results))
        if not self.operations or self.operations[-1].name != names.get(output):
            raise InputError("the model must return the result of its last operation, its logits, and nothing else")
        self.by_name = {operation.name: operation for operation in self.operations}
        self.consumers: dict[str, list[Operation]] = {operation.name: [] for operation in self.operations}
        for operation in self.operations:
            for source in dict.fromkeys(operation.inputs):
                self.consumers[source].append(operation)

    def layers(self) -> dict[str, Operation]:
        """Return the operations with prunable weights, by the name of their module."""
        return {operation.name: operation for operation in self.operations if operation.kind in ("conv", "linear")}


def trace(model: nn.Module) -> fx.GraphModule:
    """Trace a model in eval mode symbolically; torch's own modules are single operations, others are traced into.

    Raises:
        InputError: the model cannot be traced, as where it decides by its input what it computes.
    """
    disabled = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)  # symbolic values have no shape to check
    name = type(getattr(model, "body", model)).__name__
    try:
        with eval_mode(model):
            tracer = _Tracer()
            return fx.GraphModule(model, tracer.trace(model))
    except (fx.proxy.TraceError, TypeError) as error:
        raise InputError(f"{name} decides by its input what it computes ({str(error).splitlines()[0]})") from None
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} cannot be traced as a graph of operations: {first_line(error)}") from error
    finally:
        jaxtyping.config.update("jaxtyping_disable", disabled)


@final
class _Tracer(fx.Tracer):
    """Takes subclasses of known modules for these, where they compute the same."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _module_kind(m) is not None or super().is_leaf_module(m, module_qualified_name)


def _module_kind(module: nn.Module) -> Kind | None:
    """Return the kind of a module, also of a subclass that does not change the forward pass."""
    cls = type(module)
    for base, kind in MODULES.items():
        if isinstance(module, base) and all(
            getattr(cls, name, None) is getattr(base, name, None) for name in ("forward", "_conv_forward", "__call__")
        ):
            return kind
    return None


@final
class _Recorder(fx.Interpreter):
    """Runs one image of zeros, and keeps the result of every node and which nodes change their input in place."""

    def __init__(self, traced: fx.GraphModule, model: nn.Module, shape: tuple[int, int, int]) -> None:
        # The traced copy shares parameters with the model, but has a train/eval mode of its own.
        super().__init__(traced.eval())
        self.results: dict[fx.Node, Any] = {}
        self.overwritten: dict[fx.Node, list[fx.Node]] = {}
        """By node: the earlier ones whose results it overwrites."""
        example = next(model.parameters(), torch.zeros(()))
        try:
            self.run(torch.zeros(1, *shape, dtype=example.dtype, device=example.device))
        except Exception as error:
            size = "x".join(map(str, shape))
            raise InputError(f"the model cannot take an image of {size}: {first_line(error)}") from error

    def run_node(self, n: fx.Node) -> Any:
        inputs = [node for node in n.all_input_nodes if isinstance(self.results[node], Tensor)]
        versions = [self.results[node]._version for node in inputs]
        self.results[n] = super().run_node(n)
        for node, version in zip(inputs, versions, strict=True):
            if self.results[node]._version != version:
                self.overwritten[n] = [earlier for earlier in self.results if self._is_same(earlier, node)]
        return self.results[n]

    def _is_same(self, node: fx.Node, other: fx.Node) -> bool:
        one, two = self.results[node], self.results[other]
        return isinstance(one, Tensor) and one.data_ptr() == two.data_ptr() and one.shape == two.shape


def _dependencies(traced: fx.GraphModule, recorder: _Recorder) -> tuple[dict[fx.Node, list[fx.Node]], Any]:
    """Return what each node reads, and what is returned; a tensor changed in place is the result of what changed it."""
    sources: dict[fx.Node, list[fx.Node]] = {}
    current: dict[fx.Node, fx.Node] = {}
    output: Any = None
    for node in traced.graph.nodes:
        sources[node] = [current.get(source, source) for source in node.all_input_nodes]
        if node.op == "output":
            output = current.get(node.args[0], node.args[0]) if isinstance(node.args[0], fx.Node) else node.args[0]
        for overwritten in recorder.overwritten.get(node, []):
            if overwritten is not node:
                current[overwritten] = node
    return sources, output


def _needed(traced: fx.GraphModule, sources: dict[fx.Node, list[fx.Node]], output: fx.Node) -> list[fx.Node]:
    """Return the nodes that the output depends on, and the images, in order."""
    needed, waiting = {node for node in traced.graph.nodes if node.op == "placeholder"}, [output]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += sources[node]
    return [node for node in traced.graph.nodes if node in needed]


def _unique(node: fx.Node, runs: dict[str, int]) -> str:
    """Return a unique name: that of the module, or of the traced node in parentheses."""
    name = str(node.target) if node.op == "call_module" else f"({node.name})"
    runs[name] = runs.get(name, 0) + 1
    return name if runs[name] == 1 else f"{name}#{runs[name]}"


def _operation(
    node: fx.Node, names: dict[fx.Node, str], inputs: tuple[str, ...], model: nn.Module, results: dict[fx.Node, Any]
) -> Operation:
    name = names[node]
    kind, module = _kind(node, name, model)
    if kind in ("conv", "linear") and "#" in name:
        raise InputError(f"layer {node.target} runs twice in a pass; each layer may run once")
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
    arguments = () if node.op == "call_module" else _arguments(node, results)
    _check_settings(node, name, kind, results)
    return Operation(name, kind, inputs, shape, module, constant, _target(node) if module is None else "", arguments)


def _check_settings(node: fx.Node, name: str, kind: Kind, results: dict[fx.Node, Any]) -> None:
    """Refuse an operation whose settings make it another one than its kind says.

    Raises:
        InputError: naming the operation.
    """
    shape = tuple(results[node].shape[1:])
    given = results[node.all_input_nodes[0]] if node.all_input_nodes else results[node]
    given_shape = (1, *given.shape[1:])
    if kind == "flatten" and len(shape) != 1:
        raise InputError(f"operation {name} reshapes to {(1, *shape)}; only flattening to (B, features) is known")
    if kind == "linear" and given.ndim != 2:
        raise InputError(f"layer {name} is a Linear on feature maps {given_shape}; known: Linear on (B, features)")
    if kind == "add" and _setting(node, "alpha", 2, 1) != 1:
        raise InputError(f"operation {name} multiplies by alpha while it adds; known: {KNOWN}")
    if node.target is F.dropout and _setting(node, "training", 2, True):
        raise InputError(f"operation {name} is a dropout that is never off; give it training=self.training")
    if _target(node) == "mean":
        axes = _setting(node, "dim", 1, _setting(node, "axis", 1, ()))
        axes = tuple(axis % given.ndim for axis in ((axes,) if isinstance(axes, int) else axes))
        if not axes or min(axes) < 2:
            raise InputError(
                f"operation {name} is a mean over axes {axes} of {given_shape}; known: over rows and columns, (2, 3)"
            )


def _setting(node: fx.Node, name: str, position: int, default: Any) -> Any:
    """Return an argument of a call, by name or position."""
    return node.kwargs.get(name, node.args[position] if len(node.args) > position else default)


def _kind(node: fx.Node, name: str, model: nn.Module) -> tuple[Kind, nn.Module | None]:
    kind: Kind | None = None
    module: nn.Module | None = None
    if node.op == "placeholder":
        return "input", None
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        kind = _module_kind(module)
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
