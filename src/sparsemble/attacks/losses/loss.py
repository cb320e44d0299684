"""The interface of attack losses."""

from abc import abstractmethod

from sparsemble.core.registry import Component, Registry
from sparsemble.core.types import Labels, Logits, PerImage


class AttackLoss(Component):
    """What an attack maximises."""

    @abstractmethod
    def __call__(self, adv_logits: Logits, clean_logits: Logits, y: Labels) -> PerImage:
        """Return one value for each image, larger where the model does worse.

        Args:
            adv_logits: (B, K) at the attacked images.
            clean_logits: (B, K) at the clean images; without gradient.
            y: (B) true classes.
        """


attack_losses: Registry[AttackLoss] = Registry("attack loss", AttackLoss)
