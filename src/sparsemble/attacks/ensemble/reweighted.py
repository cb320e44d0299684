"""The whole ensemble, with the gradient turned to the members worth attacking (the idea of MORA, Yu et al. 2022)."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sparsemble.attacks.ensemble.ranking import lead
from sparsemble.attacks.ensemble.surrogate import Surrogate, surrogates
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.types import Classifier, Images, Labels, Logits, MemberLogits


@final
@surrogates.register("reweighted")
@dataclass(frozen=True, kw_only=True)
class Reweighted(Surrogate):
    """Answers as the whole ensemble; its gradient is that of a weighted mean of the members' log-probabilities.

    A combiner spends its gradient on members that cannot be turned, or are turned already. Here a member's weight
    falls with its distance from its border and is cut where it is already across; weights are made anew in each pass
    and carry no gradient.

    Source: Yu et al. 2022 (MORA), the idea of re-weighting members by how near each is to giving way. Departs: the
    weights are our own formula, exp(-lead / temperature), and the attacked class is the one that the ensemble answers,
    so that no labels are needed; the two are the same until the image is broken.
    """

    temperature: float = 5.0
    """Lead, in nats of log-probability, over which a weight falls to 1/e, > 0."""
    turned: float = 0.5
    """Factor on the weights of members already across their border, in (0, 1]."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature = {self.temperature:g} must be above 0")
        if not 0 < self.turned <= 1:
            raise InputError(f"turned = {self.turned:g} must lie in (0, 1]")

    @property
    def label(self) -> str:
        """Name in results."""
        return "reweighted"

    def __call__(self, ensemble: Ensemble, rule: StoppingRule) -> Classifier:
        """Return the ensemble's answer with the other gradient."""

        def classify(x: Images) -> Logits:
            member_logits = ensemble.member_logits(x)
            answer = ensemble.combiner(member_logits).detach()
            weights = self.weights(member_logits.detach(), answer.argmax(1))
            mean = (weights.unsqueeze(-1) * member_logits.log_softmax(-1)).sum(0)
            return answer + (mean - mean.detach())

        return classify

    def weights(self, member_logits: MemberLogits, y: Labels) -> Float[Tensor, "M B"]:
        """Return each member's share of the gradient, summing to 1 over M."""
        leads = torch.stack([lead(one.log_softmax(-1), y) for one in member_logits])
        share = torch.where(leads < 0, self.turned, 1.0).to(leads).log()
        return (share - leads.abs() / self.temperature).softmax(0)
