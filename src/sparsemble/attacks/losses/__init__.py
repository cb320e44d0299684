"""Losses that attacks maximise: one value for each image, larger is worse for the model."""

from sparsemble.attacks.losses.cross_entropy import CrossEntropy
from sparsemble.attacks.losses.dlr import DLR
from sparsemble.attacks.losses.kl import KL
from sparsemble.attacks.losses.loss import AttackLoss, attack_losses
from sparsemble.attacks.losses.margin import Margin

__all__ = ["DLR", "KL", "AttackLoss", "CrossEntropy", "Margin", "attack_losses"]

attack_losses.register_package("sparsemble.attacks.losses")
