"""Borders between the true class and others, to first order at a point."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsemble.attacks.hyperplane import SMALLEST, Norm, dual_length, move_to
from sparsemble.core.types import Classifier, Images, Labels, Logits, PerImage


@final
@dataclass(frozen=True)
class Border:
    """The plane on which another class ties with the true one, if logits are linear around `point`."""

    point: Images
    normal: Images
    """Gradient of the other logit minus the true one."""
    height: PerImage
    """The other logit minus the true one at the point; negative while the true class is ahead."""

    def move_from(self, start: Images, norm: Norm) -> Images:
        """Return the shortest move inside the box from `start` to the plane."""
        height = self.height + (self.normal * (start - self.point)).flatten(1).sum(1)
        return move_to(start, self.normal, height, norm)


def nearest_border(model: Classifier, point: Images, y: Labels, others: Int[Tensor, "B J"], norm: Norm) -> Border:
    """Return the border with the nearest of some other classes, by one forward and J backward passes."""
    leaf = point.detach().requires_grad_()
    border, _ = nearest_of(leaf, model(leaf), y, others, norm)
    return border


def nearest_of(
    leaf: Images, logits: Logits, y: Labels, others: Int[Tensor, "B J"], norm: Norm
) -> tuple[Border, Float[Tensor, "B J"]]:
    """Return the nearest border at a point whose forward pass is done, and the distances to all of them.

    Args:
        leaf: where the pass began; wants a gradient.
        logits: its end.
        y: true classes.
        others: the other classes; J backward passes.
        norm: how distance is measured.
    """
    heights = logits.gather(1, others) - logits.gather(1, y[:, None])
    best = torch.full_like(heights[:, 0], float("inf")).detach()
    normal, height = torch.zeros_like(leaf), torch.zeros_like(best)
    distances = []
    for i in range(others.shape[1]):
        last = i + 1 == others.shape[1]
        (slope,) = torch.autograd.grad(heights[:, i].sum(), leaf, retain_graph=not last)
        value = heights[:, i].detach()
        distance = value.abs() / dual_length(slope, norm).clamp_min(SMALLEST)
        distances.append(distance)
        nearer = distance < best
        best, height = torch.where(nearer, distance, best), torch.where(nearer, value, height)
        normal = torch.where(nearer.view(-1, 1, 1, 1), slope, normal)
    return Border(leaf.detach(), normal.detach(), height), torch.stack(distances, 1)
