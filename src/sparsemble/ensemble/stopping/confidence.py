"""Stop where the highest probability is high enough."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sparsemble.core.argument_checks import check_above_zero
from sparsemble.core.interfaces import Combiner, Decision, StoppingRule, stopping_rules
from sparsemble.core.types import MemberLogits
from sparsemble.ensemble.prefix_statistics import (
    PerPrefix,
    first_crossing,
    prefix_probabilities,
    quantiles,
    relax_decision,
)

SLOPE = 4.0
"""Of the differentiable decision that attacks follow, per unit of log-odds."""
EDGE = 1e-6


@final
@stopping_rules.register("confidence")
@dataclass(frozen=True, kw_only=True)
class Confidence(StoppingRule):
    """Stops at the first prefix whose highest combined probability reaches the threshold.

    Source: the usual rule of early-exit networks.
    """

    version: ClassVar[int] = 2
    threshold: float = 0.9
    """Probability that is enough, > 0; above 1 it never stops early."""

    def __post_init__(self) -> None:
        check_above_zero(threshold=self.threshold)

    def __call__(self, member_logits: MemberLogits, combiner: Combiner, *, last: bool) -> Decision:
        """Decide after m members, from their logits (m, B, K)."""
        passed = prefix_probabilities(member_logits, combiner).amax(-1) >= self.threshold
        return Decision(stop=passed.any(0) | last, answer_with=first_crossing(passed))

    def log_stop_probability(self, member_logits: MemberLogits, combiner: Combiner) -> PerPrefix:
        """Return the log of 1/2 at the prefix that is used plus 1/2 of a soft decision by log-odds, (M, B)."""
        average = prefix_probabilities(member_logits, combiner)
        highest, predicted = average.max(-1)
        others = average.scatter(-1, predicted[..., None], 0.0).sum(-1)
        odds = highest.log() - others.clamp_min(torch.finfo(others.dtype).tiny).log()
        threshold = torch.logit(torch.tensor(min(self.threshold, 1.0), dtype=odds.dtype), eps=EDGE).to(odds.device)
        return relax_decision(first_crossing(highest >= self.threshold), SLOPE * (odds - threshold))

    def candidates(self, member_logits: MemberLogits, combiner: Combiner) -> Iterable[StoppingRule]:
        """Return this rule, one that never stops early, and thresholds at quantiles over held-out images."""
        highest = prefix_probabilities(member_logits, combiner).amax(-1)
        levels = torch.linspace(0.0, 1.0, 60, device=highest.device)
        thresholds = quantiles(highest[[0, -1]], levels)
        return [self, Confidence(threshold=2.0), *(Confidence(threshold=max(value, EDGE)) for value in thresholds)]
