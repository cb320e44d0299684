"""A model that says nothing but its answer, with a budget of questions for each image."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Counts, Flags, Images, Labels, PerImage

POINTS_AT_ONCE = 1000


@final
@dataclass
class Oracle:
    """Answers whether points are misclassified, and remembers the nearest of those that were."""

    model: Classifier
    x: Images
    y: Labels
    threat: ThreatModel
    queries: int
    """Questions an image may take."""
    spent: Counts
    images: Images
    """Nearest misclassified point of each image so far."""
    distance: PerImage
    """Its distance; infinite before there is one."""

    @classmethod
    def ask_about(cls, model: Classifier, x: Images, y: Labels, threat: ThreatModel, queries: int) -> "Oracle":
        """Begin with one question: the clean image."""
        distance = torch.full_like(x[:, 0, 0, 0], float("inf"))
        oracle = cls(model, x, y, threat, queries, torch.zeros_like(y), x.clone(), distance)
        oracle.ask(torch.arange(len(x), device=x.device), x)
        return oracle

    def open_rows(self) -> Counts:
        """Return the places of the images that are not broken yet and may still ask."""
        return self._is_open().nonzero()[:, 0]

    def still_open(self, rows: Counts) -> Flags:
        """Return which of these images are not broken yet and may still ask."""
        return self._is_open()[rows]

    def _is_open(self) -> Flags:
        return (self.distance > self.threat.eps) & (self.spent < self.queries)

    @torch.no_grad()
    def ask(self, rows: Int[Tensor, "P"], points: Float[Tensor, "P C H W"]) -> Bool[Tensor, "P"]:
        """Return which points are misclassified; `rows` are the images they belong to, each at most once."""
        with for_images(rows):
            broken: Tensor = self.model(points).argmax(1) != self.y[rows]
        self.spent[rows] += 1
        distance = self.threat.distance(points, self.x[rows])
        nearer = broken & (distance < self.distance[rows])
        self.images[rows[nearer]], self.distance[rows[nearer]] = points[nearer], distance[nearer]
        return broken

    def ask_around(self, rows: Counts, points: Float[Tensor, "B N C H W"]) -> Bool[Tensor, "B N"]:
        """Return which of the N points of each image are misclassified."""
        most = max(POINTS_AT_ONCE // points.shape[1], 1)
        answers = []
        for part, whose in zip(points.split(most), rows.split(most), strict=True):
            with torch.no_grad(), for_images(whose.repeat_interleave(part.shape[1])):
                answers.append(self.model(part.flatten(0, 1)).argmax(1).view(len(part), -1))
        self.spent[rows] += points.shape[1]
        return torch.cat(answers) != self.y[rows][:, None]

    def bisect(self, rows: Counts, away: Images, high: PerImage, tolerance: float) -> PerImage:
        """Find the border on the ray x + t away between 0 and `high`, which is known to be misclassified.

        Returns:
            The least t found that is misclassified; an image stops early where it is broken or has no question left.
        """
        high, low = high.clone(), torch.zeros_like(high)
        while True:
            going = ((high - low > tolerance) & self.still_open(rows)).nonzero()[:, 0]
            if not len(going):
                return high
            middle = (low[going] + high[going]) / 2
            broken = self.ask(rows[going], ray(self.x[rows[going]], away[going], middle))
            high[going] = torch.where(broken, middle, high[going])
            low[going] = torch.where(broken, low[going], middle)

    def inside(self, rng: Generator) -> Images:
        """Return the nearest misclassified points brought into the ball; random ones where there are none."""
        start = self.threat.random_start(self.x, rng)
        unknown = self.distance.isinf().view(-1, 1, 1, 1)
        return self.threat.project(torch.where(unknown, start, self.images), self.x)


def ray(x: Images, away: Images, t: PerImage) -> Images:
    """Return x + t away, inside the box."""
    return (x + t.view(-1, 1, 1, 1) * away).clamp(0, 1)
