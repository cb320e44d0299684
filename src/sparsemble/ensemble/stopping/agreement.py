"""Stop where members agree, and at one member only where it is far ahead."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Decision, StoppingRule, stopping_rules
from sparsemble.core.types import MemberLogits
from sparsemble.ensemble.hazard import PerPrefix, averages, first, leaning, quantiles

SLOPE = 10.0
"""Of the soft decision that attackers climb, per unit of probability."""
NEVER = 2.0
"""A lead that no image has."""


@final
@stopping_rules.register("agreement")
@dataclass(frozen=True, kw_only=True)
class Agreement(StoppingRule):
    """Stops after one member if its answer leads by `sure`, and later if `votes` members answer alike.

    The lead is the distance between the two highest average probabilities. Later steps also need a lead of `lead`.
    Who wants to make the ensemble slow must make robust members disagree, which is about as hard as fooling one of them;
    who wants to have it stop on a wrong answer must fool one member by far, or several at once.

    Source: ours.
    """

    sure: float = 0.9
    """Lead of a single member that is enough, >= 0; above 1 there are always two members or more."""
    votes: int = 2
    """Members that must answer alike, >= 2; more than the ensemble has: it never stops before the last."""
    lead: float = 0.0
    """Lead of the average that is asked for beside the votes, >= 0."""

    def __post_init__(self) -> None:
        if not (self.sure >= 0 and self.lead >= 0 and self.votes >= 2):
            raise InputError(
                f"sure = {self.sure:g} and lead = {self.lead:g} must be 0 or more and votes = {self.votes} 2 or more"
            )

    def __call__(self, member_logits: MemberLogits, *, last: bool) -> Decision:
        """Decide after m members."""
        passed = self._distance(member_logits) >= 0
        return Decision(stop=passed.any(0) | last, answer_with=first(passed))

    def stop_probability(self, member_logits: MemberLogits) -> PerPrefix:
        """Return a half at the prefix that answers, and a half by how far each prefix is from stopping."""
        distance = self._distance(member_logits)
        return leaning(first(distance >= 0), torch.sigmoid(SLOPE * distance))

    def candidates(self, member_logits: MemberLogits) -> Iterable[StoppingRule]:
        """Try leads at quantiles of what held-out images show; the second candidate never stops early."""
        ahead = _lead(averages(member_logits))
        sure = [*quantiles(ahead[0], torch.linspace(0.0, 0.9, 16, device=ahead.device)), NEVER]
        votes = range(2, max(len(member_logits), 3))
        settings = itertools.product(sure, votes, (0.0, 0.15, 0.3, 0.5))
        static = Agreement(sure=NEVER, votes=len(member_logits) + 2)
        return [self, static, *(Agreement(sure=s, votes=v, lead=a) for s, v, a in settings)]

    def _distance(self, member_logits: MemberLogits) -> Tensor:
        """Return how far above its thresholds each prefix is, (m, B); it stops where this is not negative."""
        average = averages(member_logits)
        answer = average.argmax(-1)
        ahead = _lead(average)
        distance = [ahead[0] - self.sure]
        for m in range(2, len(average) + 1):
            own = member_logits[:m].softmax(-1)
            for_answer = own.gather(2, answer[m - 1].expand(m, -1)[..., None])
            others = own.scatter(2, answer[m - 1].expand(m, -1)[..., None], -1.0).amax(-1)
            support = (for_answer[..., 0] - others).sort(0, descending=True).values
            vote = support[self.votes - 1] if self.votes <= m else torch.full_like(ahead[0], -1.0)
            distance.append(torch.minimum(vote, ahead[m - 1] - self.lead))
        return torch.stack(distance)


def _lead(average: Tensor) -> Tensor:
    """Return the distance between the two highest probabilities."""
    best = average.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]
