"""Random noise: the best of many random images."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from sparsemble.attacks.attack import Access, Attack, attacks
from sparsemble.attacks.best_points import BestPoints
from sparsemble.attacks.losses.margin import margin_of
from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel, unit_laplace
from sparsemble.core.types import Classifier, Images, Labels

DRAWS_AT_ONCE = 50
POINTS_AT_ONCE = 1000


@final
@attacks.register("noise")
@dataclass(frozen=True, kw_only=True)
class Noise(Attack):
    """Random images of the ball, every other one from its boundary; keeps the one of largest margin.

    No gradient is used: if this succeeds on an image on which gradient attacks fail, gradients are masked (Athalye et
    al. 2018; Carlini et al. 2019). The noise is the same for all images of a batch, so that no image's result depends
    on the others.
    """

    access: ClassVar[Access] = "scores"

    draws: int = 10_000
    """Random images tried for each image, >= 1; a misclassified image takes no more."""

    def __post_init__(self) -> None:
        check_at_least(1, draws=self.draws)
        self._set_label(f"noise{self.draws}")

    @torch.no_grad()
    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Draw, and keep the best."""
        best = BestPoints.of_clean(x, model(x).argmax(1) != y)
        for done in range(0, self.draws, DRAWS_AT_ONCE):
            delta = threat.eps * _unit_noise(x, threat, min(DRAWS_AT_ONCE, self.draws - done), rng)
            rows = best.open_rows()
            if not len(rows):
                break
            for part in rows.split(max(POINTS_AT_ONCE // len(delta), 1)):
                with for_images(part.repeat_interleave(len(delta))):
                    points = _best_of(model, x[part], y[part], threat, delta)
                best.improve_(part, points.images, points.success, points.score)
        return best.images


def _unit_noise(x: Images, threat: ThreatModel, draws: int, rng: Generator) -> Float[Tensor, "N C H W"]:
    """Draw noise of norm 1 at most: even rows uniform in the ball, odd ones at corners (linf) or on its surface."""
    shape = (draws, *x.shape[1:])
    odd = (torch.arange(draws, device=x.device) % 2 == 1).view(-1, 1, 1, 1)
    if threat.norm == "linf":
        inside = 2 * torch.rand(shape, generator=rng, device=x.device, dtype=x.dtype) - 1
        return torch.where(odd, inside.sign(), inside)
    if threat.norm == "l2":
        boundary = threat.steepest(torch.randn(shape, generator=rng, device=x.device, dtype=x.dtype))
    else:
        boundary = unit_laplace(torch.rand(shape, generator=rng, device=x.device, dtype=x.dtype))
    radius = torch.rand(draws, generator=rng, device=x.device, dtype=x.dtype) ** (1 / x[0].numel())
    return torch.where(odd, boundary, boundary * radius.view(-1, 1, 1, 1))


def _best_of(
    model: Classifier, x: Images, y: Labels, threat: ThreatModel, delta: Float[Tensor, "N C H W"]
) -> BestPoints:
    """Add each row of noise to each image, and return the point of largest margin of each image."""
    draws, labels = len(delta), y.repeat_interleave(len(delta))
    clean = x.repeat_interleave(draws, dim=0)
    points = threat.project(clean + delta.repeat(len(x), 1, 1, 1), clean)
    logits = model(points)
    margin = margin_of(logits, labels).view(len(x), draws)
    misclassified = (logits.argmax(1) != labels).view(len(x), draws)
    best = torch.arange(len(x), device=x.device), margin.argmax(1)
    return BestPoints(points.view(len(x), draws, *x.shape[1:])[best], misclassified[best], margin[best])
