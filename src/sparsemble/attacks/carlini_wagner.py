"""The l2 attack of Carlini & Wagner (2017)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Generator, Tensor

from sparsemble.attacks.attack import attacks, input_gradient
from sparsemble.attacks.deepfool import DeepFool
from sparsemble.attacks.losses.margin import margin_of
from sparsemble.attacks.minimum_norm import MinimumNorm, NearestPoints
from sparsemble.core.argument_checks import check_above_zero, check_at_least
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import Norm
from sparsemble.core.types import Classifier, Counts, Flags, Images, PerImage

LINE_SEARCH_STEPS = 5
INSIDE = 1 - 1e-6
"""Pixels at 0 and 1 are moved in by this factor, or their tanh variable would be infinite."""
CHECKS = 10
"""Number of checks whether an image's least loss still falls; at least `LEAST_STEPS` steps lie between two."""
LEAST_STEPS = 10
FALLING = 0.9999
"""A loss falls if it is below this fraction of the one at the last check."""


@final
@attacks.register("carlini_wagner")
@dataclass(frozen=True, kw_only=True)
class CarliniWagner(MinimumNorm):
    """Minimises distance and margin together: Adam on |x' - x|^2 + c max(kappa - margin, 0), for several values of c.

    A search for each image finds the least c with which it is misclassified; a line search to the clean image follows,
    unless `kappa` is above 0. In linf, the attack that many papers call C&W is PGD on the margin: `cw_linf`.

    Source: Carlini & Wagner 2017, section V (l2) with their f6. Departs: the descent begins where DeepFool ends, with
    the c that balances the two terms there, and each further one at the best point so far; the step size falls to 0;
    the search over c is geometric, down as well as up; each image stops where its own loss stops falling; and where a
    distance is small enough (`stop_distance`, the ball's radius in `perturb`), an image takes no further passes.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    instead: ClassVar[Mapping[Norm, str]] = {"linf": "cw_linf", "l1": "fmn"}

    steps: int = 200
    """Steps for each c, >= 1."""
    searches: int = 9
    """Values of c, >= 1."""
    step_size: float = 0.02
    """Step size of Adam, > 0."""
    first_c: float = 1.5
    """First weight of the margin, in units of the one that balances the two terms where DeepFool ends, > 0."""
    kappa: float = 0.0
    """Margin by which an image must be misclassified to count, >= 0."""

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps, searches=self.searches)
        check_above_zero(step_size=self.step_size, first_c=self.first_c)
        check_at_least(0, kappa=self.kappa)
        self._complete(f"cw{self.steps}")

    def search(self, model: Classifier, nearest: NearestPoints, *, rng: Generator) -> None:
        """Search over c."""
        boundary = nearest.copy()
        DeepFool(followed=1).search(model, boundary, rng=rng)
        c = self.first_c * _balance(model, boundary)
        low, high = torch.zeros_like(c), torch.full_like(c, float("inf"))
        for _ in range(self.searches):
            rows = nearest.open_rows()
            if not len(rows):
                break
            best = torch.where(nearest.success.view(-1, 1, 1, 1), nearest.images, boundary.images)
            misclassified = self._descend(model, nearest, rows, c[rows], best[rows])
            high[rows] = torch.where(misclassified, c[rows], high[rows])
            low[rows] = torch.where(misclassified, low[rows], c[rows])
            c = _next_c(low, high)
        if not self.kappa:  # a line search to the decision boundary would lose the margin that is wanted
            nearest.line_search_(model, LINE_SEARCH_STEPS)

    def _descend(self, model: Classifier, nearest: NearestPoints, rows: Counts, c: PerImage, start: Images) -> Flags:
        """Minimise over w with x' = (tanh(w) + 1) / 2; return which images were misclassified on the path.

        Passes, each image: steps + 1 forward and steps backward; none once its loss stops falling or it is near
        enough.
        """
        misclassified = torch.zeros_like(c, dtype=torch.bool)
        active = torch.arange(len(rows), device=rows.device)
        w = torch.atanh((2 * start - 1) * INSIDE)
        adam = _Adam(torch.zeros_like(w), torch.zeros_like(w), self.step_size)
        lowest = lowest_before = torch.full_like(c, float("inf"))
        window = max(self.steps // CHECKS, LEAST_STEPS)
        for step in range(self.steps + 1):
            moves = step < self.steps
            leaf = w.detach().requires_grad_(moves)
            with torch.set_grad_enabled(moves), for_images(rows[active]):
                point = (leaf.tanh() + 1) / 2
                logits = model(point)
                loss = self._loss(point, logits, nearest, rows[active], c[active])
            misclassified[active] |= nearest.update_(rows[active], point.detach(), logits.detach(), self.kappa)
            if not moves:
                break
            w = adam.step_(w, input_gradient(loss, leaf), step + 1, 1 - step / self.steps)
            going = nearest.is_open()[rows[active]]
            lowest = torch.minimum(lowest, loss.detach())
            if step % window == 0:
                going &= lowest <= FALLING * lowest_before
                lowest_before = lowest
            if not bool(going.all()):
                active, w, adam = active[going], w[going], adam.only(going)
                lowest, lowest_before = lowest[going], lowest_before[going]
                if not len(active):
                    break
        return misclassified

    def _loss(self, point: Images, logits: Tensor, nearest: NearestPoints, rows: Counts, c: PerImage) -> PerImage:
        margin = margin_of(logits, nearest.y[rows])
        return (point - nearest.x[rows]).flatten(1).square().sum(1) + c * (self.kappa - margin).clamp_min(0)


def _balance(model: Classifier, nearest: NearestPoints) -> PerImage:
    """Return the c at which the gradients of distance and margin cancel at the best points; 1 where there is none.

    There 2 |x' - x| = c |gradient of the margin|. Passes, each image: 1 forward and 1 backward.
    """
    leaf = nearest.images.detach().requires_grad_()
    slope = input_gradient(margin_of(model(leaf), nearest.y), leaf).flatten(1).norm(dim=1)
    distance = (nearest.images - nearest.x).flatten(1).norm(dim=1)
    c = 2 * distance / slope
    return torch.where((c > 0) & c.isfinite(), c, 1.0)


def _next_c(low: PerImage, high: PerImage) -> PerImage:
    """Return the next c: 10 times the largest that failed, a tenth of the least that succeeded, or their middle."""
    middle = (low * high).sqrt()
    return torch.where(high.isinf(), 10 * low, torch.where(low == 0, high / 10, middle))


@final
@dataclass
class _Adam:
    """Adam (Kingma & Ba 2015) with moments of each image, so that images can leave."""

    first: Tensor
    second: Tensor
    step_size: float
    betas: tuple[float, float] = (0.9, 0.999)

    def step_(self, w: Tensor, gradient: Tensor, count: int, fraction: float = 1.0) -> Tensor:
        """Update the moments and return the new variables."""
        a, b = self.betas
        self.first = a * self.first + (1 - a) * gradient
        self.second = b * self.second + (1 - b) * gradient.square()
        scale = (self.second / (1 - b**count)).sqrt() + 1e-8
        return w - fraction * self.step_size * self.first / (1 - a**count) / scale

    def only(self, selected: Flags) -> "_Adam":
        """Return the moments of some images."""
        return _Adam(self.first[selected], self.second[selected], self.step_size, self.betas)
