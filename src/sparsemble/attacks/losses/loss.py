"""The interface of attack losses."""

from abc import abstractmethod

from sparsemble.core.registry import Component, Registry
from sparsemble.core.types import Labels, Logits, PerImage


class AttackLoss(Component):
    """What an attack climbs."""

    @abstractmethod
    def __call__(self, adv_logits: Logits, clean_logits: Logits, y: Labels) -> PerImage:
        """Return one number an image, larger where the model does worse; `clean_logits` carry no gradient."""


attack_losses: Registry[AttackLoss] = Registry("attack loss", AttackLoss)
