"""Backward pass differentiable approximation (Athalye et al. 2018), with stand-ins placed by torch's calls."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

from sparsemble.attacks.attack import SMALLEST, Attack, attacks
from sparsemble.attacks.pgd import PGD
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels, Logits

SIGNS = {"gt": 1.0, "ge": 1.0, "lt": -1.0, "le": -1.0}
"""Comparisons a ? b, and the sign of a - b for which they hold."""
SMOOTH: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(("round", "floor", "ceil", "trunc", "hardshrink", "_threshold"), lambda a, *_: a),
    **dict.fromkeys(("floor_divide", "__floordiv__"), lambda a, b: a / b),
    **dict.fromkeys(("sign", "sgn"), lambda a: torch.tanh(a / _size(a))),
    "heaviside": lambda a, _: torch.sigmoid(a / _size(a)),
}
"""Stand-ins of functions of real numbers."""
LOGIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **dict.fromkeys(("__and__", "logical_and", "bitwise_and"), lambda a, b: a * b),
    **dict.fromkeys(("__or__", "logical_or", "bitwise_or"), lambda a, b: a + b - a * b),
}
"""Stand-ins of functions of two masks."""
CASTS = ("to", "type", "float", "double", "half", "bfloat16", "type_as", "long", "int", "short", "char", "byte", "bool")
ARITHMETIC = {"mul", "add", "sub", "div", "rsub", "true_divide", "multiply", "subtract", "divide", "matmul", "linear"}
ARITHMETIC |= {"__rmul__", "__rsub__", "__radd__", "__rdiv__", "__rtruediv__", "__matmul__", "mm", "bmm", "einsum"}
ARITHMETIC |= {"sum", "mean", "lerp", "maximum", "minimum", "cumsum"}
SHAPES = {"view", "reshape", "unsqueeze", "squeeze", "expand", "expand_as", "permute", "transpose", "flatten", "repeat"}
SHAPES |= {"contiguous", "clone", "movedim", "__getitem__", "flip", "chunk", "split", "unbind"}
WIDTH = 0.05
"""Width of a stand-in, in units of the mean size of its arguments over an image; chosen on held-out digits."""
STEEPEST = 1e4
"""Largest difference that a stand-in passes on; masks may put infinity in place of a logit."""


@final
@attacks.register("bpda")
@dataclass(frozen=True, kw_only=True)
class BPDA(Attack):
    """Runs an attack on the gradients of smooth stand-ins for steps and decisions in the forward pass.

    Predictions stay those of the model. In the backward pass a comparison is a sigmoid of the difference, in units of
    a twentieth of its mean size over the image, `sign` a tanh of the same, a mask of the largest values (`topk`, or
    `argmax`, with `one_hot` or `scatter`) a sigmoid or softmax, and rounding, thresholds and casts to integers the
    identity; `detach` and `no_grad` are undone. Steps inside compiled code or a backward pass of one's own have no
    stand-in.

    Source: Athalye et al. 2018, section 4.1. Departs: the stand-ins are placed without knowing the model.
    """

    own_gradients: ClassVar[bool] = True

    attack: Attack = PGD(steps=40, step_size=0.1)
    """Follows the gradients."""
    label: str = ""
    """Name in results; empty: bpda and that of the attack."""

    def __post_init__(self) -> None:
        self._set_label(f"bpda-{self.attack.label}")
        object.__setattr__(self, "norms", self.attack.norms)
        object.__setattr__(self, "instead", self.attack.instead)

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Attack the model through its stand-ins."""
        return self.attack.perturb(with_stand_ins(model), x, y, threat, rng=rng)


def with_stand_ins(model: Classifier) -> Classifier:
    """Return a classifier with the outputs of the model and the gradients of its stand-ins."""

    def smoothed(x: Images) -> Logits:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return model(x)
        point = x.view_as(x)
        point.register_hook(lambda gradient: gradient.nan_to_num(0.0, 0.0, 0.0))  # a root has no slope at 0
        with _StandIns():
            return model(point)

    return smoothed


