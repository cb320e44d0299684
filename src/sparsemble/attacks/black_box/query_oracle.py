"""A model of which only the predicted class is known, with a budget of queries for each image."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Counts, Flags, Images, Labels, PerImage

POINTS_AT_ONCE = 1000
FIRST_DRAWS = 100
"""Random images tried as the first misclassified one."""
TOLERANCE = 1e-3
"""Length of the last interval of a bisection, as a fraction of the ray."""


@final
@dataclass
class QueryOracle:
    """Returns whether points are misclassified, and keeps the nearest of those that were."""

    model: Classifier
    x: Images
    y: Labels
    threat: ThreatModel
    queries: int
    """Queries that an image may take."""
    used: Counts
    """Queries that each image has taken."""
    images: Images
    """Nearest misclassified point of each image so far."""
    distance: PerImage
    """Its distance; infinite before there is one."""

    @classmethod
    def with_clean(cls, model: Classifier, x: Images, y: Labels, threat: ThreatModel, queries: int) -> "QueryOracle":
        """Return an oracle that has been queried once, with the clean images.

        Args:
            model: maps images to logits.
            x: (B, C, H, W) clean images in [0, 1].
            y: (B) true classes.
            threat: norm and radius of the ball.
            queries: forward passes for each image at most, >= 1.
        """
        distance = torch.full_like(x[:, 0, 0, 0], float("inf"))
        oracle = cls(model, x, y, threat, queries, torch.zeros_like(y), x.clone(), distance)
        oracle.query(torch.arange(len(x), device=x.device), x)
        return oracle

    def open_rows(self) -> Counts:
        """Return the indices of the images without a point in the ball that have queries left."""
        return self._is_open().nonzero()[:, 0]

    def still_open(self, rows: Counts) -> Flags:
        """Return which of these images have no point in the ball and queries left."""
        return self._is_open()[rows]

    def _is_open(self) -> Flags:
        return (self.distance > self.threat.eps) & (self.used < self.queries)

    @torch.no_grad()
    def query(self, rows: Int[Tensor, "P"], points: Float[Tensor, "P C H W"]) -> Bool[Tensor, "P"]:
        """Return which points are misclassified; `rows` are the indices of their images, each at most once."""
        with for_images(rows):
            misclassified: Tensor = self.model(points).argmax(1) != self.y[rows]
        self.used[rows] += 1
        distance = self.threat.distance(points, self.x[rows])
        nearer = misclassified & (distance < self.distance[rows])
        self.images[rows[nearer]], self.distance[rows[nearer]] = points[nearer], distance[nearer]
        return misclassified

    def query_many(self, rows: Counts, points: Float[Tensor, "B N C H W"]) -> Bool[Tensor, "B N"]:
        """Return which of the N points of each image are misclassified; the nearest of these is not kept."""
        images_per_call = max(POINTS_AT_ONCE // points.shape[1], 1)
        predictions = []
        for part, part_rows in zip(points.split(images_per_call), rows.split(images_per_call), strict=True):
            with torch.no_grad(), for_images(part_rows.repeat_interleave(part.shape[1])):
                predictions.append(self.model(part.flatten(0, 1)).argmax(1).view(len(part), -1))
        self.used[rows] += points.shape[1]
        return torch.cat(predictions) != self.y[rows][:, None]

    def bisect(self, rows: Counts, direction: Images, high: PerImage, tolerance: float = TOLERANCE) -> PerImage:
        """Return the least t seen whose point x + t direction, t between 0 and `high`, is misclassified.

        An image stops early once it has a point in the ball or no query left.

        Args:
            rows: (R) indices of the images.
            direction: (R, C, H, W).
            high: (R) values of t at which the point is misclassified.
            tolerance: length of the last interval of t.
        """
        high, low = high.clone(), torch.zeros_like(high)
        while True:
            going = ((high - low > tolerance) & self.still_open(rows)).nonzero()[:, 0]
            if not len(going):
                return high
            middle = (low[going] + high[going]) / 2
            points = point_on_ray(self.x[rows[going]], direction[going], middle)
            misclassified = self.query(rows[going], points)
            high[going] = torch.where(misclassified, middle, high[going])
            low[going] = torch.where(misclassified, low[going], middle)

    def found_rows(self) -> Counts:
        """Return the open rows that have a misclassified point."""
        return (self._is_open() & self.distance.isfinite()).nonzero()[:, 0]

    def bisect_to_clean(self, rows: Counts) -> None:
        """Search between the nearest misclassified points of these images and the clean ones."""
        if len(rows):
            self.bisect(rows, self.images[rows] - self.x[rows], torch.ones_like(self.distance[rows]))

    def draw_first_points(self, rng: Generator) -> None:
        """Query random images, until each image has a misclassified one, and search between it and the clean image."""
        shape = self.x.shape[1:]
        for _ in range(FIRST_DRAWS):
            draw = torch.rand(shape, generator=rng, device=self.x.device, dtype=self.x.dtype)
            rows = self.open_rows()
            rows = rows[self.distance[rows].isinf()]
            if not len(rows):
                break
            self.query(rows, draw.expand(len(rows), *shape))
        self.bisect_to_clean(self.found_rows())

    def nearest_in_ball(self, rng: Generator) -> Images:
        """Return the nearest misclassified points, projected into the ball; random ones where there are none."""
        start = self.threat.random_start(self.x, rng)
        unknown = self.distance.isinf().view(-1, 1, 1, 1)
        return self.threat.project(torch.where(unknown, start, self.images), self.x)


def point_on_ray(x: Images, direction: Images, t: PerImage) -> Images:
    """Return x + t direction, clipped to [0, 1].

    Args:
        x: (B, C, H, W) images.
        direction: (B, C, H, W).
        t: (B).
    """
    return (x + t.view(-1, 1, 1, 1) * direction).clamp(0, 1)
