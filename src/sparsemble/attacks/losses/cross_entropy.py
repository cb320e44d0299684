"""Cross-entropy of the true class."""

from dataclasses import dataclass
from typing import final

import torch.nn.functional as F

from sparsemble.attacks.losses.loss import AttackLoss, attack_losses
from sparsemble.core.types import Labels, Logits, PerImage


@final
@attack_losses.register("cross_entropy")
@dataclass(frozen=True, kw_only=True)
class CrossEntropy(AttackLoss):
    """Minus the log-probability of the true class."""

    def __call__(self, adv_logits: Logits, clean_logits: Logits, y: Labels) -> PerImage:
        """Return the cross-entropy of each image."""
        return F.cross_entropy(adv_logits, y, reduction="none")
