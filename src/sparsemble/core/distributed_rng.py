"""Which slice of a batch this process works on, for draws that must not depend on the number of processes."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

_SHARD: ContextVar[tuple[int, int]] = ContextVar("shard", default=(0, 1))


@contextlib.contextmanager
def sharded(rank: int, world: int) -> Iterator[None]:
    """Say that the batches of this context are slice `rank` of `world` equal ones."""
    token = _SHARD.set((rank, world))
    try:
        yield
    finally:
        _SHARD.reset(token)


def uniform_like(x: Tensor, rng: torch.Generator) -> Tensor:
    """Draw numbers from [0, 1) in the shape of a batch, whose first axis counts images.

    In a sharded context the whole batch is drawn and the own slice kept, so that the processes together draw what one
    would, and their generators stay alike.
    """
    rank, world = _SHARD.get()
    drawn = torch.rand((world * len(x), *x.shape[1:]), generator=rng, device=x.device, dtype=x.dtype)
    return drawn[rank * len(x) :][: len(x)]


def normal_like(x: Tensor, rng: torch.Generator) -> Tensor:
    """Draw standard normal numbers in the same way."""
    rank, world = _SHARD.get()
    drawn = torch.randn((world * len(x), *x.shape[1:]), generator=rng, device=x.device, dtype=x.dtype)
    return drawn[rank * len(x) :][: len(x)]
