"""Stopping at random, for ensembles with random weights."""

from typing import final

import numpy as np

from sparsemble.runtime.combiners import Combiner
from sparsemble.runtime.network import Floats
from sparsemble.runtime.stopping import Counts, Flags, StoppingRule


@final
class RandomStopping(StoppingRule):
    """Stops random images, the same fraction after each member, so that a given number of members run on average."""

    def __init__(self, members_run: float, members: int) -> None:
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(middle**m for m in range(members)) < members_run else (low, middle)
        self.fraction = low

    def __call__(self, member_logits: Floats, combiner: Combiner, *, last: bool) -> tuple[Flags, Counts]:
        """Stop a random subset of the images."""
        members, images = member_logits.shape[:2]
        stop: Flags = np.full(images, last)
        stop |= np.random.default_rng(members).permutation(images) >= round(self.fraction * images)
        return stop, np.full(images, members, np.int64)
