"""Step decay at milestones."""

from dataclasses import dataclass
from typing import final

from sparsemble.core.argument_checks import check_above_zero
from sparsemble.core.errors import InputError
from sparsemble.training.schedule import LRSchedule, lr_schedules


@final
@lr_schedules.register("multi_step")
@dataclass(frozen=True, kw_only=True)
class MultiStep(LRSchedule):
    """Multiplies the learning rate by `factor` at each milestone.

    The schedule of the EED paper, which does not state its milestones.
    """

    factor: float = 0.2
    """Factor on the learning rate at each milestone, > 0; the EED paper's lists fall by 5."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of training at which the learning rate falls, each in (0, 1)."""

    def __post_init__(self) -> None:
        check_above_zero(factor=self.factor)
        if not all(0 < milestone < 1 for milestone in self.milestones):
            raise InputError(f"milestones = {list(self.milestones)} must lie in (0, 1): shares of training, not epochs")

    def __call__(self, progress: float) -> float:
        """Return the factor at this share of training."""
        return float(self.factor ** sum(progress >= milestone for milestone in self.milestones))
