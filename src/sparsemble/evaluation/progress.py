"""The fraction of an evaluation that is done, from expected and counted passes."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import final

from torch import Tensor, nn

from sparsemble.core.interfaces import members_of
from sparsemble.evaluation.work import Work

Report = Callable[[float, str], None]
"""Receives the fraction of the work that is done, in [0, 1], and a few words."""
LEFT_AT_LEAST = 0.2
"""What is left of a shard that takes longer than expected, as a fraction of the work done on it."""
SECONDS_BETWEEN_REPORTS = 0.5


@final
@dataclass
class _Step:
    """An attack, or a part of the checks, in equal pieces."""

    expected: Work
    """Of one piece."""
    left: int
    """Pieces that are not finished."""
    done: list[float] = field(default_factory=list)
    """Units of work of the finished pieces."""

    def piece(self, correction: float) -> float:
        """Return the units of work of a piece that is not finished."""
        if self.done:
            return sum(self.done) / len(self.done)
        return self.expected.units * correction


@final
class Progress:
    """Follows an evaluation and reports the fraction done, so that elapsed time predicts the time left.

    Forward passes are counted while the work runs. Expected work is corrected by what finished pieces took: those of
    the same attack, else half of what all of them show.

    Args:
        model: whose passes are counted.
        report: receives the fraction and a few words.
    """

    def __init__(self, model: nn.Module, report: Report) -> None:
        self.members = members_of(model)
        self.report = report
        self.steps: dict[str, _Step] = {}

    def plan(self, steps: Mapping[str, tuple[Work, int]]) -> None:
        """Add work: by name, the expected work of a piece and the number of pieces."""
        self.steps |= {name: _Step(work, pieces) for name, (work, pieces) in steps.items()}

    def drop(self, name: str) -> None:
        """Forget work that was planned."""
        self.steps.pop(name, None)

    @contextlib.contextmanager
    def running(self, name: str, text: str = "") -> Iterator[None]:
        """Report while one piece of a step is at work."""
        step = self.steps[name]
        forward, reported = 0, time.perf_counter()

        def watch(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal forward, reported
            forward += len(inputs[0])
            if time.perf_counter() - reported > SECONDS_BETWEEN_REPORTS:
                reported = time.perf_counter()
                self.report(self._fraction(step, step.expected.by_forward(forward)), text or name)

        hooks = [member.register_forward_pre_hook(watch) for member in self.members]
        self.report(self._fraction(step, 0.0), text or name)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        step.left -= 1
        step.done.append(step.expected.by_forward(forward))

    def _fraction(self, current: _Step, now: float) -> float:
        """Return the fraction done, `now` units into a piece of the current step."""
        finished = [step for step in self.steps.values() if step.done]
        expected = sum(step.expected.units * len(step.done) for step in finished)
        done = sum(sum(step.done) for step in finished)
        # Half of it, on a scale of ratios: what made one attack longer need not do so to another.
        correction = math.sqrt(done / expected) if expected and done else 1.0
        left = sum(step.left * step.piece(correction) for step in self.steps.values())
        piece = current.piece(correction)
        left += max(piece - now, LEFT_AT_LEAST * now) - piece
        return (done + now) / (done + now + left) if left > 0 else 1.0
