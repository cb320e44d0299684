"""What a forward pass does beside computing: the watch behind check 11."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from sparsemble.core.errors import InputError
from sparsemble.core.types import Classifier, Images
from sparsemble.evaluation.checks.check import Check, verdict, waived

GRADIENT_CALLS, RANDOMNESS, NO_GRADIENT, CONTROL_FLOW = "gradient calls", "randomness", "no gradient", "control flow"
OWN_BACKWARD, LOOPS, EARLY_STOPPING = "own backward", "loops", "early stopping"
Found = Counter[tuple[str, str]]
"""How often each kind of detour was met, by the call or layer that gives it away."""
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
"""What is looked for, and the calls that give it away."""
STOPPING = (EARLY_STOPPING, CONTROL_FLOW, NO_GRADIENT)
"""What an ensemble with a stopping rule declares."""
REPEATS = 4
"""Runs of one layer in one pass that make a loop; a layer shared by two or three places is none."""
FEW = 8
"""Images that are followed one by one."""


def plain_forward(
    model: Classifier, x: Images, *, layers: nn.Module | None = None, declared: Collection[str] = ()
) -> Check:
    """Check 11: gradient calls, randomness, steps without gradient, control flow and loops are absent or declared.

    Calls are watched where Python makes them, and only on values that depend on the images; straight-through layers
    are found in the graph of gradients, early stopping by layers that run for some images only. Compiled code cannot
    be watched. Costs 2 forward passes for each of at most 8 images.

    Args:
        model: what is attacked, or the logits of the deployed decision.
        x: images; those that take different ways are worth more.
        layers: the network whose layers are followed, if `model` is only a function.
        declared: kinds that the model says it has, such as `STOPPING`.

    Raises:
        InputError: a declared kind that is none.
    """
    if unknown := set(declared) - KINDS.keys():
        raise InputError(f'"{sorted(unknown)[0]}" is no kind of detour; known: {", ".join(KINDS)}')
    network = model if isinstance(model, nn.Module) else layers
    if network and any(_is_compiled(part) for part in network.modules()):
        return waived(11, "the model is compiled, and what compiled code does cannot be watched from Python")
    found = _watch(model, x[:FEW]) + _follow(model, x[:FEW], network)
    seen: dict[str, list[str]] = {}
    for (kind, name), times in sorted(found.items()):
        seen.setdefault(kind, []).append(f"{name} x{times}")
    words = [f"{kind} ({', '.join(names)})" for kind, names in seen.items() if kind not in declared]
    known = [kind for kind in seen if kind in declared]
    detail = f"undeclared: {'; '.join(words) or 'nothing'}; declared and there: {', '.join(known) or 'nothing'}"
    return verdict(11, not words, detail)


def _is_compiled(part: nn.Module) -> bool:
    # The class of torch.compile is known by name only: importing it takes a second.
    return isinstance(part, torch.jit.ScriptModule) or type(part).__name__ == "OptimizedModule"


def _watch(model: Classifier, x: Images) -> Found:
    """Run the model once and count the calls that give a detour away."""
    point = x.clone().requires_grad_()
    with torch.enable_grad(), _Watch(point) as watch:
        logits = model(point)
    found: Found = watch.found
    found.update((OWN_BACKWARD, type(node).__name__) for node in _nodes(logits) if isinstance(node, BackwardCFunction))
    if not logits.requires_grad:
        found[NO_GRADIENT, "output"] += 1
    return found


@torch.enable_grad()
def _follow(model: Classifier, x: Images, network: nn.Module | None) -> Found:
    """Run images one by one and see which layers with weights ran, and how often."""
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
    found: Found = Counter({(LOOPS, name): times for name, times in most.items() if times >= REPEATS})
    skipped = [name for name in layers if len({run[name] for run in runs}) > 1]
    if skipped:
        found[EARLY_STOPPING, f"{skipped[0]} and other layers run for some images only"] = len(skipped)
    return found


def _nodes(logits: Tensor) -> Iterator[Any]:
    """Walk the graph of gradients."""
    todo: list[Any] = [logits.grad_fn] if logits.grad_fn else []
    met = set(todo)
    while todo:
        node = todo.pop()
        yield node
        fresh = {parent for parent, _ in node.next_functions if parent is not None} - met
        met |= fresh
        todo.extend(fresh)


@final
class _Watch(TorchFunctionMode):
    """Sees every call of torch from Python, and follows which tensors depend on the images."""

    def __init__(self, x: Images) -> None:
        super().__init__()
        self.found: Found = Counter()
        # Kept alive, so that no other tensor gets their ids.
        self.kept: list[Tensor] = [x]
        self.depend = {id(x)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note a call and make it."""
        kwargs = kwargs or {}
        name = _name(func)
        inputs = list(_tensors([*args, *kwargs.values()]))
        depends = any(id(tensor) in self.depend for tensor in inputs)
        for kind, names in KINDS.items():
            if name in names and (depends or kind == RANDOMNESS) and not _is_off(name, args, kwargs):
                self.found[kind, name.strip("_")] += 1
        if name == "_set_grad_enabled" and args[0] is False:
            self.found[NO_GRADIENT, "no_grad"] += 1
        if name == "__getitem__" and depends and any(tensor.dtype == torch.bool for tensor in inputs):
            self.found[CONTROL_FLOW, "mask"] += 1
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
    """Say whether a call of dropout is one that does nothing."""
    if "dropout" not in name and name != "rrelu":
        return False
    place = 2 if "dropout" in name else 3
    return not kwargs.get("training", args[place] if len(args) > place else name != "rrelu")


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
