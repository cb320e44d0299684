"""The interface of minimum-norm attacks: how far must an image move before it is misclassified."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.attack import TOLERANCE, Attack
from sparsemble.attacks.hyperplane import Norm
from sparsemble.attacks.losses.margin import Margin
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Counts, Flags, Images, Labels, Logits, PerImage


@final
@dataclass
class Nearest:
    """The nearest misclassified point seen for each image; before there is one, the point of largest margin."""

    x: Images
    y: Labels
    norm: Norm
    enough: float
    """A point found at this distance or nearer needs no nearer one."""
    clean_logits: Logits
    images: Images
    found: Flags
    distance: PerImage
    """From the clean image to the point found; infinite before."""
    margin: PerImage
    """Best wrong logit minus the true one at the point."""

    @classmethod
    def of_clean(cls, x: Images, y: Labels, norm: Norm, enough: float, clean_logits: Logits) -> "Nearest":
        """Start: images that are misclassified as they are have been found, at distance 0."""
        found = clean_logits.argmax(1) != y
        margin = Margin()(clean_logits, clean_logits, y)
        distance = torch.where(found, 0.0, float("inf")).to(x.dtype)
        # Any point of the path is worth more than the clean image.
        margin = torch.where(found, margin, -float("inf"))
        return cls(x, y, norm, enough, clean_logits, x.clone(), found, distance, margin)

    def open_rows(self) -> Counts:
        """Return the places of the images that need a nearer point."""
        return self.is_open().nonzero()[:, 0]

    def is_open(self) -> Flags:
        """Return which images need a nearer point; a distance is never known better than to `TOLERANCE`."""
        return self.distance > self.enough + TOLERANCE

    def see_(self, rows: Counts, points: Images, logits: Logits, confidence: float = 0.0) -> Flags:
        """Note points of the images at `rows`, and return which are misclassified by at least `confidence`."""
        y = self.y[rows]
        margin = Margin()(logits, logits, y)
        broken = (logits.argmax(1) != y) & (margin >= confidence)
        distance = ThreatModel(norm=self.norm).distance(points, self.x[rows])
        nearer = broken & (distance < self.distance[rows])
        higher = ~broken & ~self.found[rows] & (margin > self.margin[rows])
        better = nearer | higher
        changed = rows[better]
        self.images[changed] = points[better]
        self.margin[changed] = margin[better]
        self.distance[rows[nearer]] = distance[nearer]
        self.found[rows[nearer]] = True
        return broken

    def search_back_(self, model: Classifier, steps: int) -> None:
        """Draw the found points nearer along the line to the clean image, by false position on the margin."""
        rows = (self.found & self.is_open()).nonzero()[:, 0]
        if not len(rows):
            return
        x, y, away = self.x[rows], self.y[rows], self.images[rows] - self.x[rows]
        clean = self.clean_logits[rows]
        low, low_margin = torch.zeros_like(self.distance[rows]), Margin()(clean, clean, y)
        high, high_margin = torch.ones_like(low), self.margin[rows]
        for _ in range(steps):
            share = -low_margin / (high_margin - low_margin)
            share = torch.where(share.isfinite(), share, 0.5).clamp(0.01, 0.99)
            at = low + share * (high - low)
            point = (x + at.view(-1, 1, 1, 1) * away).clamp(0, 1)
            with torch.no_grad(), for_images(rows):
                logits = model(point)
            broken, margin = self.see_(rows, point, logits), Margin()(logits, logits, y)
            low, low_margin = torch.where(broken, low, at), torch.where(broken, low_margin, margin)
            high, high_margin = torch.where(broken, at, high), torch.where(broken, margin, high_margin)


class MinimumNorm(Attack):
    """Looks for the nearest misclassified image; the ball of the threat model only judges what it finds."""

    @final
    def minimum(
        self, model: Classifier, x: Images, y: Labels, norm: Norm, *, rng: Generator, enough: float = 0.0
    ) -> tuple[Images, Flags]:
        """Return the nearest misclassified images found, inside [0, 1] at any distance, and which were found.

        An image that is misclassified as it is comes back unchanged and found; one for which nothing was found comes
        back as the point of largest margin.

        Args:
            model: from images to logits (or log-probabilities), differentiable.
            x: (B, C, H, W) in [0, 1].
            y: (B) true classes.
            norm: how distance is measured.
            rng: draws random starts, on the device of `x`.
            enough: stop looking for a nearer image at this distance; 0 looks for the nearest.

        Raises:
            InputError: images outside [0, 1].
        """
        if not len(x):
            return x, torch.zeros(0, dtype=torch.bool, device=x.device)
        low, high = float(x.min()), float(x.max())
        if not (low >= 0 and high <= 1):
            raise InputError(f"images must lie in [0, 1], got [{low:.3g}, {high:.3g}]")
        with torch.no_grad():
            clean_logits = model(x)
        nearest = Nearest.of_clean(x, y, norm, enough, clean_logits)
        with torch.enable_grad():
            self.approach(model, nearest, rng=rng)
        return nearest.images, nearest.found

    @abstractmethod
    def approach(self, model: Classifier, nearest: Nearest, *, rng: Generator) -> None:
        """Search, and show `nearest` every point on the way; only its open rows need a search."""

    @final
    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Return what `minimum` finds inside the ball; for the others the point of the ball of largest margin.

        Candidates for those are the point found, brought into the ball coordinate by coordinate and along the line
        to the clean image, and a random one; never the clean image itself.
        """
        if not threat.eps:
            return x
        point, found = self.minimum(model, x, y, threat.norm, rng=rng, enough=threat.eps)
        return bring_inside(model, point, found, x, y, threat, rng=rng)


def bring_inside(
    model: Classifier, point: Images, found: Flags, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
) -> Images:
    """Return what `minimum` found where it lies in the ball, else the point of the ball of largest margin."""
    start = threat.random_start(x, rng)
    distance = threat.distance(point, x)
    rows = (~found | (distance > threat.eps + TOLERANCE)).nonzero()[:, 0]
    if not len(rows):
        return point
    clean, away = x[rows], point[rows] - x[rows]
    shorter = (threat.eps / distance[rows].clamp_min(1e-12)).clamp_max(1.0).view(-1, 1, 1, 1)
    inside = (point[rows], clean + shorter * away, start[rows])
    with for_images(rows):
        chosen = worst(model, clean, y[rows], [threat.project(p, clean) for p in inside])
    return point.index_copy(0, rows, chosen)


def worst(model: Classifier, x: Images, y: Labels, candidates: list[Images]) -> Images:
    """Return, for each image, the candidate of largest margin that is not the clean image."""
    margins = []
    for candidate in candidates:
        with torch.no_grad():
            logits = model(candidate)
        same = (candidate == x).flatten(1).all(1)
        margins.append(torch.where(same, -float("inf"), Margin()(logits, logits, y)))
    chosen = torch.stack(margins).argmax(0)
    return torch.stack(candidates)[chosen, torch.arange(len(x), device=x.device)]
