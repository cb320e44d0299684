"""iGAT: interactive global adversarial training (Deng and Mu 2023)."""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool
from torch import Generator, Tensor, nn

from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Flags, Images, Labels, MemberLogits
from sparsemble.ensemble.losses.eed import misclassification
from sparsemble.ensemble.member_losses import EnsembleLoss, as_ensemble, member_losses
from sparsemble.training.loss import LossOutput, TrainingLoss, craft, training_losses


@final
@training_losses.register("igat")
@dataclass(frozen=True, kw_only=True)
class IGAT(EnsembleLoss):
    """Images that the ensemble misclassifies train one member, all others train every member.

    sum_i mean_b of w_ib CE_i(x_adv), x_adv crafted on the ensemble; w = 1 where the ensemble is correct or the member
    was drawn, with probability proportional to 2^rank of its probability of the true class. Plus `beta` times EED's
    L_R, which is iGAT's, and optionally another ensemble loss.

    Source: Deng and Mu 2023; EED main paper, eq. 15, for the misclassification term. Departs: the weights are ours.
    """

    base: TrainingLoss | None = None
    """Another ensemble loss, added; none: iGAT's distribution rule alone."""
    beta: float = 1.0
    """Weight of the misclassification term, >= 0."""

    def __post_init__(self) -> None:
        check_at_least(0, beta=self.beta)

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss of a batch."""
        model = as_ensemble(model, self)
        x_adv = craft(model, self.attack, x, y, threat, rng=rng)
        member_logits = model.member_logits(x_adv)
        ensemble_logits = model.combiner(member_logits)
        trains = distributed(member_logits.detach(), ensemble_logits.argmax(1) != y, y, rng)
        robust = (member_losses(member_logits, y) * trains).mean(1).sum()
        mistakes = misclassification(member_logits, ensemble_logits, y)
        output = LossOutput(robust + self.beta * mistakes, adversarial=x_adv)
        terms = {"robust": robust.detach(), "misclassification": mistakes.detach()}
        if self.base:
            other = self.base(model, x, y, threat, rng=rng)
            output, terms = replace(output, loss=output.loss + other.loss), {**other.terms, **terms}
        return replace(output, terms=terms)


def distributed(member_logits: MemberLogits, errs: Flags, y: Labels, rng: Generator) -> Bool[Tensor, "M B"]:
    """Return which member (M, B) learns from which image: all where the ensemble is correct, else one that is drawn.

    Args:
        member_logits: (M, B, K).
        errs: whether the ensemble misclassifies an image (B).
        y: true classes (B).
        rng: draws the member.
    """
    true = member_logits.gather(2, y.expand(len(member_logits), -1)[..., None])[..., 0]
    true = true - member_logits.logsumexp(-1)
    rank: Tensor = true.argsort(0).argsort(0)  # 0 for the member with the lowest probability
    drawn = torch.multinomial(2.0 ** rank.T.float(), 1, generator=rng)[:, 0]
    members = torch.arange(len(member_logits), device=y.device)[:, None]
    return (members == drawn) | ~errs
