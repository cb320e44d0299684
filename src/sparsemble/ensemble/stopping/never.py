"""Run every member."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sparsemble.core.interfaces import Combiner, Decision, StoppingRule, stopping_rules
from sparsemble.core.types import MemberLogits


@final
@stopping_rules.register("never")
@dataclass(frozen=True, kw_only=True)
class Never(StoppingRule):
    """Never stops early: the static ensemble."""

    def __call__(self, member_logits: MemberLogits, combiner: Combiner, *, last: bool) -> Decision:
        """Stop at the last member only."""
        members, images, _ = member_logits.shape
        device = member_logits.device
        stop = torch.full((images,), last, device=device)
        return Decision(stop=stop, answer_with=torch.full((images,), members, device=device))

    def log_stop_probability(self, member_logits: MemberLogits, combiner: Combiner) -> Float[Tensor, "M B"]:
        """Return 0 for the last prefix and -inf for all others, (M, B)."""
        never = torch.full_like(member_logits[:, :, 0], -torch.inf)
        return torch.cat([never[:-1], torch.zeros_like(never[-1:])])

    def candidates(self, member_logits: MemberLogits, combiner: Combiner) -> Iterable[StoppingRule]:
        """Return this rule only; it has no settings."""
        return [self]
