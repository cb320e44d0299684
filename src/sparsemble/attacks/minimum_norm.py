"""The interface of minimum-norm attacks: the distance by which an image must move to be misclassified."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.attack import DEFAULT_SEED, SMALLEST, Attack, refusing_other_labels
from sparsemble.attacks.losses.margin import margin_of
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import for_images
from sparsemble.core.tensor_checks import checked_images, checked_labels
from sparsemble.core.threat import TOLERANCE, Norm, ThreatModel
from sparsemble.core.types import Classifier, Counts, Flags, Images, Labels, Logits, PerImage, seeded

INNER_FIRST: tuple[Norm, ...] = ("l1", "l2", "linf")
"""Norms, each with a ball that lies inside that of the next one at the same radius."""


@final
@dataclass
class NearestPoints:
    """The nearest misclassified point seen for each image; before there is one, the point of largest margin."""

    x: Images
    y: Labels
    norm: Norm
    stop_distance: float
    """An image with a misclassified point at this distance or nearer needs no nearer one."""
    clean_logits: Logits
    images: Images
    success: Flags
    """Whether the point is misclassified."""
    distance: PerImage
    """From the clean image to the misclassified point; infinite before there is one."""
    margin: PerImage
    """Best wrong logit minus the true one at the point."""

    @classmethod
    def of_clean(cls, x: Images, y: Labels, norm: Norm, stop_distance: float, clean_logits: Logits) -> "NearestPoints":
        """Return the record before the search: images that are misclassified when clean succeed at distance 0.

        Args:
            x: (B, C, H, W) clean images.
            y: (B) true classes.
            norm: in which distance is measured.
            stop_distance: distance below which no nearer point is looked for, >= 0.
            clean_logits: (B, K) at the clean images.
        """
        success = clean_logits.argmax(1) != y
        margin = margin_of(clean_logits, y)
        distance = torch.where(success, 0.0, float("inf")).to(x.dtype)
        # Any point of the path is worth more than the clean image.
        margin = torch.where(success, margin, -float("inf"))
        return cls(x, y, norm, stop_distance, clean_logits, x.clone(), success, distance, margin)

    def copy(self) -> "NearestPoints":
        """Return a record that can be updated without changing this one."""
        state = self.images.clone(), self.success.clone(), self.distance.clone(), self.margin.clone()
        return NearestPoints(self.x, self.y, self.norm, self.stop_distance, self.clean_logits, *state)

    def open_rows(self) -> Counts:
        """Return the indices of the images that need a nearer point."""
        return self.is_open().nonzero()[:, 0]

    def is_open(self) -> Flags:
        """Return which images need a nearer point; a distance is never known better than to `TOLERANCE`."""
        return self.distance > self.stop_distance + TOLERANCE

    def update_(self, rows: Counts, points: Images, logits: Logits, confidence: float = 0.0) -> Flags:
        """Compare points with those of the record, and return which are misclassified by at least `confidence`.

        Args:
            rows: (R) indices of the images.
            points: (R, C, H, W).
            logits: (R, K) at the points.
            confidence: margin from which a point counts as misclassified, >= 0.
        """
        y = self.y[rows]
        margin = margin_of(logits, y)
        misclassified = (logits.argmax(1) != y) & (margin >= confidence)
        self.improve_(rows, points, misclassified, margin)
        return misclassified

    def improve_(self, rows: Counts, points: Images, misclassified: Flags, margin: PerImage) -> None:
        """Replace points by nearer misclassified ones; before there is one, by those of larger margin.

        Args:
            rows: (R) indices of the images.
            points: (R, C, H, W).
            misclassified: (R) whether the points are.
            margin: (R) best wrong logit minus the true one at the points.
        """
        distance = ThreatModel(norm=self.norm).distance(points, self.x[rows])
        nearer = misclassified & (distance < self.distance[rows])
        higher = ~misclassified & ~self.success[rows] & (margin > self.margin[rows])
        better = nearer | higher
        changed = rows[better]
        self.images[changed] = points[better]
        self.margin[changed] = margin[better]
        self.distance[rows[nearer]] = distance[nearer]
        self.success[rows[nearer]] = True

    def line_search_(self, model: Classifier, steps: int) -> None:
        """Move misclassified points nearer along the line to the clean image, by false position on the margin.

        Passes, each image that needs a nearer point: `steps` forward.
        """
        rows = (self.success & self.is_open()).nonzero()[:, 0]
        if not len(rows):
            return
        x, y, direction = self.x[rows], self.y[rows], self.images[rows] - self.x[rows]
        low, low_margin = torch.zeros_like(self.distance[rows]), margin_of(self.clean_logits[rows], y)
        high, high_margin = torch.ones_like(low), self.margin[rows]
        for _ in range(steps):
            fraction = -low_margin / (high_margin - low_margin)
            fraction = torch.where(fraction.isfinite(), fraction, 0.5).clamp(0.01, 0.99)
            t = low + fraction * (high - low)
            points = (x + t.view(-1, 1, 1, 1) * direction).clamp(0, 1)
            with torch.no_grad(), for_images(rows):
                logits = model(points)
            misclassified, margin = self.update_(rows, points, logits), margin_of(logits, y)
            low, low_margin = torch.where(misclassified, low, t), torch.where(misclassified, low_margin, margin)
            high, high_margin = torch.where(misclassified, t, high), torch.where(misclassified, margin, high_margin)


@dataclass(frozen=True, kw_only=True)
class MinimumNorm(Attack):
    """Searches for the nearest misclassified image; the ball of a threat model is applied to the result only."""

    norm: Norm | None = None
    """In which the nearest image is looked for and must lie within eps; none: that of the threat model, inside whose
    ball the ball in this norm must lie, as l2 in linf."""

    @final
    def ball(self, threat: ThreatModel) -> ThreatModel:
        """Return the ball in which the attack searches: that of the threat model, or of the same radius in `norm`."""
        return ThreatModel(norm=self.norm, eps=threat.eps) if self.norm else threat

    def _complete(self, automatic: str) -> None:
        """Use an automatic label where none was given; with `norm`, work in the norms whose balls hold its ball.

        Raises:
            InputError: a norm in which the attack does not search.
        """
        self._set_label(f"{automatic}-{self.norm}" if self.norm else automatic)
        if not self.norm:
            return
        if self.norm not in self.norms:
            raise InputError(f'norm = "{self.norm}" is none in which {self.name} searches: {", ".join(self.norms)}')
        wider = INNER_FIRST[INNER_FIRST.index(self.norm) :]
        object.__setattr__(self, "norms", wider)
        object.__setattr__(self, "instead", {norm: self.name for norm in INNER_FIRST if norm not in wider})

    @final
    def minimum(
        self,
        model: Classifier,
        x: Images,
        y: Labels,
        norm: Norm,
        *,
        rng: Generator | None = None,
        stop_distance: float = 0.0,
    ) -> tuple[Images, Flags]:
        """Return the nearest misclassified images found, at any distance.

        Args:
            model: maps images to logits (or log-probabilities); differentiable.
            x: (B, C, H, W) clean images in [0, 1].
            y: (B) true classes.
            norm: in which distance is measured.
            rng: source of random draws, on the device of `x`; None uses a fixed seed.
            stop_distance: an image with a misclassified point at this distance takes no further passes; 0 searches
                for the nearest.

        Returns:
            (B, C, H, W) images in [0, 1], and (B) whether they are misclassified. An image that is misclassified when
            clean is returned unchanged, and one for which no misclassified point was found as the point of largest
            margin.

        Raises:
            InputError: images outside [0, 1], labels that are no classes of the model, or a norm in which the attack
                does not work.
        """
        self.check_norm(norm)
        x = checked_images(x)
        y = checked_labels(y, len(x)).to(x.device)
        if not len(x):
            return x, torch.zeros(0, dtype=torch.bool, device=x.device)
        model = refusing_other_labels(model, y)
        with torch.inference_mode(False), torch.no_grad():
            clean_logits = model(x)
        nearest = NearestPoints.of_clean(x, y, norm, stop_distance, clean_logits)
        with torch.inference_mode(False), torch.enable_grad():
            self.search(model, nearest, rng=rng if rng is not None else seeded(DEFAULT_SEED, x.device))
        return nearest.images, nearest.success

    @abstractmethod
    def search(self, model: Classifier, nearest: NearestPoints, *, rng: Generator) -> None:
        """Search for nearer points.

        Args:
            model: maps images to logits.
            nearest: the record, to be updated with every point of the path; only its open rows need a search.
            rng: source of random draws.
        """

    @final
    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Return the result of `minimum` where it lies in the ball, else the point of the ball of largest margin."""
        if not threat.eps:
            return x
        threat = self.ball(threat)
        point, success = self.minimum(model, x, y, threat.norm, rng=rng, stop_distance=threat.eps)
        return bring_inside(model, point, success, x, y, threat, rng=rng)


