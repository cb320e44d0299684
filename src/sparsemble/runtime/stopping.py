"""Stopping rules in numpy, equal to those of `ensemble/stopping`: when to stop, and which prefix of members is used."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.combiners import Combiner, Logits, log_softmax, mean_probability
from sparsemble.runtime.errors import RuntimeInputError

Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]
Numbers = NDArray[Any]

MIN_PROBABILITY = 1e-12
"""Lower bound of a probability before its log is taken."""


class StoppingRule(ABC):
    """Decides after m members, image by image."""

    @abstractmethod
    def __call__(self, member_logits: Logits, combiner: Combiner, *, last: bool) -> tuple[Flags, Counts]:
        """Decide whether to stop after the members that have run.

        Args:
            member_logits: (m, B, K) of the first m members.
            combiner: of the ensemble.
            last: whether there is no further member.

        Returns:
            (B) whether to stop, and (B) the length of the prefix of members that is used, in 1..m.
        """


def prefix_probabilities(member_logits: Logits, combiner: Combiner) -> Numbers:
    """Return the probabilities that the first 1..m members, combined, give to each class, (m, B, K)."""
    if combiner is not mean_probability:
        combined = [np.exp(combiner(member_logits[:m])) for m in range(1, len(member_logits) + 1)]
        return np.stack(combined).astype(member_logits.dtype)
    probabilities = np.exp(log_softmax(member_logits))
    counts = np.arange(1, len(probabilities) + 1).reshape(-1, 1, 1)
    means: Numbers = (probabilities.cumsum(0) / counts).astype(member_logits.dtype)
    return means


def _sigmoid(x: Numbers) -> Numbers:
    small = np.exp(-np.abs(x))
    result: Numbers = np.where(x >= 0, 1 / (1 + small), small / (1 + small))
    return result


def _stop_at_first(passed: Flags, *, last: bool) -> tuple[Flags, Counts]:
    """Stop where any step passed; the first such step is the prefix, or the last step where none passed."""
    any_passed: Flags = np.asarray(passed.any(0))
    stop: Flags = any_passed | np.bool_(last)
    return stop, np.where(any_passed, passed.argmax(0) + 1, len(passed)).astype(np.int64)


@final
@dataclass(frozen=True, kw_only=True)
class Never(StoppingRule):
    """Runs every member."""

    def __call__(self, member_logits: Logits, combiner: Combiner, *, last: bool) -> tuple[Flags, Counts]:
        """Stop at the last member only."""
        images = member_logits.shape[1]
        return np.full(images, last), np.full(images, len(member_logits))


@final
@dataclass(frozen=True, kw_only=True)
class AtOnce(StoppingRule):
    """Runs the first member only."""

    def __call__(self, member_logits: Logits, combiner: Combiner, *, last: bool) -> tuple[Flags, Counts]:
        """Stop at member 1."""
        images = member_logits.shape[1]
        return np.ones(images, bool), np.ones(images, np.int64)


@final
@dataclass(frozen=True, kw_only=True)
class Confidence(StoppingRule):
    """Stops when the largest combined probability reaches the threshold."""

    threshold: float

    def __call__(self, member_logits: Logits, combiner: Combiner, *, last: bool) -> tuple[Flags, Counts]:
        """Decide after m members."""
        return _stop_at_first(prefix_probabilities(member_logits, combiner).max(-1) >= self.threshold, last=last)


@dataclass(frozen=True, kw_only=True)
class HazardRule(StoppingRule):
    """Decides by the stopping hazards q_t = sigmoid(-a (U_t - tau_u) + b (C_t - tau_c)); q_1 has no U term.

    U_t is the KL divergence from the combined probabilities of t - 1 members to those of t, C_t the square of their
    largest.
    """

    a: float
    b: float
    tau_u: float
    tau_c: float

    def hazards(self, member_logits: Logits, combiner: Combiner) -> Numbers:
        """Return (m, B) the hazards of the first m members."""
        means = prefix_probabilities(member_logits, combiner)
        logs = np.log(np.maximum(means, MIN_PROBABILITY))
        change = (means[1:] * (logs[1:] - logs[:-1])).sum(-1)
        confidence = means.max(-1) ** 2
        change_term = np.concatenate([np.zeros_like(confidence[:1]), self.a * (change - self.tau_u)])
        result: Numbers = _sigmoid(self.b * (confidence - self.tau_c) - change_term)
        return result


@final
@dataclass(frozen=True, kw_only=True)
class FirstPassage(HazardRule):
    """Stops at the first step whose hazard is 0.5 or more."""

    def __call__(self, member_logits: Logits, combiner: Combiner, *, last: bool) -> tuple[Flags, Counts]:
        """Decide after m members."""
        return _stop_at_first(self.hazards(member_logits, combiner) >= 0.5, last=last)


@final
@dataclass(frozen=True, kw_only=True)
class DIE(HazardRule):
    """Uses the step with the largest stop probability; stops when no later step can have a larger one."""

    def __call__(self, member_logits: Logits, combiner: Combiner, *, last: bool) -> tuple[Flags, Counts]:
        """Decide after m members."""
        survival = np.ones_like(member_logits[0, :, 0])
        stop_probabilities = []
        for hazard in self.hazards(member_logits, combiner):
            stop_probabilities.append(hazard * survival)
            survival = survival - stop_probabilities[-1]
        stop_probability = np.stack(stop_probabilities)
        if last:
            stop_probability[-1] += survival
            survival = np.zeros_like(survival)
        return stop_probability.max(0) >= survival, stop_probability.argmax(0) + 1


@final
@dataclass(frozen=True, kw_only=True)
class Agreement(StoppingRule):
    """Stops after one member if its lead is `sure`, later if `votes` members agree and their prefix leads by `lead`."""

    sure: float
    votes: int
    lead: float

    def __call__(self, member_logits: Logits, combiner: Combiner, *, last: bool) -> tuple[Flags, Counts]:
        """Decide after m members."""
        means = prefix_probabilities(member_logits, combiner)
        top_two = np.sort(means, -1)[..., -2:]
        lead, label = top_two[..., 1] - top_two[..., 0], means.argmax(-1)
        member_labels = member_logits.argmax(-1)
        passed = [lead[0] >= self.sure]
        for m in range(2, len(means) + 1):
            agree = (member_labels[:m] == label[m - 1]).sum(0) >= self.votes
            passed.append(agree & (lead[m - 1] >= self.lead))
        return _stop_at_first(np.stack(passed), last=last)


RULES: dict[str, type[Any]] = {
    "never": Never,
    "at_once": AtOnce,
    "confidence": Confidence,
    "first_passage": FirstPassage,
    "die": DIE,
    "agreement": Agreement,
}


def build_rule(settings: Mapping[str, Any]) -> StoppingRule:
    """Return a stopping rule from its name and settings, all of which must be given.

    Raises:
        RuntimeInputError: an unknown name, or a setting that is unknown, missing or no number.
    """
    name = settings.get("name")
    rule_type = RULES.get(name) if isinstance(name, str) else None
    if rule_type is None:
        raise RuntimeInputError(f'stopping rule "{name!s:.60}" is not known; known are {", ".join(RULES)}')
    required = [field.name for field in fields(rule_type)]
    options = {key: value for key, value in settings.items() if key != "name"}
    for key in required:
        if key not in options:
            raise RuntimeInputError(f'stopping rule "{name}" lacks its setting "{key}"')
    for key, value in options.items():
        if key not in required:
            raise RuntimeInputError(f'stopping rule "{name}" has no setting "{key:.60}"')
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise RuntimeInputError(f'setting "{key}" = {value!r:.60} of the stopping rule "{name}" is no number')
    rule: StoppingRule = rule_type(**options)
    return rule
