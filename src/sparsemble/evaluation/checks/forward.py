"""What a forward pass does besides computing: the tracing behind check 11."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from sparsemble.core.errors import InputError
from sparsemble.core.results import CheckResult
from sparsemble.core.types import Classifier, Images
from sparsemble.evaluation.checks import skipped, verdict

GRADIENT_CALLS, RANDOMNESS, NO_GRADIENT, CONTROL_FLOW = "gradient calls", "randomness", "no gradient", "control flow"
OWN_BACKWARD, LOOPS, EARLY_STOPPING = "own backward", "loops", "early stopping"
Detours = Counter[tuple[str, str]]
"""Number of detours, by kind and by the call or layer that shows it."""
KINDS = {
    GRADIENT_CALLS: {"grad", "backward", "requires_grad_"},
    RANDOMNESS: {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "normal_"}
    | {"uniform_", "bernoulli", "bernoulli_", "multinomial", "poisson", "gumbel_softmax", "random_"}
    | {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "rrelu"},
    NO_GRADIENT: {"detach", "detach_", "data", "numpy", "argmax", "argmin", "round", "floor", "ceil", "trunc", "sign"}
    | {"heaviside", "one_hot", "argsort", "bucketize"},
    CONTROL_FLOW: {"__bool__", "__int__", "__float__", "__index__", "item", "tolist", "nonzero", "unique", "allclose"}
    | {"masked_select", "equal"},
    OWN_BACKWARD: set[str](),
    LOOPS: set[str](),
    EARLY_STOPPING: set[str](),
}
"""Kinds of detours, and the calls that show them."""
STOPPING = (EARLY_STOPPING, CONTROL_FLOW, NO_GRADIENT)
"""What an ensemble with a stopping rule declares."""
REPEATS = 4
"""Runs of one layer in one pass that make a loop; a layer shared by two or three places is none."""
FEW = 8
"""Images that are run one by one."""


def plain_forward(
    model: Classifier, x: Images, *, layers: nn.Module | None = None, declared: Collection[str] = ()
) -> CheckResult:
    """Check 11: gradient calls, randomness, steps without gradient, control flow and loops are absent or declared.

    Calls are traced where Python makes them, and only on values that depend on the images; straight-through layers
    are found in the graph of gradients, early stopping by layers that run for some images only. Compiled code cannot
    be traced. Costs 2 forward passes for each of at most 8 images.

    Args:
        model: what is attacked, or the logits of the deployed decision.
        x: images; the more they differ, the better.
        layers: the network whose layers are counted, if `model` is only a function.
        declared: kinds that the model is known to have, such as `STOPPING`.

    Raises:
        InputError: a declared kind that is none.
    """
    if unknown := set(declared) - KINDS.keys():
        raise InputError(f'"{sorted(unknown)[0]}" is no kind of detour; known: {", ".join(KINDS)}')
    network = model if isinstance(model, nn.Module) else layers
    if network and any(_is_compiled(part) for part in network.modules()):
        return skipped(11, "the model is compiled, and compiled code cannot be traced from Python")
    detours = _trace(model, x[:FEW]) + _run_singly(model, x[:FEW], network)
    seen: dict[str, list[str]] = {}
    for (kind, name), times in sorted(detours.items()):
        seen.setdefault(kind, []).append(f"{name} x{times}")
    undeclared = [f"{kind} ({', '.join(names)})" for kind, names in seen.items() if kind not in declared]
    known = [kind for kind in seen if kind in declared]
    detail = f"undeclared: {'; '.join(undeclared) or 'nothing'}; declared and there: {', '.join(known) or 'nothing'}"
    return verdict(11, not undeclared, detail)


def _is_compiled(part: nn.Module) -> bool:
    # The class of torch.compile is known by name only: importing it takes a second.
    return isinstance(part, torch.jit.ScriptModule) or type(part).__name__ == "OptimizedModule"


def _trace(model: Classifier, x: Images) -> Detours:
    """Run the model once and count the calls that show a detour."""
    point = x.clone().requires_grad_()
    with torch.enable_grad(), _Tracer(point) as tracer:
        logits = model(point)
    detours: Detours = tracer.detours
    detours.update(
        (OWN_BACKWARD, type(node).__name__) for node in _nodes(logits) if isinstance(node, BackwardCFunction)
    )
    if not logits.requires_grad:
        detours[NO_GRADIENT, "output"] += 1
    return detours


@torch.enable_grad()
def _run_singly(model: Classifier, x: Images, network: nn.Module | None) -> Detours:
    """Run images one by one and count how often each layer with weights ran."""
    if network is None:
        return Counter()
    layers = {
        name: part for name, part in network.named_modules() if next(part.parameters(recurse=False), None) is not None
    }
    runs: list[Counter[str]] = []
    handles = [
        part.register_forward_pre_hook(lambda _part, _inputs, name=name: runs[-1].update([name]))
        for name, part in layers.items()
    ]
    try:
        for one in x.split(1):
            runs.append(Counter())
            model(one.clone().requires_grad_())  # a model may ask for gradients of its own
    finally:
        for handle in handles:
            handle.remove()
    most = {name: max(run[name] for run in runs) for name in layers}
    detours: Detours = Counter({(LOOPS, name): times for name, times in most.items() if times >= REPEATS})
    uneven = [name for name in layers if len({run[name] for run in runs}) > 1]
    if uneven:
        detours[EARLY_STOPPING, f"{uneven[0]} and other layers run for some images only"] = len(uneven)
    return detours


def _nodes(logits: Tensor) -> Iterator[Any]:
    """Yield the nodes of the graph of gradients."""
    todo: list[Any] = [logits.grad_fn] if logits.grad_fn else []
    met = set(todo)
    while todo:
        node = todo.pop()
        yield node
        fresh = {parent for parent, _ in node.next_functions if parent is not None} - met
        met |= fresh
        todo.extend(fresh)


@final
class _Tracer(TorchFunctionMode):
    """Receives every call of torch from Python, and tracks which tensors depend on the images."""

    def __init__(self, x: Images) -> None:
        super().__init__()
        self.detours: Detours = Counter()
        # Kept alive, so that no other tensor gets their ids.
        self.kept: list[Tensor] = [x]
        self.depend = {id(x)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Record a call and make it."""
        kwargs = kwargs or {}
        name = _name(func)
        inputs = list(_tensors([*args, *kwargs.values()]))
        depends = any(id(tensor) in self.depend for tensor in inputs)
        for kind, names in KINDS.items():
            if name in names and (depends or kind == RANDOMNESS) and not _is_off(name, args, kwargs):
                self.detours[kind, name.strip("_")] += 1
        if name == "_set_grad_enabled" and args[0] is False:
            self.detours[NO_GRADIENT, "no_grad"] += 1
        if name == "__getitem__" and depends and any(tensor.dtype == torch.bool for tensor in inputs):
            self.detours[CONTROL_FLOW, "mask"] += 1
        result = func(*args, **kwargs)
        if depends:
            outputs = list(_tensors([result]))
            self.kept += outputs
            self.depend.update(id(tensor) for tensor in outputs)
        return result


def _name(func: Callable[..., Any]) -> str:
    """Return the name of a call; that of the attribute where one is read."""
    name = str(getattr(func, "__name__", ""))
    return str(getattr(getattr(func, "__self__", None), "__name__", name)) if name == "__get__" else name


def _is_off(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Return whether a call of dropout does nothing."""
    if "dropout" not in name and name != "rrelu":
        return False
    index = 2 if "dropout" in name else 3
    return not kwargs.get("training", args[index] if len(args) > index else name != "rrelu")


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