STRETCHED = (1e-5, 1e-4, 1e-3)
"""Fractions by which a distance may grow where a copy of the network misclassifies a point and the network does not."""


def minimum_on_copy(
    attack: MinimumNorm, copy: Classifier, model: Classifier, x: Images, y: Labels, norm: Norm, *, rng: Generator
) -> tuple[Images, Flags]:
    """Search for the nearest misclassified images on a copy of a model; all that is returned holds on the model.

    The nearest point lies on the decision boundary, where rounding decides: a point that the model still classifies
    correctly is moved a little further away, and where that does not help the image is attacked on the model.

    Args:
        attack: searches.
        copy: computes what the model computes, up to rounding.
        model: decides.
        x: (B, C, H, W) clean images in [0, 1].
        y: (B) true classes.
        norm: in which distance is measured.
        rng: source of random draws.

    Returns:
        As `MinimumNorm.minimum`.
    """
    points, success = attack.minimum(copy, x, y, norm, rng=rng)
    rows = success.nonzero()[:, 0]
    for fraction in (0.0, *STRETCHED):
        if not len(rows):
            return points, success
        moved = (x[rows] + (1 + fraction) * (points[rows] - x[rows])).clamp(0, 1)
        with torch.no_grad():
            confirmed = model(moved).argmax(1) != y[rows]
        points[rows[confirmed]] = moved[confirmed]
        rows = rows[~confirmed]
    if len(rows):
        points[rows], success[rows] = attack.minimum(model, x[rows], y[rows], norm, rng=rng)
    return points, success


