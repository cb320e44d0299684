"""Run the first member only."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch

from sparsemble.core.interfaces import Decision, StoppingRule, stopping_rules
from sparsemble.core.types import MemberLogits
from sparsemble.ensemble.hazard import PerPrefix


@final
@stopping_rules.register("at_once")
@dataclass(frozen=True, kw_only=True)
class AtOnce(StoppingRule):
    """Stops after the first member, whatever it says: the cheapest answer an ensemble can give."""

    def __call__(self, member_logits: MemberLogits, *, last: bool) -> Decision:
        """Stop at member 1."""
        ones = torch.ones_like(member_logits[0, :, 0])
        return Decision(stop=ones.bool(), answer_with=ones.long())

    def stop_probability(self, member_logits: MemberLogits) -> PerPrefix:
        """Put all mass on the first member."""
        stop_probability = torch.zeros_like(member_logits[:, :, 0])
        return torch.cat([torch.ones_like(stop_probability[:1]), stop_probability[1:]])

    def candidates(self, member_logits: MemberLogits) -> Iterable[StoppingRule]:
        """There is nothing to set."""
        return [self]
