"""Fast minimum-norm attack (Pintor et al. 2021)."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.attack import attacks, input_gradient
from sparsemble.attacks.hyperplane import SMALLEST, dual_length
from sparsemble.attacks.losses.margin import Margin
from sparsemble.attacks.minimum_norm import MinimumNorm, Nearest
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Flags, Images, PerImage


@final
@attacks.register("fmn")
@dataclass(frozen=True, kw_only=True)
class FMN(MinimumNorm):
    """Normalised gradient steps inside a ball that shrinks where the image is misclassified and grows where not.

    Source: Pintor et al. 2021, algorithm 1: until a misclassified point is met, the radius is the distance at which
    the linearised margin is 0; step length and rate of change are annealed along a cosine. Departs: that first radius
    also grows by the rate, or an image could stay on the border without crossing it; and where a distance is near
    enough (`enough`, the ball's radius in `perturb`), an image takes no further passes.
    """

    steps: int = 100
    """Gradient steps, >= 1."""
    alpha: float = 1.0
    """First length of a step, in the l2 norm for both norms, > 0."""
    alpha_final: float = 0.01
    """Last length of a step, > 0."""
    gamma: float = 0.05
    """First rate at which the radius changes, in (0, 1)."""
    gamma_final: float = 0.001
    """Last rate, in (0, 1)."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps = {self.steps} must be 1 or more")
        if not (self.alpha > 0 and self.alpha_final > 0):
            raise InputError(f"alpha = {self.alpha:g} and alpha_final = {self.alpha_final:g} must be above 0")
        if not (0 < self.gamma < 1 and 0 < self.gamma_final < 1):
            raise InputError(f"gamma = {self.gamma:g} and gamma_final = {self.gamma_final:g} must lie between 0 and 1")
        if not self.label:
            object.__setattr__(self, "label", f"fmn{self.steps}")

    def approach(self, model: Classifier, nearest: Nearest, *, rng: Generator) -> None:
        """Step, and let the ball breathe.

        Passes, each image: steps + 1 forward and steps backward.
        """
        rows = nearest.open_rows()
        point = nearest.x[rows]
        radius = torch.full_like(nearest.distance[rows], float("inf"))
        for step in range(self.steps):
            if not len(rows):
                return
            x, share = nearest.x[rows], step / self.steps
            leaf = point.detach().requires_grad_()
            with for_images(rows):
                logits = model(leaf)
            margin = Margin()(logits, logits, nearest.y[rows])
            slope, margin, logits = input_gradient(margin, leaf), margin.detach(), logits.detach()
            # The clean image is worth nothing to `nearest`, which would return it where no step moves the margin.
            broken = nearest.see_(rows, point, logits) if step else torch.zeros_like(margin, dtype=torch.bool)
            reach = ThreatModel(norm=nearest.norm).distance(point, x)
            reach = reach + margin.abs() / dual_length(slope, nearest.norm).clamp_min(SMALLEST)
            radius = self._breathe(radius, broken, reach, nearest.distance[rows], share)
            length = anneal(self.alpha, self.alpha_final, share)
            move = length * ThreatModel(norm="l2").steepest(slope)
            point = keep_within(point + move, x, radius, nearest)
            open_still = nearest.is_open()[rows]
            rows, point, radius = rows[open_still], point[open_still], radius[open_still]
        if len(rows):
            with torch.no_grad(), for_images(rows):
                nearest.see_(rows, point, model(point))

    def _breathe(self, radius: PerImage, broken: Flags, reach: PerImage, best: PerImage, share: float) -> PerImage:
        """Return the new radii; before the first misclassified point, just beyond the linearised border."""
        rate = anneal(self.gamma, self.gamma_final, share)
        smaller = torch.minimum(radius * (1 - rate), best)
        larger = (1 + rate) * torch.where(best.isfinite(), radius, reach)
        return torch.where(broken, smaller, larger)


def anneal(first: float, last: float, share: float) -> float:
    """Go from `first` to `last` along half a cosine as `share` goes from 0 to 1."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def keep_within(point: Images, x: Images, radius: PerImage, nearest: Nearest) -> Images:
    """Bring each point into the ball of its own radius, and into the box."""
    delta, size = point - x, radius.view(-1, 1, 1, 1)
    if nearest.norm == "linf":
        delta = torch.minimum(torch.maximum(delta, -size), size)
    else:
        length = delta.flatten(1).norm(dim=1).clamp_min(SMALLEST).view(-1, 1, 1, 1)
        delta = delta * (size / length).clamp_max(1)
    return (x + delta).clamp(0, 1)
