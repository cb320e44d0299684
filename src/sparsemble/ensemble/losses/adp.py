"""ADP: adaptive diversity promoting (Pang et al. 2019)."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor, nn

from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, MemberLogits
from sparsemble.ensemble.member_losses import MemberLoss, as_ensemble, logits_of_own_images, member_losses
from sparsemble.training.loss import LossOutput, at_least_float32, training_losses

SMALLEST = 1e-6


@final
@training_losses.register("adp")
@dataclass(frozen=True, kw_only=True)
class ADP(MemberLoss):
    """Adversarial training of each member, with non-true probabilities that point in different directions.

    sum_i CE_i - alpha H(mean_i p_i) - beta log det(M^T M + 1e-6 I), where column i of M holds p_i without the true
    class, normalised to length 1, and H is the entropy in nats; averaged over images.

    Source: Pang et al. 2019, eq. 6; EED supplement, eq. 32, with its sign corrected. Departs: on adversarial images, as
    every ensemble loss here.
    """

    alpha: float = 2.0
    """Weight of the entropy, >= 0."""
    beta: float = 0.5
    """Weight of the log-determinant, >= 0."""
    attack_ensemble: bool = True
    """Craft one adversarial set on the whole ensemble instead of one on each member."""

    def __post_init__(self) -> None:
        check_at_least(0, alpha=self.alpha, beta=self.beta)

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss of a batch."""
        model = as_ensemble(model, self)
        images = self._craft(model, x, y, threat, rng)
        member_logits = logits_of_own_images(model, images)
        robust = member_losses(member_logits, y).mean(1).sum()
        spread, volume = entropy(member_logits).mean(), log_volume(member_logits, y).mean()
        terms = {"robust": robust.detach(), "entropy": spread.detach(), "volume": volume.detach()}
        return LossOutput(robust - self.alpha * spread - self.beta * volume, terms, self._shared(images))


def entropy(member_logits: MemberLogits) -> Tensor:
    """Return the entropy (B) of the mean probability, in nats."""
    log_mean = torch.logsumexp(at_least_float32(member_logits).log_softmax(-1), 0) - math.log(len(member_logits))
    return -(log_mean.exp() * log_mean).sum(1)


def log_volume(member_logits: MemberLogits, y: Labels) -> Tensor:
    """Return the log-determinant of ADP for every image (B); at most about 0.

    Source: Pang et al. 2019, eq. 6.
    """
    members, images, classes = member_logits.shape
    wrong = torch.ones(images, classes, dtype=torch.bool, device=y.device).scatter(1, y[:, None], False)
    # Softmax over the wrong classes alone has the same direction, and does not underflow for a confident member.
    # Double precision: with at least as many members as wrong classes, the determinant is almost 0.
    logits = member_logits.double()[:, wrong].view(members, images, classes - 1)
    columns = torch.nn.functional.normalize(logits.softmax(-1), dim=-1).transpose(0, 1)
    gram = columns @ columns.transpose(1, 2)
    identity = torch.eye(members, device=gram.device, dtype=gram.dtype)
    volume: Tensor = torch.logdet(gram + SMALLEST * identity)
    return volume.to(at_least_float32(member_logits).dtype)
