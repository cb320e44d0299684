"""What the ensemble losses share: settings, adversarial images for each member, and each member's cross-entropy."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.pgd import PGD
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


@dataclass(frozen=True, kw_only=True)
class EnsembleLoss(TrainingLoss):
    """A loss of an ensemble, on images that an attack crafts."""

    needs_ensemble: ClassVar[bool] = True

    attack: Attack = PGD(steps=10, keep_best=False)
    """Crafts the adversarial images."""


@dataclass(frozen=True, kw_only=True)
class MemberLoss(EnsembleLoss):
    """A loss in which every member is trained on adversarial images of its own, or all on those of the ensemble."""

    attack_ensemble: bool = False
    """Craft one adversarial set on the whole ensemble instead of one on each member."""

    def _craft(self, ensemble: Ensemble, x: Images, y: Labels, threat: ThreatModel, rng: Generator) -> list[Images]:
        """Craft one batch of images for each member; on the ensemble, M times the same one."""
        if self.attack_ensemble:
            return [craft(ensemble, self.attack, x, y, threat, rng=rng)] * len(ensemble.members)
        return [craft(ensemble, self.attack, x, y, threat, rng=rng, target=member) for member in ensemble.members]

    def _shared(self, images: list[Images]) -> Images | None:
        """Return the images that all members have, if they do."""
        return images[0] if self.attack_ensemble else None


def member_losses(member_logits: MemberLogits, y: Labels) -> Tensor:
    """Return the cross-entropy of every member on every image, (M, B), in nats, from logits (M, B, K)."""
    labels = y.expand(len(member_logits), -1)
    return F.cross_entropy(at_least_float32(member_logits).transpose(1, 2), labels, reduction="none")


def logits_of_own_images(ensemble: Ensemble, images: list[Images]) -> MemberLogits:
    """Return the logits (M, B, K) of every member on its own batch of images."""
    return stack_logits([member(batch) for member, batch in zip(ensemble.members, images, strict=True)])
