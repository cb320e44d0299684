"""The interface of attacks, and the checks around every one of them."""

from abc import abstractmethod
from collections.abc import Callable
from typing import final

import torch
from torch import Generator

from sparsemble.core.errors import InputError, RunError
from sparsemble.core.registry import Component, Registry
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels

TOLERANCE = 1e-6


class Attack(Component):
    """Finds, for each image, a bad one inside the threat model.

    An attack keeps the best point of its path, never returns the clean image in place of a failure, and leaves
    weights, gradients, mode and BatchNorm statistics of the model as found. Put the model in eval mode first.
    """

    label: str
    """Name in results, where the same attack stands twice in a list; empty: the component's name and steps."""

    @final
    def __call__(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Return adversarial images.

        Args:
            model: from images to logits (or log-probabilities), differentiable.
            x: (B, C, H, W) in [0, 1].
            y: (B) true classes.
            threat: where the adversarial image may lie.
            rng: draws random starts, on the device of `x`.

        Raises:
            InputError: images outside [0, 1].
            RunError: the attack broke its own box or ball, or met NaN.
        """
        return search_inside(threat, x, lambda: self.perturb(model, x, y, threat, rng=rng), self.name)

    @abstractmethod
    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Search; called with checked images."""


def search_inside(threat: ThreatModel, x: Images, search: Callable[[], Images], name: str) -> Images:
    """Return what a search finds, with the checks around it: images in [0, 1], result in box and ball."""
    if not len(x):
        return x
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise InputError(f"images must lie in [0, 1], got [{low:.3g}, {high:.3g}]")
    with torch.enable_grad():
        x_adv = search().detach()
    inside = float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1
    if not inside or not float(threat.distance(x_adv, x).max()) <= threat.eps + TOLERANCE:
        raise RunError(f"{name} left the allowed images ({threat}); the model may return NaN")
    return x_adv


def input_gradient(loss: torch.Tensor, x: Images) -> Images:
    """Return the gradient of summed losses with respect to the images, leaving the model's gradients alone."""
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    return gradient


attacks: Registry[Attack] = Registry("attack", Attack)
