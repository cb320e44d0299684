"""What an attack maximises: one number an image, larger is worse for the model."""

from sparsemble.attacks.losses.loss import AttackLoss, attack_losses

__all__ = ["AttackLoss", "attack_losses"]

attack_losses.walk("sparsemble.attacks.losses")
