"""Average of the members' probabilities."""

import math
from dataclasses import dataclass
from typing import final

import torch

from sparsemble.core.interfaces import Combiner, combiners
from sparsemble.core.types import Logits, MemberLogits


@final
@combiners.register("mean_probability")
@dataclass(frozen=True, kw_only=True)
class MeanProbability(Combiner):
    """Log of the mean probability, computed by log-softmax and logsumexp, without a clamp.

    Source: EED main paper, eq. 20. Departs: its logarithm, so that every attack loss is defined.
    """

    def __call__(self, member_logits: MemberLogits) -> Logits:
        """Combine (m, B, K) into log-probabilities (B, K)."""
        return torch.logsumexp(member_logits.log_softmax(-1), dim=0) - math.log(len(member_logits))
