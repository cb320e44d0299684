"""Fast minimum-norm attack (Pintor et al. 2021)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.attack import SMALLEST, attacks, input_gradient
from sparsemble.attacks.decision_boundary import dual_norm
from sparsemble.attacks.losses.margin import margin_of
from sparsemble.attacks.minimum_norm import MinimumNorm, NearestPoints, cosine_anneal
from sparsemble.core.argument_checks import check_above_zero, check_at_least, check_interval
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel, project
from sparsemble.core.types import Classifier, Flags, PerImage


@final
@attacks.register("fmn")
@dataclass(frozen=True, kw_only=True)
class FMN(MinimumNorm):
    """Normalised gradient steps inside a ball that shrinks where the image is misclassified and grows where not.

    Source: Pintor et al. 2021, algorithm 1: before the first misclassified point, the radius is the distance at which
    the linearised margin is 0; step length and rate of change are annealed along a cosine. Departs: that first radius
    also grows by the rate, or an image could stay on the decision boundary without crossing it; and where a distance
    is small enough (`stop_distance`, the ball's radius in `perturb`), an image takes no further passes.
    """

    steps: int = 100
    """Gradient steps, >= 1."""
    alpha: float = 1.0
    """First length of a step, in the l2 norm for all norms, > 0."""
    alpha_final: float = 0.01
    """Last length of a step, > 0."""
    gamma: float = 0.05
    """First rate at which the radius changes, in (0, 1)."""
    gamma_final: float = 0.001
    """Last rate, in (0, 1)."""

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps)
        check_above_zero(alpha=self.alpha, alpha_final=self.alpha_final)
        check_interval("(0, 1)", gamma=self.gamma, gamma_final=self.gamma_final)
        self._complete(f"fmn{self.steps}")

    def search(self, model: Classifier, nearest: NearestPoints, *, rng: Generator) -> None:
        """Take gradient steps, and adapt the radius of each image.

        Passes, each image: steps + 1 forward and steps backward.
        """
        rows = nearest.open_rows()
        point = nearest.x[rows]
        radius = torch.full_like(nearest.distance[rows], float("inf"))
        for step in range(self.steps):
            if not len(rows):
                return
            x, progress = nearest.x[rows], step / self.steps
            leaf = point.detach().requires_grad_()
            with for_images(rows):
                logits = model(leaf)
            margin = margin_of(logits, nearest.y[rows])
            slope, margin, logits = input_gradient(margin, leaf), margin.detach(), logits.detach()
            # The clean image must not enter the record, or it would be returned where no step moves the margin.
            misclassified = nearest.update_(rows, point, logits) if step else torch.zeros_like(margin, dtype=torch.bool)
            boundary = ThreatModel(norm=nearest.norm).distance(point, x)
            boundary = boundary + margin.abs() / dual_norm(slope, nearest.norm).clamp_min(SMALLEST)
            radius = self._adapt(radius, misclassified, boundary, nearest.distance[rows], progress)
            length = cosine_anneal(self.alpha, self.alpha_final, progress)
            move = length * ThreatModel(norm="l2").steepest(slope)
            point = project(point + move, x, radius, nearest.norm)
            still_open = nearest.is_open()[rows]
            rows, point, radius = rows[still_open], point[still_open], radius[still_open]
        if len(rows):
            with torch.no_grad(), for_images(rows):
                nearest.update_(rows, point, model(point))

    def _adapt(
        self, radius: PerImage, misclassified: Flags, boundary: PerImage, best: PerImage, progress: float
    ) -> PerImage:
        """Return the new radii; before the first misclassified point, just beyond the linearised boundary."""
        rate = cosine_anneal(self.gamma, self.gamma_final, progress)
        smaller = torch.minimum(radius * (1 - rate), best)
        larger = (1 + rate) * torch.where(best.isfinite(), radius, boundary)
        return torch.where(misclassified, smaller, larger)
