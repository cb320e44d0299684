"""Difference of logits ratio (Croce & Hein 2020, eq. 6)."""

from dataclasses import dataclass
from typing import final

from sparsemble.attacks.losses.loss import AttackLoss, attack_losses
from sparsemble.attacks.losses.margin import margin_of
from sparsemble.core.errors import InputError
from sparsemble.core.types import Labels, Logits, PerImage

SMALLEST = 1e-12


@final
@attack_losses.register("dlr")
@dataclass(frozen=True, kw_only=True)
class DLR(AttackLoss):
    """Margin divided by the gap between the first and the third logit, so that rescaled logits change nothing.

    Source: Croce & Hein 2020, eq. 6. Needs three classes or more; with two the ratio is only the sign of the margin,
    and its gradient is zero: use `margin`.
    """

    def __call__(self, adv_logits: Logits, clean_logits: Logits, y: Labels) -> PerImage:
        """Return the ratio of each image, 1 at most; positive exactly where the image is misclassified."""
        classes = adv_logits.shape[1]
        if classes < 3:
            raise InputError(f'loss = "dlr" needs 3 classes or more, got {classes}; use "margin"')
        first, _, third = adv_logits.topk(3, dim=1).values.unbind(1)
        return margin_of(adv_logits, y) / (first - third + SMALLEST)
