"""What the ensemble losses share: adversarial images for each member, and each member's cross-entropy."""

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sparsemble.attacks.attack import Attack
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble, stack_logits
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, MemberLogits
from sparsemble.training.loss import TrainingLoss, at_least_float32, craft


def as_ensemble(model: nn.Module, loss: TrainingLoss) -> Ensemble:
    """Return the model itself, typed as an ensemble."""
    if not isinstance(model, Ensemble):
        raise InputError(
            f"{loss.name} is the loss of an ensemble, and this {type(model).__name__} is a single network; put it "
            "into an Ensemble, or use a loss such as pgd_at or trades"
        )
    return model


def craft_for_members(
    ensemble: Ensemble, attack: Attack, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator, shared: bool
) -> list[Images]:
    """Craft the adversarial images that each member is trained on.

    Args:
        ensemble: the members; weights, mode and statistics are left as found.
        attack: how to search.
        x: clean images (B, C, H, W) in [0, 1].
        y: true classes (B).
        threat: norm and radius of the perturbation.
        rng: draws random starts.
        shared: craft one set on the whole ensemble, for all members, instead of one on each member.
    """
    if shared:
        return [craft(ensemble, attack, x, y, threat, rng=rng)] * len(ensemble.members)
    return [craft(ensemble, attack, x, y, threat, rng=rng, target=member) for member in ensemble.members]


def member_losses(member_logits: MemberLogits, y: Labels) -> Tensor:
    """Return the cross-entropy of every member on every image, (M, B), in nats, from logits (M, B, K)."""
    labels = y.expand(len(member_logits), -1)
    return F.cross_entropy(at_least_float32(member_logits).transpose(1, 2), labels, reduction="none")


def logits_of_own_images(ensemble: Ensemble, images: list[Images]) -> MemberLogits:
    """Return the logits (M, B, K) of every member on its own batch of images."""
    return stack_logits([member(batch) for member, batch in zip(ensemble.members, images, strict=True)])
