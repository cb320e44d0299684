"""iGAT: interactive global adversarial training (Deng and Mu 2023)."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Bool
from torch import Generator, Tensor, nn

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.pgd import PGD
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Flags, Images, Labels, MemberLogits
from sparsemble.ensemble.checked import as_ensemble, check_not_negative
from sparsemble.ensemble.crafting import member_losses
from sparsemble.ensemble.losses.eed import misclassification
from sparsemble.training.loss import LossOutput, TrainingLoss, craft, training_losses


@final
@training_losses.register("igat")
@dataclass(frozen=True, kw_only=True)
class IGAT(TrainingLoss):
    """Images that fool the ensemble go to one member, the likelier the better it does there; all others to everybody.

    sum_i mean_b of w_ib CE_i(x_adv), x_adv crafted on the ensemble; w = 1 where the ensemble is right or the member was drawn,
    with probability in proportion to 2^rank of its probability of the true class. Plus `beta` times EED's L_R, which
    is theirs, and optionally another loss of an ensemble.

    Source: Deng and Mu 2023, as method.md sections 2.6 and 6 state it (their weights were not found there).
    """

    needs_ensemble: ClassVar[bool] = True

    base: TrainingLoss | None = None
    """Another loss of an ensemble, added; none is iGAT's distribution rule alone."""
    beta: float = 1.0
    """Weight of the misclassification term, >= 0."""
    attack: Attack = PGD(steps=10, keep_best=False)
    """Finds the adversarial images."""

    def __post_init__(self) -> None:
        check_not_negative(beta=self.beta)

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss of a batch."""
        model = as_ensemble(model, self)
        x_adv = craft(model, self.attack, x, y, threat, rng=rng)
        member_logits = model.member_logits(x_adv)
        ensemble_logits = model.combiner(member_logits)
        sent = distributed(member_logits.detach(), ensemble_logits.argmax(1) != y, y, rng)
        robust = (member_losses(member_logits, y) * sent).mean(1).sum()
        mistakes = misclassification(member_logits, ensemble_logits, y)
        found = LossOutput(robust + self.beta * mistakes, adversarial=x_adv)
        terms = {"robust": robust.detach(), "misclassification": mistakes.detach()}
        if self.base:
            other = self.base(model, x, y, threat, rng=rng)
            found, terms = replace(found, loss=found.loss + other.loss), {**other.terms, **terms}
        return replace(found, terms=terms)


def distributed(member_logits: MemberLogits, errs: Flags, y: Labels, rng: Generator) -> Bool[Tensor, "M B"]:
    """Return which member (M, B) learns from which image: all where the ensemble is right, one drawn where it errs."""
    true = member_logits.gather(2, y.expand(len(member_logits), -1)[..., None])[..., 0]
    true = true - member_logits.logsumexp(-1)
    rank: Tensor = true.argsort(0).argsort(0)  # 0 for the member that does worst
    drawn = torch.multinomial(2.0 ** rank.T.float(), 1, generator=rng)[:, 0]
    members = torch.arange(len(member_logits), device=y.device)[:, None]
    return (members == drawn) | ~errs
