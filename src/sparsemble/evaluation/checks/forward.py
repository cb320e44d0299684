"""What a forward pass does besides computing: the tracing behind check 11."""

import ast
import functools
import linecache
import math
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from sparsemble.core.errors import InputError
from sparsemble.core.results import CheckResult
from sparsemble.core.types import Classifier, Flags, Images
from sparsemble.evaluation.checks import skipped, verdict

GRADIENT_CALLS, RANDOMNESS, NO_GRADIENT, CONTROL_FLOW = "gradient calls", "randomness", "no gradient", "control flow"
OWN_BACKWARD, LOOPS, EARLY_STOPPING, DECISIONS = "own backward", "loops", "early stopping", "decisions"
Detours = Counter[tuple[str, str]]
"""Number of detours, by kind and by the call or layer that shows it."""
KINDS = {
    GRADIENT_CALLS: {"grad", "backward", "requires_grad_"},
    RANDOMNESS: {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "normal_"}
    | {"uniform_", "bernoulli", "bernoulli_", "multinomial", "poisson", "gumbel_softmax", "random_"}
    | {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "rrelu"},
    NO_GRADIENT: {"detach", "detach_", "data", "numpy", "argmax", "argmin", "round", "floor", "ceil", "trunc", "sign"}
    | {
        "heaviside",
        "one_hot",
        "argsort",
        "bucketize",
        "sgn",
        "floor_divide",
        "__floordiv__",
        "hardshrink",
        "_threshold",
    },
    CONTROL_FLOW: {"__bool__", "__int__", "__float__", "__index__", "item", "tolist", "nonzero", "unique", "allclose"}
    | {"masked_select", "equal"},
    OWN_BACKWARD: set[str](),
    LOOPS: set[str](),
    EARLY_STOPPING: set[str](),
    DECISIONS: set[str](),
}
"""Kinds of detours, and the calls that show them."""
STOPPING = (EARLY_STOPPING, CONTROL_FLOW, NO_GRADIENT, DECISIONS)
"""What an ensemble with a stopping rule declares."""
REPEATS = 4
"""Runs of one layer in one pass that make a loop; a layer shared by two or three places is none."""
FEW = 8
"""Images that are run one by one."""
ALWAYS = ("isnan", "isinf", "isfinite")
"""Comparisons that come out the same for all finite values."""
EQUALITY = ("__eq__", "__ne__", "eq", "ne")
"""Comparisons that hold for next to no image, and so guard against special values."""
RANKS = ("sort", "argsort")
"""Calls whose result changes at many places, and the logits perhaps at few of them."""
MOST = 16
"""Decisions that are tried; of more, so many that lie evenly among them."""
PAIRS = 2
"""Other images towards which a decision is changed."""
HALVINGS = 22
"""Times that the way between two images is halved towards the place where a decision changes."""
JUMP = 1e-4
"""Fraction of the spread of the logits by which they jump there; a continuous network changes by a millionth."""


