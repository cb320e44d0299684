"""DDN, decoupling of direction and norm (Rony et al. 2019)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Generator

from sparsemble.attacks.attack import SMALLEST, attacks, input_gradient
from sparsemble.attacks.losses.cross_entropy import CrossEntropy
from sparsemble.attacks.minimum_norm import MinimumNorm, NearestPoints, cosine_anneal
from sparsemble.core.argument_checks import check_above_zero, check_at_least, check_interval
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import Norm, ThreatModel
from sparsemble.core.types import Classifier


@final
@attacks.register("ddn")
@dataclass(frozen=True, kw_only=True)
class DDN(MinimumNorm):
    """Normalised gradient steps on a sphere that shrinks where the image is misclassified and grows where not.

    Source: Rony et al. 2019, algorithm 1, untargeted, with the annealing of their section 4. Departs: images are not
    rounded to 8 bits, and where a distance is small enough (`stop_distance`, the ball's radius in `perturb`), an image
    takes no further passes.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    instead: ClassVar[Mapping[Norm, str]] = {"linf": "fmn", "l1": "fmn"}

    steps: int = 100
    """Gradient steps, >= 1."""
    first_radius: float = 1.0
    """Radius of the first sphere, > 0."""
    alpha: float = 1.0
    """First length of a step, > 0; it falls to a hundredth along a cosine."""
    gamma: float = 0.05
    """Rate at which the radius changes, in (0, 1)."""

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps)
        check_above_zero(first_radius=self.first_radius, alpha=self.alpha)
        check_interval("(0, 1)", gamma=self.gamma)
        self._complete(f"ddn{self.steps}")

    def search(self, model: Classifier, nearest: NearestPoints, *, rng: Generator) -> None:
        """Take gradient steps, and adapt the radius of each image.

        Passes, each image: steps + 1 forward and steps backward.
        """
        rows, loss, steepest = nearest.open_rows(), CrossEntropy(), ThreatModel(norm="l2").steepest
        delta = torch.zeros_like(nearest.x[rows])
        radius = torch.full_like(nearest.distance[rows], self.first_radius)
        for step in range(self.steps + 1):
            if not len(rows):
                return
            moves = step < self.steps
            leaf = (nearest.x[rows] + delta).requires_grad_(moves)
            with torch.set_grad_enabled(moves), for_images(rows):
                logits = model(leaf)
            misclassified = torch.zeros_like(rows, dtype=torch.bool)
            if step:  # the clean image must not enter the record, or it would be returned where no step moves the loss
                misclassified = nearest.update_(rows, leaf.detach(), logits.detach())
            if not moves:
                return
            gradient = input_gradient(loss(logits, logits, nearest.y[rows]), leaf)
            going = nearest.is_open()[rows]
            rows, delta, gradient = rows[going], delta[going], gradient[going]
            radius = (radius * torch.where(misclassified, 1 - self.gamma, 1 + self.gamma))[going]
            delta = delta + cosine_anneal(self.alpha, self.alpha / 100, step / self.steps) * steepest(gradient)
            length = delta.flatten(1).norm(dim=1).clamp_min(SMALLEST)
            x = nearest.x[rows]
            delta = (x + delta * (radius / length).view(-1, 1, 1, 1)).clamp(0, 1) - x
