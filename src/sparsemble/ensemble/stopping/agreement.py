"""Stop where members agree, or after one member with a large margin."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.interfaces import Combiner, Decision, StoppingRule, stopping_rules
from sparsemble.core.types import MemberLogits
from sparsemble.ensemble.prefix_statistics import (
    PerPrefix,
    first_crossing,
    prefix_probabilities,
    quantiles,
    relax_decision,
)

SLOPE = 10.0
"""Of the differentiable decision that attacks follow, per unit of probability."""
NEVER = 2.0
"""A margin that no image has."""


@final
@stopping_rules.register("agreement")
@dataclass(frozen=True, kw_only=True)
class Agreement(StoppingRule):
    """Stops after one member if its margin reaches `sure`, and later if `votes` members predict the same class.

    The margin is the difference between the two highest combined probabilities; later steps also require a margin of
    `lead`. A slowdown attack must make robust members disagree, which is about as hard as fooling one of them; an
    attack that makes the ensemble stop on a wrong class must fool one member by a large margin, or several at once.

    Source: ours.
    """

    version: ClassVar[int] = 2
    sure: float = 0.9
    """Margin after one member that is enough, >= 0; above 1 at least two members always run."""
    votes: int = 2
    """Members that must predict the same class, >= 2; more than the ensemble has: it never stops before the last."""
    lead: float = 0.0
    """Margin of the combined probabilities that is required in addition to the votes, >= 0."""

    def __post_init__(self) -> None:
        check_at_least(0, sure=self.sure, lead=self.lead)
        check_at_least(2, votes=self.votes)

    def __call__(self, member_logits: MemberLogits, combiner: Combiner, *, last: bool) -> Decision:
        """Decide after m members, from their logits (m, B, K)."""
        passed = self._distance(member_logits, combiner) >= 0
        return Decision(stop=passed.any(0) | last, answer_with=first_crossing(passed))

    def log_stop_probability(self, member_logits: MemberLogits, combiner: Combiner) -> PerPrefix:
        """Return the log of 1/2 at the prefix that is used plus 1/2 of a soft decision by distance, (M, B)."""
        distance = self._distance(member_logits, combiner)
        return relax_decision(first_crossing(distance >= 0), SLOPE * distance)

    def candidates(self, member_logits: MemberLogits, combiner: Combiner) -> Iterable[StoppingRule]:
        """Return this rule, one that never stops early, and rules with margins at quantiles over held-out images."""
        margin = _margin(prefix_probabilities(member_logits, combiner))
        sure = [*quantiles(margin[0], torch.linspace(0.0, 0.9, 16, device=margin.device)), NEVER]
        votes = range(2, max(len(member_logits), 3))
        settings = itertools.product(sure, votes, (0.0, 0.15, 0.3, 0.5))
        static = Agreement(sure=NEVER, votes=len(member_logits) + 2)
        return [self, static, *(Agreement(sure=s, votes=v, lead=a) for s, v, a in settings)]

    def _distance(self, member_logits: MemberLogits, combiner: Combiner) -> Tensor:
        """Return the distance of each prefix above its thresholds (m, B); the rule stops where it is not negative."""
        average = prefix_probabilities(member_logits, combiner)
        predicted = average.argmax(-1)
        margin = _margin(average)
        distance = [margin[0] - self.sure]
        each = member_logits.softmax(-1)
        for m in range(2, len(average) + 1):
            own = each[:m]
            of_predicted = own.gather(2, predicted[m - 1].expand(m, -1)[..., None])
            others = own.scatter(2, predicted[m - 1].expand(m, -1)[..., None], -1.0).amax(-1)
            support = (of_predicted[..., 0] - others).sort(0, descending=True).values
            vote = support[self.votes - 1] if self.votes <= m else torch.full_like(margin[0], -1.0)
            distance.append(torch.minimum(vote, margin[m - 1] - self.lead))
        return torch.stack(distance)


def _margin(average: Tensor) -> Tensor:
    """Return the difference between the two highest probabilities (..., K)."""
    best = average.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]
