"""Detection of failed training: NaN, or a collapse of robust accuracy (Wong et al. 2020, section 5.4)."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from torch import nn

from sparsemble.core.errors import InputError

LEAST_DROP = 0.15
"""A smaller drop, in accuracy, may be chance on few held-out images."""
RECENT = 5
"""Evaluated epochs whose median is the recent robust accuracy; their maximum would be biased upwards."""


@final
@dataclass(frozen=True)
class Fault:
    """What went wrong in an epoch."""

    message: str
    kind: Literal["diverged", "collapsed"]


NOT_FINITE = Fault("weights or logits became NaN or infinite", "diverged")


@final
@dataclass(frozen=True, kw_only=True)
class Guard:
    """Rolls back to the last good epoch and continues with a lower learning rate or a weaker attack."""

    max_drop: float = 0.5
    """Largest tolerated loss of robust accuracy, as a share of the recent one (and 15 points), in (0, 1]; 1: any."""
    max_rollbacks: int = 3
    """Rollbacks before training stops, >= 0."""
    backoff: float = 0.5
    """Factor on the learning rate after divergence. After a collapse it weakens the attack of single-step losses
    (`TrainingLoss.with_weaker_attack`), and is the factor on the learning rate for others. In (0, 1)."""

    def __post_init__(self) -> None:
        if not 0 < self.max_drop <= 1:
            raise InputError(f"guard.max_drop = {self.max_drop:g} must lie in (0, 1]")
        if self.max_rollbacks < 0:
            raise InputError(f"guard.max_rollbacks = {self.max_rollbacks} must be 0 or more")
        if not 0 < self.backoff < 1:
            raise InputError(f"guard.backoff = {self.backoff:g} must lie in (0, 1)")

    def collapse(self, record: dict[str, Any], history: Sequence[dict[str, Any]]) -> Fault | None:
        """Return the fault if an epoch's held-out robust accuracy collapsed, given the epochs before it."""
        if "held_out_robust" not in record:
            return None
        now = record["held_out_robust"]
        before = [past["held_out_robust"] for past in history if "held_out_robust" in past]
        recent = statistics.median(before[-RECENT:]) if before else 0.0
        if now < (1 - self.max_drop) * recent and recent - now > LEAST_DROP:
            return Fault(f"held-out robust accuracy fell from {recent:.1%} to {now:.1%}", "collapsed")
        return None


def divergence(loss: float) -> Fault | None:
    """Return the fault if a loss is not finite."""
    return None if math.isfinite(loss) else Fault(f"the loss became {loss}", "diverged")


def is_finite(model: nn.Module) -> bool:
    """Return whether every weight and statistic is finite."""
    floating = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    return all(bool(tensor.isfinite().all()) for tensor in floating)
