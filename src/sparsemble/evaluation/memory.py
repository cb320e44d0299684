"""Peak memory of a call."""

import weakref
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_memory(model: nn.Module, call: Callable[[], object]) -> int:
    """Return the peak number of bytes of tensors alive in a call, weights and BatchNorm statistics included.

    Counted from the tensors themselves, so it is the same on every device and every time. Scratch memory of single
    operations, of the interpreter and of libraries is not counted.

    Args:
        model: the model that is called; its tensors are alive all the time.
        call: runs the model on some images, without gradients.
    """
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.state_dict().values()}
    with torch.no_grad(), _Alive() as alive:
        call()
    total: int = sum(held.values()) + alive.most
    return total


@final
class _Alive(TorchDispatchMode):
    """Tracks the storages that operations allocate until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

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
