"""Held-out accuracy: what epochs and ensembles are chosen by."""

from collections.abc import Callable

import torch
from torch import nn

from sparsemble.attacks.attack import Attack
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Flags, Images, Labels, MemberLogits
from sparsemble.data.dataset import Split
from sparsemble.pipeline.stage import Work

BATCH = 500


def in_batches(function: Callable[[Images, Labels], torch.Tensor], split: Split, batch: int = BATCH) -> torch.Tensor:
    """Apply a function to the images of a split, some at a time, and join what it returns along the images."""
    indices = torch.arange(len(split), device=split.labels.device).split(batch)
    return torch.cat([function(split.images(chosen), split.labels[chosen]) for chosen in indices])


def adversarial_images(
    model: Classifier, split: Split, attack: Attack, threat: ThreatModel, rng: torch.Generator
) -> Images:
    """Return the adversarial images of a whole split."""
    return in_batches(lambda x, y: attack(model, x, y, threat, rng=rng), split)


@torch.no_grad()
def right(model: Classifier, x: Images, y: Labels, batch: int = BATCH) -> Flags:
    """Return which images the model classifies rightly."""
    return torch.cat(
        [model(part).argmax(1) == target for part, target in zip(x.split(batch), y.split(batch), strict=True)]
    )


@torch.no_grad()
def logits_of(ensemble: Ensemble, x: Images, batch: int = BATCH) -> MemberLogits:
    """Return the logits of every member on all images."""
    return torch.cat([ensemble.member_logits(part) for part in x.split(batch)], dim=1)


def probe(split: Split, attack: Attack, threat: ThreatModel, work: Work) -> Callable[[nn.Module], dict[str, float]]:
    """Return a function that measures clean and robust accuracy on a split, with the same starts each time."""

    def measure(model: nn.Module) -> dict[str, float]:
        x_adv = adversarial_images(model, split, attack, threat, work.rng("probe"))
        x, y = split.everything()
        return {
            "held_out_clean": float(right(model, x, y).float().mean()),
            "held_out_robust": float(right(model, x_adv, y).float().mean()),
        }

    return measure
