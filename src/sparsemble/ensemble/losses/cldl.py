"""CLDL: the loss that the EED supplement prints as GAL (eq. 33)."""

import itertools
import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sparsemble.core.argument_checks import check_at_least, check_interval
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, MemberLogits
from sparsemble.ensemble.losses.gal import cosines, loss_gradients
from sparsemble.ensemble.member_losses import MemberLoss, as_ensemble, logits_of_own_images, member_losses
from sparsemble.training.loss import LossOutput, at_least_float32, training_losses

SMALLEST = 1e-12


@final
@training_losses.register("cldl")
@dataclass(frozen=True, kw_only=True)
class CLDL(MemberLoss):
    """Members that learn softened labels of their own, far from each other's, with gradients that do not align.

    mean_i KL(s_i || h_i) - alpha log mean_{i < j} exp JSD(s_i || s_j) + beta mean_{i < j} cos(grad_x KL_i, grad_x KL_j)
    + adversarial mean_i CE_i(x_adv), averaged over images; an ensemble of one has no pairs.

    Source: EED supplement, eq. 33, where s_i is only called a smoothed label. Our reading:
    s_i = (1 - smoothing) onehot(y) + smoothing h_i(x), a constant in the KL, differentiated in the JSD. Departs: the
    adversarial term.
    """

    alpha: float = 2.0
    """Weight of the Jensen-Shannon divergence of the labels, >= 0."""
    beta: float = 0.5
    """Weight of the gradients' alignment, >= 0."""
    smoothing: float = 0.1
    """Share of a label that is the member's own prediction, in (0, 1)."""
    adversarial: float = 1.0
    """Weight of the adversarial term, >= 0."""

    def __post_init__(self) -> None:
        check_at_least(0, alpha=self.alpha, beta=self.beta, adversarial=self.adversarial)
        check_interval("(0, 1)", smoothing=self.smoothing)

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss of a batch."""
        model = as_ensemble(model, self)
        shared_images, robust = None, x.new_zeros(())
        if self.adversarial:
            images = self._craft(model, x, y, threat, rng)
            robust = member_losses(logits_of_own_images(model, images), y).mean()
            shared_images = self._shared(images)
        leaf = x.detach().requires_grad_()
        member_logits = model.member_logits(leaf)
        labels = _soft_labels(member_logits, y, self.smoothing)
        divergences = _kl(labels.detach(), at_least_float32(member_logits).log_softmax(-1))
        distance, alignment = _log_distance(labels).mean(), x.new_zeros(())
        if self.beta and len(member_logits) > 1:
            alignment = cosines(loss_gradients(divergences, leaf)).mean()
        clean = divergences.mean()
        loss = clean - self.alpha * distance + self.beta * alignment + self.adversarial * robust
        terms = {"clean": clean, "distance": distance, "alignment": alignment, "robust": robust}
        return LossOutput(loss, {name: value.detach() for name, value in terms.items()}, shared_images)


def _soft_labels(member_logits: MemberLogits, y: Labels, smoothing: float) -> Tensor:
    """Return the softened labels s_i (M, B, K)."""
    probabilities = at_least_float32(member_logits).softmax(-1)
    hard = F.one_hot(y, probabilities.shape[-1]).to(probabilities.dtype)
    return (1 - smoothing) * hard + smoothing * probabilities


def _kl(p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) in nats over the last axis."""
    return (p * (p.clamp_min(SMALLEST).log() - log_q)).sum(-1)


def _log_distance(labels: Tensor) -> Tensor:
    """Return the log of the mean exp JSD (nats) over pairs of members, for every image (B); 0 without pairs."""
    divergences = []
    for i, j in itertools.combinations(range(len(labels)), 2):
        log_middle = ((labels[i] + labels[j]) / 2).clamp_min(SMALLEST).log()
        divergences.append((_kl(labels[i], log_middle) + _kl(labels[j], log_middle)) / 2)
    if not divergences:
        return labels.new_zeros(labels.shape[1])
    return torch.logsumexp(torch.stack(divergences), 0) - math.log(len(divergences))
