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
    augmentation: Augmentation = Augmentation()

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= len(self.split):
            raise InputError(
                f"batch_size = {self.batch_size} must be between 1 and the {len(self.split)} images there are"
            )

    def __len__(self) -> int:
        return len(self.split) // self.batch_size

    def epoch(self, rng: Generator) -> Iterator[tuple[Images, Labels]]:
        """Yield the batches of one epoch."""
        labels = self.split.labels
        order = torch.randperm(len(labels), generator=rng, device=labels.device)
        for chosen in order[: len(self) * self.batch_size].split(self.batch_size):
            yield self.augmentation(self.split.images(chosen), rng), labels[chosen]
