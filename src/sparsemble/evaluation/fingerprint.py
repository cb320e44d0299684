"""What a model computes, as a hash: the key under which its outcomes are stored."""

import functools
import hashlib
import inspect
import math
import re
import site
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from sparsemble.core.interfaces import Ensemble, members_of
from sparsemble.core.module_state import state_tensors
from sparsemble.core.registry import to_dict
from sparsemble.core.source_file import source_hash, source_of
from sparsemble.core.types import Logits, seeded

Shape = tuple[int, ...]
IMAGES = 4
"""Images of the probe of outputs."""
SUMS = 8
"""Numbers that the probe is reduced to: sums of all outputs under random signs."""
GRID = 1e-3
"""Fraction of the size of such a sum to which it is rounded; kernels differ by a thousandth of that."""
PACKAGE = Path(__file__).parents[1]

_known: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()
"""Fingerprints of models, with what they depend on and is quickly compared."""


def weights_hash(model: nn.Module) -> str:
    """Return a sha256 of a network's printed structure and of its state, tensors and others."""
    digest = hashlib.sha256(_without_addresses(repr(model)).encode())
    for name, tensor in state_tensors(model).items():
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    for name, value in model.state_dict().items():
        for leaf in tree_leaves(value):
            if not isinstance(leaf, Tensor):
                digest.update(_without_addresses(f"{name} {leaf!r}").encode())
            elif leaf.is_quantized:  # its integers say nothing without their scale
                digest.update(_bytes(leaf.detach().dequantize()))
    return digest.hexdigest()


def code_hash(model: nn.Module) -> str:
    """Return a sha256 of the user's code that a network runs: its files and those they import; "" where it has none."""
    code = _code(model, list(_functions(model)))
    return hashlib.sha256("\n".join(code).encode()).hexdigest() if code else ""


def fingerprint(model: nn.Module, shape: Shape, device: torch.device) -> str:
    """Return a sha256 of what a model computes on images of a shape.

    It covers structure and state (`weights_hash`); the files of the user's that define its layers, hooks and functions
    or made it, with the local files that these import; the operations that torch.fx traces in such a network; and the
    outputs on fixed random images. These are computed in one thread and coarsely rounded, so that the number of threads
    does not matter, and left out where two passes differ. Costs 2 forward passes on 4 images, once for a model.

    Args:
        model: in eval mode; left as found.
        shape: of an image, (C, H, W).
        device: of the model.
    """
    functions = list(_functions(model))
    quick = (weights_hash(model), shape, _settings(model), [id(function) for function in functions])
    known = _known.get(model)
    if known and known[0] == quick:
        return known[1]
    code = _code(model, functions)
    parts = [quick[0], *code]
    if isinstance(model, Ensemble):
        parts.append(repr(to_dict(model.combiner, versions=True)))
    if code:
        parts += [_graph(member) for member in members_of(model)]
    parts.append(_outputs(model, shape, device))
    result = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    _known[model] = quick, result
    return result


def _settings(model: nn.Module) -> list[Any]:
    """Return the plain attributes of a network's modules."""
    return [
        (name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str)
    ]


def _functions(model: nn.Module) -> Iterator[FunctionType]:
    """Yield the functions of the user's that a network may run: methods of its classes, hooks, attributes."""
    classes = {cls: None for module in model.modules() for cls in type(module).__mro__}
    values = [value for cls in classes for value in vars(cls).values()]
    for module in model.modules():
        for attribute in vars(module).values():
            values += attribute.values() if isinstance(attribute, dict) else [attribute]
    for value in values:
        function = _function_of(value)
        if isinstance(function, FunctionType) and not _is_installed(function.__code__.co_filename):
            yield function


def _function_of(value: Any) -> Any:
    """Return the function that a method, a hook or a callable object runs."""
    if isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, MethodType | staticmethod | classmethod):
        value = value.__func__
    elif not isinstance(value, FunctionType | Tensor | nn.Module | type):
        value = vars(type(value)).get("__call__")
    return inspect.unwrap(value) if isinstance(value, FunctionType) else None


@functools.cache
def _is_installed(filename: str) -> bool:
    """Return whether a file is part of Python, of an installed package or of this one."""
    path = Path(filename)
    folders = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [PACKAGE, *map(Path, site.getsitepackages()), Path(site.getusersitepackages())]
    return filename.startswith("<frozen") or any(path.is_relative_to(folder) for folder in folders)


def _code(model: nn.Module, functions: list[FunctionType]) -> list[str]:
    """Return hashes of the user's code: of its files or, where there are none, of compiled functions."""
    files: dict[Path, None] = {}
    code = []
    for module in model.modules():
        if made := source_of(module):
            files[made[0]] = None
            code.append(made[1])
    for function in functions:
        file = Path(function.__code__.co_filename)
        if file.is_file():
            files[file] = None
        else:
            code.append(f"{function.__qualname__} {_compiled(function.__code__)}")
    return sorted({*code, *(source_hash(file) for file in files)})


def _compiled(code: CodeType) -> str:
    """Return a hash of compiled code that does not depend on where it was defined."""
    consts = [_constant(value) for value in code.co_consts]
    content = repr((code.co_code, code.co_names, code.co_varnames, code.co_freevars, consts))
    return hashlib.sha256(_without_addresses(content).encode()).hexdigest()


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _compiled(value)
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def _graph(model: nn.Module) -> str:
    """Return the operations of a network; nothing where they cannot be traced."""
    before = [(vars(module), dict(vars(module))) for module in model.modules()]
    try:
        return _without_addresses(str(fx.symbolic_trace(model).graph))
    except Exception:  # a network may do anything with what is no tensor
        return ""
    finally:
        for attributes, kept in before:
            attributes.clear()
            attributes.update(kept)


def _outputs(model: nn.Module, shape: Shape, device: torch.device) -> str:
    """Return rounded sums of the outputs on fixed images; words where these cannot be taken or are random."""
    if any(module.training for module in model.modules()):
        return "in training mode"
    rng = seeded(0)
    x = torch.rand(IMAGES, *shape, generator=rng).to(device)
    first, second = (_run(lambda: model(x.clone()), device) for _ in range(2))
    if first is None or second is None:
        return "refuses the images"
    values, again = (output.detach().double().flatten().cpu() for output in (first, second))
    size = float(values.norm())
    if not 0 < size < math.inf:
        return str(size)
    if values.shape != again.shape or not float((again - values).norm()) <= GRID * size:
        return "random"
    signs = 2 * torch.randint(2, (SUMS, len(values)), generator=rng).double() - 1
    # The size is rounded to a power of 2, so that it is the same for all but the rarest networks.
    grid = GRID * 2.0 ** round(math.log2(size))
    return str((signs @ values / grid).round().long().tolist()) + f" {math.log2(grid / GRID):.0f}"


@torch.no_grad()
def _run(call: Callable[[], Any], device: torch.device) -> Logits | None:
    """Return what a model answers in one thread with fixed random numbers; None if it fails or returns no tensor."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            output = call()
    except Exception:
        return None
    finally:
        torch.set_num_threads(threads)
    return output if isinstance(output, Tensor) else None


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _without_addresses(text: str) -> str:
    """Return text without addresses in memory, which are others in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)
