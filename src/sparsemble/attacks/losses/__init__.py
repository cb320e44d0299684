"""Losses that attacks maximise: one value for each image, larger is worse for the model."""

from sparsemble.attacks.losses.loss import attack_losses

attack_losses.register_package("sparsemble.attacks.losses")
