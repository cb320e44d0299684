"""Shuffled, augmented batches of a split."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.core.errors import InputError
from sparsemble.core.types import Images, Labels
from sparsemble.data.dataset import Augmentation, Split


@final
@dataclass(frozen=True, kw_only=True)
class Batches:
    """Every image once an epoch, in a new order; an incomplete last batch is left out.

    Raises:
        InputError: the batch is larger than the split.
    """

    split: Split
    batch_size: int
    """Over all processes."""
    augmentation: Augmentation = Augmentation()
    shard: tuple[int, int] = (0, 1)
    """Number of this process, from 0, and how many there are; each gets its slice of every batch."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= len(self.split):
            raise InputError(
                f"batch_size = {self.batch_size} must be between 1 and the {len(self.split)} images there are"
            )
        if self.batch_size % self.shard[1]:
            raise InputError(
                f"batch_size = {self.batch_size} cannot be divided among {self.shard[1]} processes; change one of them"
            )

    def __len__(self) -> int:
        return len(self.split) // self.batch_size

    def epoch(self, rng: Generator) -> Iterator[tuple[Images, Labels]]:
        """Yield the batches of one epoch."""
        labels = self.split.labels
        order = torch.randperm(len(labels), generator=rng, device=labels.device)
        own = self.batch_size // self.shard[1]
        mine = slice(self.shard[0] * own, (self.shard[0] + 1) * own)
        own_rows = [batch[mine] for batch in order[: len(self) * self.batch_size].split(self.batch_size)]
        for chosen, x in zip(own_rows, self.split.stream(own_rows), strict=True):
            yield self._augmented(x, mine, rng), labels[chosen]

    def _augmented(self, x: Images, mine: slice, rng: Generator) -> Images:
        """Vary the own slice of a batch by what is drawn for all of it."""
        if self.shard[1] == 1:
            return self.augmentation(x, rng)
        whole = x.new_zeros(self.batch_size, *x.shape[1:])
        whole[mine] = x
        return self.augmentation(whole, rng)[mine]
