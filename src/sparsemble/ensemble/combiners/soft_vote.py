"""A smooth majority vote."""

import math
from dataclasses import dataclass
from typing import final

import torch

from sparsemble.core.argument_checks import check_interval
from sparsemble.core.interfaces import Combiner, combiners
from sparsemble.core.types import Logits, MemberLogits


@final
@combiners.register("soft_vote")
@dataclass(frozen=True, kw_only=True)
class SoftVote(Combiner):
    """Log of the mean of sharpened member probabilities; near temperature 0 each member casts one whole vote.

    A hard vote has no gradient. Temperature 1 is the mean probability. A very low temperature lets gradients vanish: in
    float32 that of the cross-entropy is 0 where every member's logits are some 100 temperatures apart.
    """

    temperature: float = 0.5
    """Divisor of the logits, in (0, 1]; lower is nearer to a hard vote."""

    def __post_init__(self) -> None:
        check_interval("(0, 1]", temperature=self.temperature)

    def __call__(self, member_logits: MemberLogits) -> Logits:
        """Combine (m, B, K) into log-probabilities (B, K)."""
        votes = (member_logits / self.temperature).log_softmax(-1)
        return torch.logsumexp(votes, dim=0) - math.log(len(votes))
