"""The most confident member for each class."""

from dataclasses import dataclass
from typing import final

from sparsemble.core.interfaces import Combiner, combiners
from sparsemble.core.types import Logits, MemberLogits


@final
@combiners.register("maximum")
@dataclass(frozen=True, kw_only=True)
class Maximum(Combiner):
    """Log of the largest member probability of each class, renormalised to sum to 1.

    Source: Kittler et al. 1998, max rule, with equal priors. Members that agree exactly share the gradient.
    """

    def __call__(self, member_logits: MemberLogits) -> Logits:
        """Combine (m, B, K) into log-probabilities (B, K)."""
        return member_logits.log_softmax(-1).amax(0).log_softmax(-1)
