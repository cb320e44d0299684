"""The one-cycle schedule (Smith & Topin 2018)."""

from dataclasses import dataclass
from typing import final

from sparsemble.core.argument_checks import check_interval
from sparsemble.training.schedule import LRSchedule, lr_schedules


@final
@lr_schedules.register("one_cycle")
@dataclass(frozen=True, kw_only=True)
class OneCycle(LRSchedule):
    """Rises linearly from 0.04 of the peak, then falls linearly to 0."""

    rise: float = 0.3
    """Share of training in which the learning rate rises, in (0, 1)."""

    def __post_init__(self) -> None:
        check_interval("(0, 1)", rise=self.rise)

    def __call__(self, progress: float) -> float:
        """Return the factor at this share of training."""
        if progress < self.rise:
            return 0.04 + 0.96 * progress / self.rise
        return (1 - progress) / (1 - self.rise)
