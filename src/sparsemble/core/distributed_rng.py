"""Random draws for a batch that do not depend on the number of processes that share it."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

_SHARD: ContextVar[tuple[int, int]] = ContextVar("shard", default=(0, 1))


@contextlib.contextmanager
def sharded(rank: int, world: int) -> Iterator[None]:
    """Declare that batches are slice `rank` of `world` equal slices while the context is open."""
    token = _SHARD.set((rank, world))
    try:
        yield
    finally:
        _SHARD.reset(token)


def uniform_like(x: Tensor, rng: torch.Generator) -> Tensor:
    """Draw uniform numbers in [0, 1) in the shape of a batch, whose first axis counts images.

    In a `sharded` context the draw is made for the whole batch and this process's slice returned, so that several
    processes together draw what one process would, and their generators stay in the same state.
    """
    rank, world = _SHARD.get()
    drawn = torch.rand((world * len(x), *x.shape[1:]), generator=rng, device=x.device, dtype=x.dtype)
    return drawn[rank * len(x) :][: len(x)]


def normal_like(x: Tensor, rng: torch.Generator) -> Tensor:
    """Draw standard normal numbers in the shape of a batch, as `uniform_like` does."""
    rank, world = _SHARD.get()
    drawn = torch.randn((world * len(x), *x.shape[1:]), generator=rng, device=x.device, dtype=x.dtype)
    return drawn[rank * len(x) :][: len(x)]
