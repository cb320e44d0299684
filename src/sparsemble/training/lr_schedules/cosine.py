"""Cosine annealing (Loshchilov & Hutter 2017)."""

import math
from dataclasses import dataclass
from typing import final

from sparsemble.training.schedule import LRSchedule, lr_schedules


@final
@lr_schedules.register("cosine")
@dataclass(frozen=True, kw_only=True)
class Cosine(LRSchedule):
    """Falls from the peak to 0 as 0.5 (1 + cos(pi progress))."""

    def __call__(self, progress: float) -> float:
        """Return the factor at this share of training."""
        return 0.5 * (1 + math.cos(math.pi * progress))
