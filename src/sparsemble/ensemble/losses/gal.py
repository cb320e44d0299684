"""GAL: gradient alignment loss (Kariyappa and Qureshi 2019)."""

import itertools
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.ensemble.member_losses import MemberLoss, as_ensemble, logits_of_own_images, member_losses
from sparsemble.training.loss import LossOutput, training_losses


@final
@training_losses.register("gal")
@dataclass(frozen=True, kw_only=True)
class GAL(MemberLoss):
    """Members whose input gradients point in different directions.

    mean_i CE_i(x) + lambda_ log sum_{i < j} exp cos(grad_x CE_i, grad_x CE_j) + adversarial mean_i CE_i(x_adv), the
    middle term averaged over images; its gradient is of second order. An ensemble of one has no middle term.

    Source: Kariyappa and Qureshi 2019, eq. 7, with the adversarial term of DVERGE's comparison. Departs: members keep
    their ReLUs (theirs: leaky ones).
    """

    lambda_: float = 0.5
    """Weight of the alignment, >= 0."""
    adversarial: float = 1.0
    """Weight of the adversarial term, >= 0; 0 is the original, which strong attacks break."""

    def __post_init__(self) -> None:
        check_at_least(0, lambda_=self.lambda_, adversarial=self.adversarial)

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss of a batch."""
        model = as_ensemble(model, self)
        shared_images, robust = None, x.new_zeros(())
        if self.adversarial:
            images = self._craft(model, x, y, threat, rng)
            robust = member_losses(logits_of_own_images(model, images), y).mean()
            shared_images = self._shared(images)
        leaf = x.detach().requires_grad_()
        losses = member_losses(model.member_logits(leaf), y)
        alignment = _log_alignment(loss_gradients(losses, leaf)).mean() if self.lambda_ else x.new_zeros(())
        clean = losses.mean()
        terms = {"clean": clean.detach(), "robust": robust.detach(), "alignment": alignment.detach()}
        return LossOutput(clean + self.lambda_ * alignment + self.adversarial * robust, terms, shared_images)


def loss_gradients(losses: Tensor, x: Images) -> Tensor:
    """Return the gradient of every member's loss (M, B) at every image, (M, B, C H W), itself differentiable."""
    gradients = [torch.autograd.grad(loss.sum(), x, create_graph=True)[0].flatten(1) for loss in losses]
    return torch.stack(gradients)


def cosines(gradients: Tensor) -> Tensor:
    """Return the cosine of every pair of members, (pairs, B); (0, B) for one member."""
    pairs = list(itertools.combinations(range(len(gradients)), 2))
    if not pairs:
        return gradients.new_zeros(0, gradients.shape[1])
    return torch.stack([F.cosine_similarity(gradients[i], gradients[j], dim=1, eps=1e-12) for i, j in pairs])


def _log_alignment(gradients: Tensor) -> Tensor:
    """Return log sum exp of the pairs' cosines for every image (B); 0 without pairs."""
    pairs = cosines(gradients)
    return torch.logsumexp(pairs, 0) if len(pairs) else gradients.new_zeros(gradients.shape[1])
