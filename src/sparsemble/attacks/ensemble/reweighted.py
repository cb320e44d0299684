"""The full ensemble, its gradient re-weighted to the members worth attacking (the idea of MORA, Yu et al. 2022)."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sparsemble.attacks.ensemble.surrogate import Surrogate, surrogates
from sparsemble.attacks.losses.margin import margin_of
from sparsemble.core.argument_checks import check_above_zero, check_interval
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.types import Classifier, Images, Labels, Logits, MemberLogits


@final
@surrogates.register("reweighted")
@dataclass(frozen=True, kw_only=True)
class Reweighted(Surrogate):
    """Logits of the full ensemble; the gradient is that of a weighted mean of the members' log-probabilities.

    The gradient through a combiner is dominated by members that cannot be misled, or are misled already. Here a
    member's weight falls with its margin and is reduced where it is already misled; weights are computed in each pass
    and carry no gradient.

    Source: Yu et al. 2022 (MORA), the idea of re-weighting members by how near each is to misclassification. Departs:
    the weights are our own formula, exp(-|margin| / temperature), and the attacked class is the one that the ensemble
    predicts, so that no labels are needed; it is the true one until the image is misclassified.
    """

    temperature: float = 5.0
    """Margin, in nats of log-probability, over which a weight falls to 1/e, > 0."""
    misled_weight: float = 0.5
    """Factor on the weights of members that predict another class already, in (0, 1]."""

    def __post_init__(self) -> None:
        check_above_zero(temperature=self.temperature)
        check_interval("(0, 1]", misled_weight=self.misled_weight)

    def __call__(self, ensemble: Ensemble, rule: StoppingRule) -> Classifier:
        """Return the ensemble with the other gradient."""

        def classify(x: Images) -> Logits:
            member_logits = ensemble.member_logits(x)
            logits = ensemble.combiner(member_logits).detach()
            weights = self.weights(member_logits.detach(), logits.argmax(1))
            mean = (weights.unsqueeze(-1) * member_logits.log_softmax(-1)).sum(0)
            return logits + (mean - mean.detach())

        return classify

    def weights(self, member_logits: MemberLogits, y: Labels) -> Float[Tensor, "M B"]:
        """Return each member's share of the gradient, summing to 1 over M."""
        margins = torch.stack([margin_of(logits.log_softmax(-1), y) for logits in member_logits])
        factor = torch.where(margins > 0, self.misled_weight, 1.0).to(margins).log()
        return (factor - margins.abs() / self.temperature).softmax(0)
