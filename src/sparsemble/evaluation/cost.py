"""What a model costs: multiply-accumulates, weights and bytes, dense and without the zeros; memory."""

import contextlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsemble.core.interfaces import members_of
from sparsemble.core.module_state import eval_mode, state_tensors
from sparsemble.models.plain_network import prunable_layers


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of the convolutions and linear layers for one image."""

    dense: int
    """Zeros counted as work."""
    nonzero: int
    """Only what weights other than 0 need."""


@dataclass(frozen=True)
class Weights:
    """Prunable weights: those of Conv2d and Linear, without biases and BatchNorm."""

    total: int
    nonzeros: int

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable weights that are zero; 0 where there are none."""
        return 1 - self.nonzeros / self.total if self.total else 0.0


def count_macs(model: nn.Module, shape: tuple[int, int, int]) -> Macs:
    """Count the multiply-accumulates of one image in eval mode; the model is left as found.

    A layer that runs twice counts twice; an ensemble costs the sum of its members. Padding counts as image.

    Args:
        model: any network; only its Conv2d and Linear layers count.
        shape: channels, height and width of an image.
    """
    dense = nonzero = 0

    def add(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal dense, nonzero
        assert isinstance(module, nn.Conv2d | nn.Linear)
        # Each stored weight, also of a grouped convolution, is used once at every output position.
        positions = output.numel() // len(module.weight)
        dense += positions * module.weight.numel()
        nonzero += positions * int(module.weight.count_nonzero())

    example = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.zeros(()))
    with eval_mode(model), torch.no_grad(), contextlib.ExitStack() as hooks:
        for layer in _prunable(model):
            hooks.callback(layer.register_forward_hook(add).remove)
        model(torch.zeros(1, *shape, dtype=example.dtype, device=example.device))
    return Macs(dense, nonzero)


def count_weights(model: nn.Module) -> Weights:
    """Count the prunable weights and those that are not 0; none where no layer is a Conv2d or Linear."""
    weights = [layer.weight for layer in _prunable(model)]
    return Weights(sum(w.numel() for w in weights), sum(int(w.count_nonzero()) for w in weights))


def packed_bytes(model: nn.Module) -> int:
    """Return the bytes of a safetensors file of the model in which zeros cost a bit each.

    Every parameter and buffer is stored dense, or as its non-zero values and a bitmap, whichever takes fewer bytes; an
    ensemble is a file for each member.
    """
    return sum(_file_bytes(member) for member in members_of(model))


def peak_memory(model: nn.Module, call: Callable[[], object]) -> int:
    """Return the peak number of bytes of tensors alive in a call, weights and BatchNorm statistics included.

    Counted from the tensors themselves, so it is the same on every device and every time. Scratch memory of single
    operations, of the interpreter and of libraries is not counted.

    Args:
        model: the model that is called; its tensors are alive all the time.
        call: runs the model on some images, without gradients.
    """
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state_tensors(model).values()}
    with torch.no_grad(), _Alive() as alive:
        call()
    total: int = sum(held.values()) + alive.most
    return total


def _file_bytes(model: nn.Module) -> int:
    tensors: dict[str, Tensor] = {}
    for name, tensor in state_tensors(model).items():
        value = tensor.cpu()
        kept = value != 0
        dense = {name: value.clone(memory_format=torch.contiguous_format)}
        packed = {f"{name}|values": value[kept], f"{name}|bits": torch.from_numpy(np.packbits(kept.numpy()))}
        tensors |= dense if len(save(dense)) <= len(save(packed)) else packed
    return len(save(tensors))


def _prunable(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return list(prunable_layers(model).values())


@final
class _Alive(TorchDispatchMode):
    """Tracks the storages that operations allocate until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: leaving compiled code alone would import the compiler, which takes a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in given:
                self._begin(leaf.untyped_storage())
        return out

    def _begin(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._end, size)

    def _end(self, size: int) -> None:
        self.now -= size
