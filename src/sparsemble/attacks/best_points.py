"""The best point that an attack has seen for each image."""

from dataclasses import dataclass, fields
from typing import final

import torch

from sparsemble.core.types import Counts, Flags, Images, PerImage


@final
@dataclass
class BestPoints:
    """The best point seen for each image: a successful one before any other, then the higher score."""

    images: Images
    """The clean image before any point has been compared."""
    success: Flags
    """Whether the point is what the attack looks for, as a rule misclassified."""
    score: PerImage
    """Higher is better, as a rule the loss or the margin; -inf before any point has been compared."""

    @classmethod
    def of_clean(cls, x: Images, success: Flags | None = None) -> "BestPoints":
        """Return the record before the search; images with `success`, misclassified already, need none."""
        lowest = torch.full_like(x[:, 0, 0, 0], -float("inf"))
        return cls(x.clone(), torch.zeros_like(lowest, dtype=torch.bool) if success is None else success, lowest)

    def only(self, rows: Counts) -> "BestPoints":
        """Return copies of some of them."""
        return BestPoints(*(getattr(self, field.name)[rows] for field in fields(self)))

    def open_rows(self) -> Counts:
        """Return the indices of the images without a successful point."""
        return (~self.success).nonzero()[:, 0]

    def improve_(self, rows: Counts, images: Images, success: Flags, score: PerImage) -> Flags:
        """Replace points by better ones, and return which new ones were better.

        Args:
            rows: (R) index of each new point's image in this batch.
            images: (R, C, H, W) new points.
            success: (R) whether they are successful.
            score: (R) their scores.
        """
        was = self.success[rows]
        better = (success & ~was) | ((success == was) & (score > self.score[rows]))
        new = better.nonzero()[:, 0]
        if len(new):
            old = rows[new]
            self.images[old] = images[new]
            self.success[old] = success[new]
            self.score[old] = score[new]
        return better
