"""Batches read ahead in the background are those read one by one."""

import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from sparsemble.core.types import Images, seeded
from sparsemble.data.dataset import Split, TensorSplit
from sparsemble.training.batches import Batches


class Slow(Split):
    """Remembers what was asked for, and by which thread."""

    prefetch: ClassVar[int] = 2

    def __init__(self, count: int) -> None:
        self.labels = torch.arange(count)
        self.asked: list[list[int]] = []
        self.threads: set[int] = set()
        self.read = threading.Semaphore(0)

    def images(self, indices: Tensor) -> Images:
        if 99 in indices:
            raise OSError("image 99 is damaged")
        self.asked.append(indices.tolist())
        self.threads.add(threading.get_ident())
        self.read.release()
        return indices.float().view(-1, 1, 1, 1) / 100

    def subset(self, indices: Tensor) -> "Slow":
        raise NotImplementedError

    def to(self, device: torch.device | str) -> "Slow":
        return self


def test_gives_the_same_batches_as_a_split_in_memory() -> None:
    slow = Slow(23)
    whole = TensorSplit(torch.arange(23).float().view(-1, 1, 1, 1) / 100, torch.arange(23))
    for one, other in zip(
        Batches(split=slow, batch_size=4).epoch(seeded(3)),
        Batches(split=whole, batch_size=4).epoch(seeded(3)),
        strict=True,
    ):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert threading.get_ident() not in slow.threads


def test_reads_two_ahead_and_no_more() -> None:
    slow = Slow(40)
    batches: Iterator[Images] = slow.stream(torch.arange(40).split(4))
    next(batches)
    for _ in range(3):
        assert slow.read.acquire(timeout=10)
    assert not slow.read.acquire(timeout=0.1)
    batches.close()  # type: ignore[attr-defined]
    assert len(slow.asked) == 3


def test_what_goes_wrong_while_reading_is_raised_where_it_is_used() -> None:
    batches = Slow(100).stream(torch.tensor([[1, 2], [98, 99]]))
    assert torch.equal(next(batches).flatten(), torch.tensor([0.01, 0.02]))
    with pytest.raises(OSError, match="image 99 is damaged"):
        next(batches)