def plain_forward(
    model: Classifier, x: Images, *, layers: nn.Module | None = None, declared: Collection[str] = ()
) -> CheckResult:
    """Check 11: gradient calls, randomness, steps without gradient, decisions, control flow and loops are declared.

    Calls are traced where Python makes them, and only on values that depend on the images; straight-through layers
    are found in the graph of gradients, early stopping by layers that run for some images only. A decision is a
    comparison, rank or integer computed from the image on which the logits depend; it is no detour where the logits
    do not jump as it changes, as in a ReLU written with a comparison. A branch that only refuses images is none
    either. Compiled code cannot be traced. Costs 2 forward passes for each of at most 8 images, and 48 for each of at
    most 16 decisions.

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
    detours = _trace(model, x[:FEW], declared) + _run_singly(model, x[:FEW], network)
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


def _trace(model: Classifier, x: Images, declared: Collection[str]) -> Detours:
    """Run the model once and count the calls that show a detour; declared decisions are not tried."""
    point = x.clone().requires_grad_()
    with torch.enable_grad(), _Tracer(point) as tracer:
        logits = model(point)
    detours: Detours = tracer.detours
    detours.update(
        (OWN_BACKWARD, type(node).__name__) for node in _nodes(logits) if isinstance(node, BackwardCFunction)
    )
    if not logits.requires_grad:
        detours[NO_GRADIENT, "output"] += 1
    reached = sorted(tracer.reaching(logits))
    if reached and DECISIONS not in declared:
        reached = _jumping(model, x, tracer, reached[:: math.ceil(len(reached) / MOST)])
    sources = {tracer.decisions[i].source for i in reached}
    detours.update((DECISIONS, tracer.decisions[i].name) for i in sources)
    return detours


@torch.no_grad()
def _jumping(model: Classifier, x: Images, tracer: "_Tracer", reached: Sequence[int]) -> list[int]:
    """Return the decisions at whose change the logits jump, or which cannot be tried.

    Each is changed on the way from one image to another on which it comes out differently, by halving that way.

    Args:
        model: the classifier.
        x: (B, C, H, W) the images of the trace.
        tracer: of a pass on these images.
        reached: indices of the decisions on which the logits depend.
    """
    pairs: list[tuple[int, int]] = []
    untried = []
    for i in reached:
        others = [] if tracer.decisions[i].name in RANKS else _others(tracer.decisions[i].rows(len(x)))
        pairs += [(i, other) for other in others]
        if not others and tracer.decisions[i].name not in EQUALITY:
            untried.append(i)
    if not pairs:
        return untried
    sites = [site for site, _ in pairs]
    start, way = x[:1].expand(len(pairs), -1, -1, -1), x[[other for _, other in pairs]]
    low, high = (torch.full((len(pairs), 1, 1, 1), end, device=x.device, dtype=x.dtype) for end in (0.0, 1.0))

    def run(part: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        images = (start + part * (way - start)).requires_grad_()  # a model may ask for gradients of its own
        with torch.enable_grad(), _Tracer(images) as again:
            logits = model(images).detach()
        same = [one.name for one in again.decisions] == [one.name for one in tracer.decisions]
        return logits, [again.decisions[i].rows(len(images)) if same else None for i in sites]

    before, first = run(low)
    after, _ = run(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        logits, now = run(middle)
        changed = _changed(first, now)
        if changed is None:
            return sorted({*untried, *sites})
        wide = changed.view(-1, 1, 1, 1)
        low, high = torch.where(wide, low, middle), torch.where(wide, middle, high)
        before, after = torch.where(changed[:, None], before, logits), torch.where(changed[:, None], logits, after)
    spread = (before - before.mean(1, keepdim=True)).abs().max().clamp_min(1e-12)
    jumps = ~((after - before).abs().amax(1) <= JUMP * spread)
    return sorted({*untried, *(site for site, jump in zip(sites, jumps.tolist(), strict=True) if jump)})


def _changed(before: Sequence[Tensor | None], now: Sequence[Tensor | None]) -> Flags | None:
    """Return whether the decision tried in each row came out differently there; None where this is not known."""
    changed = []
    for row, (a, b) in enumerate(zip(before, now, strict=True)):
        if a is None or b is None or a.shape != b.shape:
            return None
        changed.append((a[row] != b[row]).any())
    return torch.stack(changed)


def _others(rows: Tensor | None) -> list[int]:
    """Return the first images whose decisions are not those of image 0; none where rows are not known."""
    if rows is None:
        return []
    others: list[int] = (rows != rows[:1]).any(1).nonzero()[:PAIRS, 0].tolist()
    return others


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
@dataclass(frozen=True)
class _Decision:
    """A call whose result is piecewise constant in the image."""

    name: str
    values: Tensor
    source: int
    """Index of the decision of which it is made; its own where it is made of numbers."""

    def rows(self, images: int) -> Tensor | None:
        """Return the result as one row for each image; None where it is not made of such."""
        if self.values.numel() % images:
            return None
        rows = (self.values.int_repr() if self.values.is_quantized else self.values).reshape(images, -1)
        # The order among the largest values does not decide which ones they are.
        return rows.sort(1).values if self.name == "topk" else rows


@final
class _Tracer(TorchFunctionMode):
    """Receives every call of torch from Python, and tracks which tensors depend on the images, and on decisions."""

    def __init__(self, x: Images) -> None:
        super().__init__()
        self.detours: Detours = Counter()
        self.decisions: list[_Decision] = []
        # Kept alive, so that no other tensor gets their memory.
        self.kept: list[Tensor] = [x]
        self.depend: dict[int, frozenset[int]] = {_memory(x): frozenset()}
        """Decisions on which a tensor depends, by its memory; only of tensors that depend on the images."""

    def reaching(self, logits: Tensor) -> frozenset[int]:
        """Return the indices of the decisions on which the logits depend."""
        return self.depend.get(_memory(logits), frozenset())

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Record a call and make it."""
        kwargs = kwargs or {}
        name = _name(func)
        inputs = list(_tensors([*args, *kwargs.values()]))
        depending = [tensor for tensor in inputs if _memory(tensor) in self.depend]
        if depending or name in KINDS[RANDOMNESS]:
            self._count_detours(name, args, kwargs)
        if name == "__getitem__" and depending and any(part.dtype == torch.bool for part in _tensors(args[1:])):
            self.detours[CONTROL_FLOW, "mask"] += 1
        result = func(*args, **kwargs)
        if depending and not name.startswith("new_") and not name.endswith("_like"):
            self._follow(name, depending, list(_tensors([result])), args)
        return result

    def _count_detours(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        plain = name if name.startswith("__") else name.rstrip("_")
        for kind, names in KINDS.items():
            if not {name, plain} & names or _is_off(name, args, kwargs):
                continue
            if kind != CONTROL_FLOW or not _only_refuses(_caller()):
                self.detours[kind, name.strip("_")] += 1

    def _follow(self, name: str, depending: Sequence[Tensor], outputs: list[Tensor], args: Sequence[Any]) -> None:
        """Note on what the results of a call depend."""
        decisions = frozenset[int]().union(*(self.depend[_memory(tensor)] for tensor in depending))
        decides = name not in ALWAYS and any(tensor.is_floating_point() for tensor in depending)
        in_place = name == "__setitem__" or (name.endswith("_") and not name.startswith("__"))
        if in_place and isinstance(args[0], Tensor):
            outputs = [*outputs, args[0]]
        if outputs and not torch.is_grad_enabled():
            self.detours[NO_GRADIENT, "no_grad"] += 1
        for tensor in outputs:
            new = decisions
            if (decides or decisions) and not (tensor.is_floating_point() or tensor.is_complex()):
                # What is made of a decision stands for it: a mask of pixels changes more often than "any pixel".
                index = len(self.decisions)
                source = index if decides else self.decisions[min(decisions)].source
                self.decisions.append(_Decision(name if decides else self.decisions[source].name, tensor, source))
                new = frozenset({index})
            self.kept.append(tensor)
            self.depend[_memory(tensor)] = self.depend.get(_memory(tensor), frozenset()) | new


def _memory(tensor: Tensor) -> int:
    """Return what a tensor shares with its views."""
    try:
        address = tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        address = 0
    return address or id(tensor)


def _caller() -> FrameType:
    """Return the frame that called torch: the last one that is not of this file, generated, or of its type checks."""
    frame = sys._getframe(1)
    while frame.f_back and any(part in frame.f_code.co_filename for part in (__file__, "<", "jaxtyping")):
        frame = frame.f_back
    return frame


def _only_refuses(frame: FrameType) -> bool:
    """Return whether a line of code asserts something, or tests it only to raise an error."""
    lines = linecache.getlines(frame.f_code.co_filename)
    line = frame.f_lineno
    for node in ast.walk(_parsed("".join(lines))):
        if isinstance(node, ast.Assert | ast.If) and node.test.lineno <= line <= (node.test.end_lineno or 0):
            return isinstance(node, ast.Assert) or (isinstance(node.body[0], ast.Raise) and not node.orelse)
    return False


@functools.lru_cache(maxsize=8)
def _parsed(source: str) -> ast.AST:
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.Module([], [])


def _name(func: Callable[..., Any]) -> str:
    """Return the name of a call; that of the attribute where one is read."""
    name = str(getattr(func, "__name__", ""))
    return str(getattr(getattr(func, "__self__", None), "__name__", name)) if name == "__get__" else name


def _is_off(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Return whether a call of dropout does nothing, or a threshold is a ReLU."""
    if name.strip("_") == "threshold":
        return bool(args[1] == args[2])
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