def count_stand_ins(model: Classifier, x: Images) -> int:
    """Return how many calls of a forward pass have a stand-in; 0 where the pass through them fails.

    Args:
        model: the classifier.
        x: (B, C, H, W) a few images; costs a forward and a backward pass of each.
    """
    point = x.clone().requires_grad_()
    try:
        with torch.enable_grad(), _StandIns() as stand_ins:
            logits = model(point.view_as(point))
        torch.autograd.grad(logits.sum(), point)
    except Exception:  # what a model does with tensors is not known
        return 0
    return int(stand_ins.count)


@final
class _StandIns(TorchFunctionMode):
    """Gives steps and decisions the gradients of their stand-ins; values stay exact."""

    def __init__(self) -> None:
        super().__init__()
        self.count: int = 0
        """Results that got a gradient."""
        self.disabled = False
        """Whether the model disabled gradients."""
        self.soft: dict[int, Tensor] = {}
        """Stand-in of a tensor of bools or integers, by its id."""
        self.members: dict[int, Tensor] = {}
        """Of indices of largest values, by their id: how much each value is among them."""
        self.kept: list[Any] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Make a call and give its result a gradient."""
        kwargs = kwargs or {}
        name = str(getattr(func, "__name__", ""))
        if name == "__get__":
            name = str(getattr(getattr(func, "__self__", None), "__name__", name))
        if name == "_set_grad_enabled":
            self.disabled = args[0] is False
            return None
        self.count += self.disabled and _has_gradient(value for value in _flat(args) if not value.is_leaf)
        first = args[0] if args else None
        if not isinstance(first, Tensor):
            return func(*args, **kwargs)
        if name in ("detach", "detach_", "data"):
            self.count += first.requires_grad
            return first
        plain = name if name.startswith("__") else name.rstrip("_")
        if plain in ARITHMETIC and any(id(value) in self.soft for value in _flat(args)):
            return self._arithmetic(func, args, kwargs)
        if name == "__setitem__" and id(args[1]) in self.soft and args[1].shape == first.shape and not _flat(args[2:]):
            func, name, plain = Tensor.masked_fill_, "masked_fill_", "masked_fill"
        before = first.clone() if plain != name and plain in (*SMOOTH, "masked_fill") else first
        result = func(*args, **kwargs)
        self.kept.append((args, result))  # so that no other tensor gets their ids
        return self._stand_in(plain, func, result, (before, *args[1:]), kwargs, new=plain == name)

    def _stand_in(
        self,
        name: str,
        func: Callable[..., Any],
        result: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        new: bool,
    ) -> Any:
        """Return the result of a call with the gradient of its stand-in, or note the stand-in of bools and integers.

        Args:
            name: of the call.
            func: the call.
            result: what it returned.
            args: of the call; the first is a tensor.
            kwargs: of the call.
            new: whether the result is a new tensor, not one that was changed in place.
        """
        first = args[0]
        if name in SIGNS and _has_gradient(args[:2]):
            difference = SIGNS[name] * (first - args[1])
            return self._note(result, torch.sigmoid(difference / _size(difference)))
        if name in SMOOTH and _has_gradient([first]) and not (name == "_threshold" and args[1] == args[2]):
            # Some have a gradient of their own, which is 0 on one side.
            return self._carry(result.detach() if new else result, SMOOTH[name](*args), new=new)
        if name in ("argmax", "topk"):
            return self._ranked(name, result, first, args, kwargs)
        merged = self._merged(name, args)
        if merged is not None:
            return self._carry(result, merged, new=new) if result.is_floating_point() else self._note(result, merged)
        if id(first) in self.soft:
            return self._passed_on(name, func, result, args, kwargs)
        if name in CASTS and _has_gradient([first]) and not result.is_floating_point():
            return self._note(result, first)
        return result

    def _merged(self, name: str, args: Sequence[Any]) -> Tensor | None:
        """Return the stand-in of a call that takes a mask or indices beside other values."""
        first = args[0]
        if name == "one_hot":
            return self.members.get(id(first))
        if name == "scatter" and len(args) > 3 and id(args[2]) in self.members and not isinstance(args[3], Tensor):
            return self.members[id(args[2])] * float(args[3])
        if name == "where" and len(args) == 3 and id(first) in self.soft:
            return self.soft[id(first)] * _difference(args[1], args[2])
        if name == "masked_fill" and id(args[1]) in self.soft:
            return self.soft[id(args[1])] * _difference(args[2], first)
        if name in LOGIC:
            a, b = (self._stand_in_of(value) for value in args[:2])
            return None if a is None or b is None else LOGIC[name](a, b)
        return None

    def _passed_on(
        self, name: str, func: Callable[..., Any], result: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Return the result of a call on bools or integers that have a stand-in."""
        soft = self.soft[id(args[0])]
        if name in CASTS:
            return self._carry(result, soft) if result.is_floating_point() else self._note(result, soft)
        if name in ("__invert__", "logical_not", "bitwise_not"):
            return self._note(result, 1 - soft)
        if name in ("any", "all"):
            return self._note(result, getattr(soft, "amax" if name == "any" else "amin")(*args[1:], **kwargs))
        if name in SHAPES:
            parts = func(soft, *args[1:], **kwargs)
            for part, stand_in in zip(_flat([result]), _flat([parts]), strict=True):
                self._note(part, stand_in)
        return result

    def _arithmetic(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Compute with bools and integers that carry gradients."""
        dtypes = [value.dtype for value in _flat(args) if value.is_floating_point()]
        if not dtypes:
            result = func(*args, **kwargs)
            smooth = [self.soft.get(id(value), value) if isinstance(value, Tensor) else value for value in args]
            stand_in = func(*smooth, **kwargs)
            self.kept.append((args, result))
            return self._carry(result, stand_in) if result.is_floating_point() else self._note(result, stand_in)

        def carried(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(map(carried, value))
            stand_in = self.soft.get(id(value))
            return value if stand_in is None else self._carry(value.to(dtypes[0]), stand_in)

        return func(*map(carried, args), **kwargs)

    def _ranked(self, name: str, result: Any, values: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Note how much each value is among the largest."""
        place = 1 if name == "argmax" else 2
        dim = kwargs.get("dim", args[place] if len(args) > place else None if name == "argmax" else -1)
        if dim is None or not _has_gradient([values]) or not kwargs.get("largest", True):
            return result
        if name == "argmax":
            self.members[id(result)] = torch.softmax(values / _size(values, 1.0), dim).movedim(dim, -1)
        else:
            last = result[0].amin(dim, keepdim=True)
            self.members[id(result[1])] = torch.sigmoid((values - last) / _size(values - last))
        return result

    def _stand_in_of(self, value: Any) -> Tensor | None:
        soft = self.soft.get(id(value))
        return value.float() if soft is None and isinstance(value, Tensor) and value.dtype == torch.bool else soft

    def _note(self, result: Tensor, soft: Tensor) -> Tensor:
        self.soft[id(result)] = soft
        self.kept.append(result)
        return result

    def _carry(self, result: Tensor, soft: Tensor, *, new: bool = True) -> Tensor:
        """Return a tensor with its own value, and the gradient of its stand-in beside its own."""
        self.count += 1
        if soft.shape != result.shape:
            soft = soft.expand(result.shape)
        nothing = soft.to(result.dtype) - soft.detach().to(result.dtype)
        return result + nothing if new else result.add_(nothing)


def _has_gradient(values: Iterable[Any]) -> bool:
    return any(isinstance(value, Tensor) and value.requires_grad and value.is_floating_point() for value in values)


def _size(values: Tensor, width: float = WIDTH) -> Tensor:
    """Return the width of the stand-ins of an image's values: a part of their mean size, at least the least of them."""
    size = values.detach().abs()
    dims = tuple(range(1, size.ndim))
    if dims:
        size = torch.maximum(width * size.mean(dims, keepdim=True), size.amin(dims, keepdim=True))
    return size.clamp_min(SMALLEST)


def _difference(a: Any, b: Any) -> Tensor:
    """Return by how much a result would change from b to a, without gradients and without infinities."""
    a, b = (value.detach() if isinstance(value, Tensor) else value for value in (a, b))
    return torch.as_tensor(a - b).clamp(-STEEPEST, STEEPEST)


def _flat(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors in values, and in lists of them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _flat(value)
    return found
