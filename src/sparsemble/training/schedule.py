"""How to learn: steps and their rate, averaging, and what happens when it goes wrong."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import final

from sparsemble.core.errors import InputError
from sparsemble.core.registry import Component, Registry
from sparsemble.training.ema import EMA
from sparsemble.training.guard import Guard
from sparsemble.training.optimiser import Optimiser
from sparsemble.training.optimisers.sgd import SGD


class LRSchedule(Component):
    """Course of the learning rate over training."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Return the factor on the peak rate at this share of training, progress in [0, 1)."""


lr_schedules: Registry[LRSchedule] = Registry("lr schedule", LRSchedule)


@final
@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Everything about learning that is neither the loss nor the data."""

    learning_rate: float = 0.1
    """Peak learning rate, > 0."""
    batch_size: int = 128
    """Images a step, over all processes; an incomplete last batch is left out."""
    optimiser: Optimiser = SGD()
    """Turns gradients into steps."""
    lr_schedule: LRSchedule
    """Course of the rate."""
    warmup: float = 0.0
    """Share of training over which the rate rises linearly from 4 %, before `decay` alone sets it, in [0, 1)."""
    max_grad_norm: float = 0.0
    """Largest l2 norm of the gradient of all weights together; 0: as it comes."""
    ema: EMA | None = None
    """Average the weights over the steps; held-out images judge the average, and it is what comes back."""
    guard: Guard = Guard()
    """What happens when training goes wrong."""

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate = {self.learning_rate:g} must be above 0")
        if self.batch_size < 2:
            raise InputError(f"batch_size = {self.batch_size} must be 2 or more (BatchNorm needs two images)")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup = {self.warmup:g} must lie in [0, 1): a share of training")
        if not 0 <= self.max_grad_norm < math.inf:
            raise InputError(f"max_grad_norm = {self.max_grad_norm:g} must be 0 (off) or a norm above 0")

    def learning_rate_at(self, progress: float) -> float:
        """Return the rate at this share of training, progress in [0, 1)."""
        rising = min(1.0, 0.04 + 0.96 * progress / self.warmup) if self.warmup else 1.0
        return self.learning_rate * rising * self.lr_schedule(progress)
