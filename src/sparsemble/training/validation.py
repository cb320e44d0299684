"""Accuracy on held-out images, clean and attacked: epochs and ensembles are chosen by it."""

from collections.abc import Callable

import torch
from torch import nn

from sparsemble.attacks.attack import Attack
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Flags, Images, Labels, MemberLogits
from sparsemble.data.dataset import Split

BATCH = 500


def in_batches(function: Callable[[Images, Labels], torch.Tensor], split: Split) -> torch.Tensor:
    """Apply a function to the images and labels of a split in batches, and concatenate its results along the images."""
    indices = torch.arange(len(split), device=split.labels.device).split(BATCH)
    return torch.cat([function(split.images(chosen), split.labels[chosen]) for chosen in indices])


def adversarial_images(
    model: Classifier, split: Split, attack: Attack, threat: ThreatModel, rng: torch.Generator
) -> Images:
    """Return the adversarial images of a whole split.

    Args:
        model: from images to logits, in eval mode.
        split: N labelled images.
        attack: how to search.
        threat: where to search.
        rng: draws random starts, on the device of the split.
    """
    return in_batches(lambda x, y: attack(model, x, y, threat, rng=rng), split)


@torch.no_grad()
def is_correct(model: Classifier, x: Images, y: Labels) -> Flags:
    """Return which images the model classifies correctly.

    Args:
        model: from images to logits, in eval mode.
        x: (N, C, H, W) in [0, 1].
        y: (N) true classes.
    """
    parts = zip(x.split(BATCH), y.split(BATCH), strict=True)
    return torch.cat([model(part).argmax(1) == target for part, target in parts])


@torch.no_grad()
def member_logits(ensemble: Ensemble, x: Images) -> MemberLogits:
    """Return the logits of every member on all images, (M, N, K)."""
    return torch.cat([ensemble.member_logits(part) for part in x.split(BATCH)], dim=1)


def held_out_probe(
    split: Split, attack: Attack, threat: ThreatModel, make_rng: Callable[[], torch.Generator]
) -> Callable[[nn.Module], dict[str, float]]:
    """Return a function that measures clean and robust accuracy on a split, with the same random starts each time.

    Args:
        split: held-out images.
        attack: crafts the adversarial images.
        threat: where it searches.
        make_rng: returns a generator in the same state at every call.

    Returns:
        From a model in eval mode to `held_out_clean` and `held_out_robust`, in [0, 1].
    """

    def measure(model: nn.Module) -> dict[str, float]:
        x_adv = adversarial_images(model, split, attack, threat, make_rng())
        x, y = split.tensors()
        return {
            "held_out_clean": float(is_correct(model, x, y).float().mean()),
            "held_out_robust": float(is_correct(model, x_adv, y).float().mean()),
        }

    return measure
