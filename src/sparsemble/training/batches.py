"""Shuffled, augmented batches of a split."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.core.errors import InputError
from sparsemble.core.types import Images, Labels
from sparsemble.data.augmentation import Augmentation, RandomChange
from sparsemble.data.dataset import Split


@final
@dataclass(frozen=True, kw_only=True)
class Batches:
    """Batches of a split: every image once an epoch, in a new order; an incomplete last batch is dropped."""

    split: Split
    batch_size: int
    """Images in a batch, over all processes."""
    augmentation: RandomChange = Augmentation()
    shard: tuple[int, int] = (0, 1)
    """Rank of this process and number of processes; each gets its slice of every batch."""

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
        rank, processes = self.shard
        size = self.batch_size // processes
        local = slice(rank * size, (rank + 1) * size)
        indices = [batch[local] for batch in order[: len(self) * self.batch_size].split(self.batch_size)]
        for chosen, x in zip(indices, self.split.stream(indices), strict=True):
            yield self._augmented(x, local, rng), labels[chosen]

    def _augmented(self, x: Images, local: slice, rng: Generator) -> Images:
        """Augment this process's slice of a batch, with draws for the whole batch."""
        if self.shard[1] == 1:
            return self.augmentation(x, rng)
        batch = x.new_zeros(self.batch_size, *x.shape[1:])
        batch[local] = x
        return self.augmentation(batch, rng)[local]
