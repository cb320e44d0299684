"""Stop after the first member."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch

from sparsemble.core.interfaces import Combiner, Decision, StoppingRule, stopping_rules
from sparsemble.core.types import MemberLogits
from sparsemble.ensemble.prefix_statistics import PerPrefix


@final
@stopping_rules.register("at_once")
@dataclass(frozen=True, kw_only=True)
class AtOnce(StoppingRule):
    """Always stops after the first member: the cheapest prediction of an ensemble."""

    def __call__(self, member_logits: MemberLogits, combiner: Combiner, *, last: bool) -> Decision:
        """Stop at member 1."""
        ones = torch.ones_like(member_logits[0, :, 0])
        return Decision(stop=ones.bool(), answer_with=ones.long())

    def log_stop_probability(self, member_logits: MemberLogits, combiner: Combiner) -> PerPrefix:
        """Return 0 for the first prefix and -inf for all others, (M, B)."""
        never = torch.full_like(member_logits[:, :, 0], -torch.inf)
        return torch.cat([torch.zeros_like(never[:1]), never[1:]])

    def candidates(self, member_logits: MemberLogits, combiner: Combiner) -> Iterable[StoppingRule]:
        """Return this rule only; it has no settings."""
        return [self]
