"""Noticing that training has gone wrong: NaN, or robustness that collapses (Wong et al. 2020, section 5.4)."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from sparsemble.core.errors import InputError

LEAST_FALL = 0.15
"""A smaller fall, in accuracy, may be chance on few held-out images."""
RECENT = 5
"""Measurements whose median is what held-out robust accuracy lately was; their best would be so by chance."""


@final
@dataclass(frozen=True)
class Fault:
    """What went wrong in an epoch."""

    sentence: str
    kind: Literal["diverged", "collapsed"]


@final
@dataclass(frozen=True, kw_only=True)
class Guard:
    """Goes back to the last good epoch and goes on more gently, a few times; then stops."""

    fall: float = 0.5
    """Share of the recent held-out robust accuracy that must not be lost (and 15 points), in (0, 1]; 1: never."""
    tries: int = 3
    """How often to go back before training stops, >= 0."""
    backoff: float = 0.5
    """Factor on the rate after NaN or infinity; after a collapse how much gentler the attack of single-step losses
    becomes (`TrainingLoss.with_weaker_attack`), or the rate of others; in (0, 1)."""

    def __post_init__(self) -> None:
        if not 0 < self.fall <= 1:
            raise InputError(f"guard.fall = {self.fall:g} must lie in (0, 1]")
        if self.tries < 0:
            raise InputError(f"guard.tries = {self.tries} must be 0 or more")
        if not 0 < self.backoff < 1:
            raise InputError(f"guard.backoff = {self.backoff:g} must lie in (0, 1)")

    def collapse(self, record: dict[str, Any], history: Sequence[dict[str, Any]]) -> Fault | None:
        """Return what is wrong with an epoch's held-out robust accuracy, given the epochs before it."""
        if "held_out_robust" not in record:
            return None
        now = record["held_out_robust"]
        before = [past["held_out_robust"] for past in history if "held_out_robust" in past]
        lately = statistics.median(before[-RECENT:]) if before else 0.0
        if now < (1 - self.fall) * lately and lately - now > LEAST_FALL:
            return Fault(f"held-out robust accuracy fell from {lately:.1%} to {now:.1%}", "collapsed")
        return None


def divergence(loss: float) -> Fault | None:
    """Return what is wrong with a loss."""
    return None if math.isfinite(loss) else Fault(f"the loss became {loss}", "diverged")
