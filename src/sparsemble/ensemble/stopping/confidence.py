"""Stop where the highest probability is high enough."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Decision, StoppingRule, stopping_rules
from sparsemble.core.types import MemberLogits
from sparsemble.ensemble.hazard import PerPrefix, averages, first, leaning, quantiles

SLOPE = 4.0
"""Of the soft decision that attackers climb, in odds of the probability against those of the threshold."""
EDGE = 1e-6


@final
@stopping_rules.register("confidence")
@dataclass(frozen=True, kw_only=True)
class Confidence(StoppingRule):
    """Stops at the first prefix whose highest average probability reaches the threshold.

    Source: the usual rule of networks with early exits.
    """

    threshold: float = 0.9
    """Probability that is enough, > 0; above 1 it never stops early."""

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise InputError(f"threshold = {self.threshold:g} must be above 0")

    def __call__(self, member_logits: MemberLogits, *, last: bool) -> Decision:
        """Decide after m members."""
        passed = averages(member_logits).amax(-1) >= self.threshold
        return Decision(stop=passed.any(0) | last, answer_with=first(passed))

    def stop_probability(self, member_logits: MemberLogits) -> PerPrefix:
        """Return a half at the prefix that answers, and a half by how far the odds are from the threshold's."""
        highest = averages(member_logits).amax(-1)
        odds = torch.logit(highest, eps=EDGE)
        threshold = torch.logit(torch.tensor(min(self.threshold, 1.0), dtype=odds.dtype), eps=EDGE).to(odds.device)
        return leaning(first(highest >= self.threshold), torch.sigmoid(SLOPE * (odds - threshold)))

    def candidates(self, member_logits: MemberLogits) -> Iterable[StoppingRule]:
        """Try quantiles of what one member and all show on held-out images; the second candidate never stops early."""
        highest = averages(member_logits).amax(-1)
        shares = torch.linspace(0.0, 1.0, 60, device=highest.device)
        tried = quantiles(highest[[0, -1]], shares)
        return [self, Confidence(threshold=2.0), *(Confidence(threshold=max(one, EDGE)) for one in tried)]
