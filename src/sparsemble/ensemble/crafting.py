"""The adversarial images that members of an ensemble are trained on."""

import torch.nn.functional as F
from torch import Generator, Tensor

from sparsemble.attacks.attack import Attack
from sparsemble.core.interfaces import Ensemble, stacked
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.training.loss import craft, in_full


def images_for_members(
    ensemble: Ensemble, attack: Attack, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator, together: bool
) -> list[Images]:
    """Return the adversarial images of each member: its own, or, `together`, one set crafted on the whole ensemble."""
    if together:
        return [craft(ensemble, attack, x, y, threat, rng=rng)] * len(ensemble.members)
    return [craft(ensemble, attack, x, y, threat, rng=rng, target=member) for member in ensemble.members]


def member_losses(member_logits: Tensor, y: Labels) -> Tensor:
    """Return the cross-entropy of every member on every image, (M, B), from logits (M, B, K)."""
    labels = y.expand(len(member_logits), -1)
    return F.cross_entropy(in_full(member_logits).transpose(1, 2), labels, reduction="none")


def each_on_its_own(ensemble: Ensemble, images: list[Images]) -> Tensor:
    """Return the logits (M, B, K) of every member on the images that are its own."""
    return stacked([member(own) for member, own in zip(ensemble.members, images, strict=True)])
