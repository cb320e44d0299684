"""When to stop running members, and which prefix answers; the twins of `ensemble/stopping`, in numpy."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.combiners import Logits, log_softmax
from sparsemble.runtime.errors import RuntimeInputError

Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]
Numbers = NDArray[Any]

SMALLEST = 1e-12


class StoppingRule(ABC):
    """Decides after m members, image by image, from their logits (m, B, K)."""

    @abstractmethod
    def __call__(self, member_logits: Logits, *, last: bool) -> tuple[Flags, Counts]:
        """Return whether each image needs no further member, and the prefix in 1..m that answers it."""


def averages(member_logits: Logits) -> Numbers:
    """Return the mean probabilities of the first 1..m members, (m, B, K)."""
    probabilities = np.exp(log_softmax(member_logits))
    counts = np.arange(1, len(probabilities) + 1).reshape(-1, 1, 1)
    found: Numbers = (probabilities.cumsum(0) / counts).astype(member_logits.dtype)
    return found


def hazards(member_logits: Logits, a: float, b: float, tau_u: float, tau_c: float) -> Numbers:
    """Return q_1..q_m = sigmoid(-a (U_t - tau_u) + b (C_t - tau_c)), without the U term at t = 1."""
    average = averages(member_logits)
    logs = np.log(np.maximum(average, SMALLEST))
    change = (average[1:] * (logs[1:] - logs[:-1])).sum(-1)
    confidence = average.max(-1) ** 2
    doubt = np.concatenate([np.zeros_like(confidence[:1]), a * (change - tau_u)])
    found: Numbers = _sigmoid(b * (confidence - tau_c) - doubt)
    return found


def _sigmoid(x: Numbers) -> Numbers:
    small = np.exp(-np.abs(x))
    found: Numbers = np.where(x >= 0, 1 / (1 + small), small / (1 + small))
    return found


def _first(passed: Flags, *, last: bool) -> tuple[Flags, Counts]:
    """Stop where any step passed; the first of them answers, the last step where none did."""
    any_passed: Flags = np.asarray(passed.any(0))
    stop: Flags = any_passed | np.bool_(last)
    return stop, np.where(any_passed, passed.argmax(0) + 1, len(passed)).astype(np.int64)


@final
@dataclass(frozen=True, kw_only=True)
class Never(StoppingRule):
    """Runs every member."""

    def __call__(self, member_logits: Logits, *, last: bool) -> tuple[Flags, Counts]:
        """Stop at the last member only."""
        images = member_logits.shape[1]
        return np.full(images, last), np.full(images, len(member_logits))


@final
@dataclass(frozen=True, kw_only=True)
class AtOnce(StoppingRule):
    """Runs the first member only."""

    def __call__(self, member_logits: Logits, *, last: bool) -> tuple[Flags, Counts]:
        """Stop at member 1."""
        images = member_logits.shape[1]
        return np.ones(images, bool), np.ones(images, np.int64)


@final
@dataclass(frozen=True, kw_only=True)
class Confidence(StoppingRule):
    """Stops where the highest average probability reaches the threshold."""

    threshold: float

    def __call__(self, member_logits: Logits, *, last: bool) -> tuple[Flags, Counts]:
        """Decide after m members."""
        return _first(averages(member_logits).max(-1) >= self.threshold, last=last)


@final
@dataclass(frozen=True, kw_only=True)
class FirstPassage(StoppingRule):
    """Stops at the first step whose hazard is a half or more."""

    a: float
    b: float
    tau_u: float
    tau_c: float

    def __call__(self, member_logits: Logits, *, last: bool) -> tuple[Flags, Counts]:
        """Decide after m members."""
        return _first(hazards(member_logits, self.a, self.b, self.tau_u, self.tau_c) >= 0.5, last=last)


@final
@dataclass(frozen=True, kw_only=True)
class DIE(StoppingRule):
    """Stops when no later step can have a larger mass; the step with the largest answers."""

    a: float
    b: float
    tau_u: float
    tau_c: float

    def __call__(self, member_logits: Logits, *, last: bool) -> tuple[Flags, Counts]:
        """Decide after m members."""
        survival = np.ones_like(member_logits[0, :, 0])
        masses = []
        for hazard in hazards(member_logits, self.a, self.b, self.tau_u, self.tau_c):
            masses.append(hazard * survival)
            survival = survival - masses[-1]
        stop_probability = np.stack(masses)
        if last:
            stop_probability[-1] += survival
            survival = np.zeros_like(survival)
        return stop_probability.max(0) >= survival, stop_probability.argmax(0) + 1


@final
@dataclass(frozen=True, kw_only=True)
class Agreement(StoppingRule):
    """Stops after one member if it leads by `sure`, and later if `votes` answer alike and the average leads."""

    sure: float
    votes: int
    lead: float

    def __call__(self, member_logits: Logits, *, last: bool) -> tuple[Flags, Counts]:
        """Decide after m members."""
        average = averages(member_logits)
        best = np.sort(average, -1)[..., -2:]
        ahead, answer = best[..., 1] - best[..., 0], average.argmax(-1)
        own = member_logits.argmax(-1)
        passed = [ahead[0] >= self.sure]
        for m in range(2, len(average) + 1):
            alike = (own[:m] == answer[m - 1]).sum(0) >= self.votes
            passed.append(alike & (ahead[m - 1] >= self.lead))
        return _first(np.stack(passed), last=last)


RULES: dict[str, type[Any]] = {
    "never": Never,
    "at_once": AtOnce,
    "confidence": Confidence,
    "first_passage": FirstPassage,
    "die": DIE,
    "agreement": Agreement,
}


def build_rule(settings: Mapping[str, Any]) -> StoppingRule:
    """Return a stopping rule by its name and settings, all of which must be given.

    Raises:
        RuntimeInputError: a name or setting that is not known, or one that is missing or no number.
    """
    name = settings.get("name")
    made = RULES.get(name) if isinstance(name, str) else None
    if made is None:
        raise RuntimeInputError(f'stopping rule "{name!s:.60}" is not known; known are {", ".join(RULES)}')
    wanted = [one.name for one in fields(made)]
    given = {key: value for key, value in settings.items() if key != "name"}
    for key in wanted:
        if key not in given:
            raise RuntimeInputError(f'stopping rule "{name}" lacks its setting "{key}"')
    for key, value in given.items():
        if key not in wanted:
            raise RuntimeInputError(f'stopping rule "{name}" has no setting "{key:.60}"')
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise RuntimeInputError(f'setting "{key}" = {value!r:.60} of the stopping rule "{name}" is no number')
    found: StoppingRule = made(**given)
    return found
