"""ADP: adaptive diversity promoting (Pang et al. 2019)."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Generator, Tensor, nn

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.pgd import PGD
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, MemberLogits
from sparsemble.ensemble.checked import as_ensemble, check_not_negative
from sparsemble.ensemble.crafting import each_on_its_own, images_for_members, member_losses
from sparsemble.training.loss import LossOutput, TrainingLoss, in_full, training_losses

SMALLEST = 1e-6


@final
@training_losses.register("adp")
@dataclass(frozen=True, kw_only=True)
class ADP(TrainingLoss):
    """Adversarial training of each member, with wrong probabilities that point in different directions.

    sum_i CE_i - alpha H(mean_i p_i) - beta log det(M^T M + 1e-6 I), where column i of M holds p_i without the true
    class, at length 1, and H is the entropy in nats; averaged over images.

    Source: Pang et al. 2019, eq. 6; EED supplement, eq. 32 with its sign corrected (method.md E-21). Departs: on
    adversarial images, as every loss of an ensemble here.
    """

    needs_ensemble: ClassVar[bool] = True

    alpha: float = 2.0
    """Weight of the entropy, >= 0."""
    beta: float = 0.5
    """Weight of the volume, >= 0."""
    attack: Attack = PGD(steps=10, keep_best=False)
    """Finds the adversarial images."""
    attack_ensemble: bool = True
    """Craft one adversarial set on the whole ensemble instead of one on each member."""

    def __post_init__(self) -> None:
        check_not_negative(alpha=self.alpha, beta=self.beta)

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss of a batch."""
        model = as_ensemble(model, self)
        images = images_for_members(model, self.attack, x, y, threat, rng=rng, together=self.attack_ensemble)
        member_logits = each_on_its_own(model, images)
        robust = member_losses(member_logits, y).mean(1).sum()
        spread, volume = entropy(member_logits).mean(), log_volume(member_logits, y).mean()
        terms = {"robust": robust.detach(), "entropy": spread.detach(), "volume": volume.detach()}
        together = images[0] if self.attack_ensemble else None
        return LossOutput(robust - self.alpha * spread - self.beta * volume, terms, together)


def entropy(member_logits: MemberLogits) -> Tensor:
    """Return the entropy (B) of the mean probability, in nats."""
    log_mean = torch.logsumexp(in_full(member_logits).log_softmax(-1), 0) - math.log(len(member_logits))
    return -(log_mean.exp() * log_mean).sum(1)


def log_volume(member_logits: MemberLogits, y: Labels) -> Tensor:
    """Return log det(M^T M + 1e-6 I) for every image (B); at most about 0."""
    members, images, classes = member_logits.shape
    wrong = torch.ones(images, classes, dtype=torch.bool, device=y.device).scatter(1, y[:, None], False)
    # Softmax over the wrong classes alone has the same direction, and a sure member has one, too.
    # In double precision: with as many members as wrong classes, or more, the determinant is almost 0.
    logits = member_logits.double()[:, wrong].view(members, images, classes - 1)
    columns = torch.nn.functional.normalize(logits.softmax(-1), dim=-1).transpose(0, 1)
    gram = columns @ columns.transpose(1, 2)
    identity = torch.eye(members, device=gram.device, dtype=gram.dtype)
    found: Tensor = torch.logdet(gram + SMALLEST * identity)
    return found.to(in_full(member_logits).dtype)