def bring_inside(
    model: Classifier, point: Images, success: Flags, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
) -> Images:
    """Return the result of `MinimumNorm.minimum` where it lies in the ball, else a point of the ball.

    Candidates are the result, projected coordinate by coordinate and along the line to the clean image, and a random
    point; that of largest margin is returned, and never the clean image.

    Args:
        model: maps images to logits.
        point: (B, C, H, W) images returned by `minimum`.
        success: (B) whether they are misclassified.
        x: (B, C, H, W) clean images in [0, 1].
        y: (B) true classes.
        threat: norm and radius of the ball.
        rng: source of random draws.
    """
    start = threat.random_start(x, rng)
    distance = threat.distance(point, x)
    rows = (~success | (distance > threat.eps + TOLERANCE)).nonzero()[:, 0]
    if not len(rows):
        return point
    clean, direction = x[rows], point[rows] - x[rows]
    shorter = (threat.eps / distance[rows].clamp_min(SMALLEST)).clamp_max(1.0).view(-1, 1, 1, 1)
    candidates = (point[rows], clean + shorter * direction, start[rows])
    with for_images(rows):
        chosen = _largest_margin(model, clean, y[rows], [threat.project(p, clean) for p in candidates])
    return point.index_copy(0, rows, chosen)


def _largest_margin(model: Classifier, x: Images, y: Labels, candidates: list[Images]) -> Images:
    """Return, for each image, the candidate of largest margin that is not the clean image."""
    margins = []
    for candidate in candidates:
        with torch.no_grad():
            logits = model(candidate)
        same = (candidate == x).flatten(1).all(1)
        margins.append(torch.where(same, -float("inf"), margin_of(logits, y)))
    chosen = torch.stack(margins).argmax(0)
    return torch.stack(candidates)[chosen, torch.arange(len(x), device=x.device)]


def cosine_anneal(first: float, last: float, progress: float) -> float:
    """Return a value that goes from one to another along half a cosine.

    Args:
        first: value at progress 0.
        last: value at progress 1.
        progress: in [0, 1].
    """
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
