"""SoE: synergy of experts (Cui et al. 2022)."""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sparsemble.core.argument_checks import check_above_zero, check_at_least
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, MemberLogits
from sparsemble.ensemble.member_losses import EnsembleLoss, as_ensemble, member_losses
from sparsemble.training.loss import LossOutput, at_least_float32, craft, training_losses

EDGE = 1e-6
"""Distance that probabilities keep from 0 and 1."""


@final
@training_losses.register("soe")
@dataclass(frozen=True, kw_only=True)
class SoE(EnsembleLoss):
    """On each image the best member learns most, and the others learn to be unconfident.

    On images crafted on each member in turn: - sigma log sum_j exp(-CE_j / sigma), plus `honesty` times
    sum_j BCE(g_j, p_j(y)) with g_j the confidence of member j and p_j(y), a constant, its probability of the true
    class; averaged over images and over the members they were crafted on.

    Source: Cui et al. 2022; EED supplement, eq. 35. Departs: g_j is the member's highest probability; theirs is that
    times an auxiliary head, which a deployed member here does not have. Use it with the combiner `maximum`, in which
    the most confident member decides.
    """

    sigma: float = 1.0
    """Temperature of the soft minimum over members, > 0; near 0 only the best member learns."""
    honesty: float = 1.0
    """Weight of the confidence term, >= 0."""

    def __post_init__(self) -> None:
        check_above_zero(sigma=self.sigma)
        check_at_least(0, honesty=self.honesty)

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss of a batch."""
        model = as_ensemble(model, self)
        images = [craft(model, self.attack, x, y, threat, rng=rng, target=member) for member in model.members]
        labels = y.repeat(len(images))
        member_logits = model.member_logits(torch.cat(images))
        shared = _shared_loss(member_logits, labels, self.sigma).mean()
        confidence = _confidence_loss(member_logits, labels).sum(0).mean()
        terms = {"shared": shared.detach(), "confidence": confidence.detach()}
        return LossOutput(shared + self.honesty * confidence, terms)


def _shared_loss(member_logits: MemberLogits, y: Labels, sigma: float) -> Tensor:
    """Return -sigma log sum_j exp(-CE_j / sigma) for every image (B).

    Source: EED supplement, eq. 35, first term.
    """
    return -sigma * torch.logsumexp(-member_losses(member_logits, y) / sigma, 0)


def _confidence_loss(member_logits: MemberLogits, y: Labels) -> Tensor:
    """Return the binary cross-entropy (M, B) between confidence and the probability of the true class."""
    probabilities = at_least_float32(member_logits).softmax(-1).clamp(EDGE, 1 - EDGE)
    true = probabilities.gather(2, y.expand(len(member_logits), -1)[..., None])[..., 0]
    return F.binary_cross_entropy(probabilities.amax(-1), true.detach(), reduction="none")
