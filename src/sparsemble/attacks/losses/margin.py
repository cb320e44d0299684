"""Margin between the best wrong class and the true one (Carlini & Wagner 2017)."""

from dataclasses import dataclass
from typing import final

from sparsemble.attacks.losses.loss import AttackLoss, attack_losses
from sparsemble.core.types import Labels, Logits, PerImage


@final
@attack_losses.register("margin")
@dataclass(frozen=True, kw_only=True)
class Margin(AttackLoss):
    """Largest wrong logit minus the true one: positive exactly where the image is misclassified.

    Source: Carlini & Wagner 2017, f6 without the clip.
    """

    def __call__(self, adv_logits: Logits, clean_logits: Logits, y: Labels) -> PerImage:
        """Return the margin of each image."""
        return margin_of(adv_logits, y)


def margin_of(logits: Logits, y: Labels) -> PerImage:
    """Return the largest wrong logit minus the true one, (B); `Margin` without the arguments it does not use.

    The true class is masked with -inf: a 0 mask would give exactly zero gradient on log-probabilities.
    """
    wrong = logits.scatter(1, y[:, None], -float("inf")).amax(1)
    return wrong - logits.gather(1, y[:, None])[:, 0]
