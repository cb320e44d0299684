"""Kullback-Leibler divergence from the clean prediction (Zhang et al. 2019)."""

from dataclasses import dataclass
from typing import final

import torch.nn.functional as F

from sparsemble.attacks.losses.loss import AttackLoss, attack_losses
from sparsemble.core.types import Labels, Logits, PerImage


@final
@attack_losses.register("kl")
@dataclass(frozen=True, kw_only=True)
class KL(AttackLoss):
    """Divergence of the predicted distribution from the clean one; labels are not used.

    Source: Zhang et al. 2019, eq. 5, the inner maximisation: KL(clean || adversarial). Its gradient is exactly zero
    at the clean image, so an attack that maximises it must start elsewhere.
    """

    def __call__(self, adv_logits: Logits, clean_logits: Logits, y: Labels) -> PerImage:
        """Return the divergence of each image, >= 0."""
        clean, moved = clean_logits.log_softmax(1), adv_logits.log_softmax(1)
        return F.kl_div(moved, clean, reduction="none", log_target=True).sum(1)
