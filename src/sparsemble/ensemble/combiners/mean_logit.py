"""Average of the members' logits."""

from dataclasses import dataclass
from typing import final

from sparsemble.core.interfaces import Combiner, combiners
from sparsemble.core.types import Logits, MemberLogits


@final
@combiners.register("mean_logit")
@dataclass(frozen=True, kw_only=True)
class MeanLogit(Combiner):
    """Log-softmax of the mean logit: a normalised geometric mean, in which one confident member outweighs
    many unconfident ones.

    Source: Hinton 2002, product of experts, with equal weights.
    """

    def __call__(self, member_logits: MemberLogits) -> Logits:
        """Combine (m, B, K) into log-probabilities (B, K)."""
        return member_logits.mean(0).log_softmax(-1)
