"""The attacks named after Carlini & Wagner (2017)."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.attack import attacks, input_gradient
from sparsemble.attacks.deepfool import DeepFool
from sparsemble.attacks.losses.margin import Margin
from sparsemble.attacks.minimum_norm import MinimumNorm, Nearest
from sparsemble.attacks.pgd import PGD
from sparsemble.attacks.tanh_walk import TanhWalk
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, PerImage

SEARCH_BACK_STEPS = 5


@final
@attacks.register("carlini_wagner")
@dataclass(frozen=True, kw_only=True)
class CarliniWagner(MinimumNorm):
    """In l2, distance and margin minimised together; in linf, PGD on the margin, which many papers call C&W.

    l2: Adam minimises |x' - x|^2 + c max(kappa - margin, 0), and a search for each image finds the least c that
    still breaks it. linf: within a ball, PGD climbs the margin, as the literature on pruning and adversarial training
    does under this name (Madry et al. 2018, section 5); the nearest image is looked for in balls that double from
    2^(1 - searches) to 1. Both end with a search along the line to the clean image, unless `kappa` asks for more.

    Source: Carlini & Wagner 2017, section V (l2) with their f6. Departs: the walk begins where DeepFool ends, with the
    c that balances there, and each further one at the best point so far; the step size falls to nothing; the search
    over c is geometric, down as well as up; each image stops where its own loss stops falling; and where a distance is
    near enough (`enough`, the ball's radius in `perturb`), an image takes no further passes.
    """

    steps: int = 200
    """Steps for each c or ball, >= 1."""
    searches: int = 9
    """Values of c, or balls, >= 1."""
    step_size: float = 0.02
    """Step size of Adam, > 0; l2 only."""
    first_c: float = 1.5
    """First weight of the margin, in units of the one that holds a point where DeepFool found it, > 0; l2 only."""
    kappa: float = 0.0
    """Margin by which an image must be misclassified to count, >= 0."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.searches < 1:
            raise InputError(f"steps = {self.steps} and searches = {self.searches} must be 1 or more")
        if not (self.step_size > 0 and self.first_c > 0):
            raise InputError(f"step_size = {self.step_size:g} and first_c = {self.first_c:g} must be above 0")
        if not self.kappa >= 0:
            raise InputError(f"kappa = {self.kappa:g} must be 0 or more")
        if not self.label:
            object.__setattr__(self, "label", f"cw{self.steps}")

    def approach(self, model: Classifier, nearest: Nearest, *, rng: Generator) -> None:
        """Search over c, or over balls."""
        if nearest.norm == "l2":
            self._search_weights(model, nearest, rng)
        elif nearest.enough:
            self._break_inside(model, nearest, rng)
        else:
            self._search_balls(model, nearest, rng)

    def _search_weights(self, model: Classifier, nearest: Nearest, rng: Generator) -> None:
        walk = TanhWalk(steps=self.steps, step_size=self.step_size, kappa=self.kappa)
        border = replace(nearest, images=nearest.images.clone(), found=nearest.found.clone())
        border.distance, border.margin = nearest.distance.clone(), nearest.margin.clone()
        DeepFool(followed=1).approach(model, border, rng=rng)
        c = self.first_c * balance(model, border)
        low, high = torch.zeros_like(c), torch.full_like(c, float("inf"))
        for _ in range(self.searches):
            rows = nearest.open_rows()
            if not len(rows):
                break
            best = torch.where(nearest.found.view(-1, 1, 1, 1), nearest.images, border.images)
            broken = walk(model, nearest, rows, c[rows], best[rows])
            high[rows] = torch.where(broken, c[rows], high[rows])
            low[rows] = torch.where(broken, low[rows], c[rows])
            c = between(low, high)
        self._search_back(model, nearest)

    def _break_inside(self, model: Classifier, nearest: Nearest, rng: Generator) -> None:
        """Climb inside the one ball that matters."""
        pgd = PGD(steps=self.steps, loss=Margin(), stop_at_success=not self.kappa)
        threat = ThreatModel(norm=nearest.norm, eps=nearest.enough)
        point = pgd.perturb(model, nearest.x, nearest.y, threat, rng=rng)
        rows = nearest.open_rows()
        with torch.no_grad(), for_images(rows):
            nearest.see_(rows, point[rows], model(point[rows]), self.kappa)

    def _search_balls(self, model: Classifier, nearest: Nearest, rng: Generator) -> None:
        """Climb inside larger and larger balls, until each image is broken."""
        pgd = PGD(steps=self.steps, loss=Margin(), random_start=False, stop_at_success=False)
        rows = nearest.open_rows()
        for halvings in reversed(range(self.searches)):
            if not len(rows):
                break
            threat = ThreatModel(norm=nearest.norm, eps=2.0**-halvings)
            with for_images(rows):
                point = pgd.perturb(model, nearest.x[rows], nearest.y[rows], threat, rng=rng)
            with torch.no_grad(), for_images(rows):
                broken = nearest.see_(rows, point, model(point), self.kappa)
            rows = rows[~broken]
        self._search_back(model, nearest)

    def _search_back(self, model: Classifier, nearest: Nearest) -> None:
        if not self.kappa:  # a line search for the border would lose the margin asked for
            nearest.search_back_(model, SEARCH_BACK_STEPS)


def balance(model: Classifier, nearest: Nearest) -> PerImage:
    """Return the c at which the pull of the margin at the best points equals that of the distance; 1 at none.

    There 2 |x' - x| = c |gradient of the margin|. Passes, each image: 1 forward and 1 backward.
    """
    leaf = nearest.images.detach().requires_grad_()
    logits = model(leaf)
    slope = input_gradient(Margin()(logits, logits, nearest.y), leaf).flatten(1).norm(dim=1)
    away = (nearest.images - nearest.x).flatten(1).norm(dim=1)
    c = 2 * away / slope
    return torch.where((c > 0) & c.isfinite(), c, 1.0)


def between(low: PerImage, high: PerImage) -> PerImage:
    """Return the next c to try: 10 times the largest too small, a tenth of the least that did, or their middle."""
    middle = (low * high).sqrt()
    return torch.where(high.isinf(), 10 * low, torch.where(low == 0, high / 10, middle))
