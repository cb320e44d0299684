"""Find the worst image inside a threat model; never touch the model."""

from sparsemble.attacks.attack import Attack, attacks
from sparsemble.attacks.losses import AttackLoss, attack_losses

__all__ = ["Attack", "AttackLoss", "attack_losses", "attacks"]

attacks.walk("sparsemble.attacks")
