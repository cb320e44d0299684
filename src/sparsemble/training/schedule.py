"""The optimisation schedule: optimiser, learning rate, averaging of weights, guard."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import final

from sparsemble.core.argument_checks import check_above_zero, check_at_least, check_interval
from sparsemble.core.registry import Component, Registry
from sparsemble.training.ema import EMA
from sparsemble.training.guard import Guard
from sparsemble.training.optimiser import Optimiser
from sparsemble.training.optimisers.sgd import SGD


class LRSchedule(Component):
    """Learning rate over the course of training, relative to its peak."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Return the factor on the peak learning rate at this share of training, progress in [0, 1)."""


lr_schedules: Registry[LRSchedule] = Registry("lr schedule", LRSchedule)


@final
@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Settings of the optimisation, apart from the loss and the data."""

    learning_rate: float = 0.1
    """Peak learning rate, > 0."""
    batch_size: int = 128
    """Images a step, over all processes, >= 2; an incomplete last batch is dropped."""
    optimiser: Optimiser = SGD()
    """Computes the update from the gradient."""
    lr_schedule: LRSchedule
    """Learning rate over the course of training."""
    warmup: float = 0.0
    """Share of training over which the learning rate is multiplied by a factor that rises linearly from 0.04 to 1, in
    [0, 1)."""
    max_grad_norm: float = 0.0
    """Largest l2 norm of the gradient of all weights together, to which it is scaled; 0: no limit."""
    ema: EMA | None = None
    """Moving average of the weights, which is evaluated on held-out images and returned; none: no average."""
    guard: Guard = Guard()
    """Detects failed epochs and rolls them back."""

    def __post_init__(self) -> None:
        check_above_zero(learning_rate=self.learning_rate)
        check_at_least(2, batch_size=self.batch_size)  # BatchNorm needs two images
        check_interval("[0, 1)", warmup=self.warmup)
        check_at_least(0, max_grad_norm=self.max_grad_norm)

    def learning_rate_at(self, progress: float) -> float:
        """Return the learning rate at this share of training, progress in [0, 1)."""
        warmup = min(1.0, 0.04 + 0.96 * progress / self.warmup) if self.warmup else 1.0
        return self.learning_rate * warmup * self.lr_schedule(progress)
