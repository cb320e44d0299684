"""Square attack: random search with squares, no gradients (Andriushchenko et al. 2020)."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor

from sparsemble.attacks.apgd_core import Outcome
from sparsemble.attacks.attack import Attack, attacks
from sparsemble.attacks.losses.margin import Margin
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Counts, Images, Labels

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Points after which the share of changed pixels is halved, for a run of 10,000."""
LONGEST = 10_000
TILES = 5
"""Tiles along the height of the l2 start."""


@final
@attacks.register("square")
@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Change one square of the image at a time and keep what raises the margin.

    Source: Andriushchenko et al. 2020, algorithms 1 to 3, margin loss. Departs: every image draws its own squares
    (the authors' code moves one square over the whole batch), and one that is misclassified as it is stays as it is.
    """

    queries: int = 5000
    """Points tried, the start included, >= 1; a broken image takes no more."""
    p_init: float = 0.8
    """Share of the pixels in the first squares, in (0, 1]."""
    rescale: bool = True
    """Fit the published schedule of 10,000 points to `queries`; off: cut it short, as the authors' AutoAttack does."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise InputError(f"queries = {self.queries} must be 1 or more")
        if not 0 < self.p_init <= 1:
            raise InputError(f"p_init = {self.p_init:g} must be above 0 and at most 1")
        if not self.label:
            object.__setattr__(self, "label", f"square{self.queries}")

    @torch.no_grad()
    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Search from a start of stripes (linf) or tiles (l2)."""
        moves: Moves = LinfMoves() if threat.norm == "linf" else L2Moves()
        found = Outcome.nothing_yet(x)
        found.broken = model(x).argmax(1) != y
        start = moves.start(x, threat, rng)
        for query in range(self.queries):
            rows = (~found.broken).nonzero()[:, 0]
            if not len(rows):
                break
            # Drawn for the whole batch, so that an image's luck does not hang on which others are broken.
            draw = Draw.sample(x, self.side(query, x.shape[2], x.shape[3]), rng)
            tried = start[rows] if not query else moves.step(found.images[rows], x[rows], threat, draw.only(rows))
            with for_images(rows):
                logits = model(tried)
            margin = Margin()(logits, logits, y[rows])
            found.improve_(rows, Outcome(tried, logits.argmax(1) != y[rows], margin, margin))
        return found.images

    def side(self, query: int, height: int, width: int) -> int:
        """Return the side of the squares tried at a point, 1 to the shorter side of the image."""
        at = (query - 1) * LONGEST // self.queries if self.rescale else query - 1
        share = self.p_init * 0.5 ** sum(at > halving for halving in HALVINGS)
        return min(max(round(math.sqrt(share * height * width)), 1), height, width)


@final
@dataclass
class Draw:
    """The random choices of one point, one row for each image."""

    side: int
    sign: Tensor
    """-1 or 1, (B, C, 1, 1)."""
    places: Tensor
    """Top and left edge of two windows, as shares of what is free, (B, 4)."""
    turned: Tensor
    """Whether the l2 pattern lies on its side, (B, 1, 1, 1)."""

    @classmethod
    def sample(cls, x: Images, side: int, rng: Generator) -> "Draw":
        """Draw for a batch."""
        dice = torch.rand(len(x), x.shape[1] + 5, generator=rng, device=x.device, dtype=torch.float64)
        sign = (dice[:, 5:, None, None] < 0.5).to(x.dtype) * 2 - 1
        return cls(side, sign, dice[:, :4], dice[:, 4, None, None, None] < 0.5)

    def only(self, rows: Counts) -> "Draw":
        """Return the choices of some images."""
        return Draw(self.side, self.sign[rows], self.places[rows], self.turned[rows])

    def window(self, x: Images, side: int, which: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the index of one square an image, of shape (B, C, side, side)."""
        free = torch.tensor(x.shape[2:], device=x.device) - side + 1
        corner = (self.places[:, 2 * which : 2 * which + 2] * free).long()
        along = torch.arange(side, device=x.device)
        rows = (corner[:, :1] + along).view(-1, 1, side, 1)
        columns = (corner[:, 1:] + along).view(-1, 1, 1, side)
        image = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1)
        return image, torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1), rows, columns


class Moves(ABC):
    """Where a search in one norm starts, and how it goes on."""

    @abstractmethod
    def start(self, x: Images, threat: ThreatModel, rng: Generator) -> Images:
        """Return the first point."""

    @abstractmethod
    def step(self, best: Images, x: Images, threat: ThreatModel, draw: Draw) -> Images:
        """Return the next point to try."""


@final
class LinfMoves(Moves):
    """Squares of one colour, eps away from the clean image (algorithm 2)."""

    def start(self, x: Images, threat: ThreatModel, rng: Generator) -> Images:
        """Return vertical stripes, one pixel wide."""
        batch, channels, _, width = x.shape
        dice = torch.rand(batch, channels, 1, width, generator=rng, device=x.device, dtype=x.dtype)
        return threat.project(x + threat.eps * torch.where(dice < 0.5, -1.0, 1.0), x)

    def step(self, best: Images, x: Images, threat: ThreatModel, draw: Draw) -> Images:
        """Recolour a square."""
        window = draw.window(x, draw.side, 0)
        tried = best.clone()
        tried[window] = x[window] + threat.eps * draw.sign
        return threat.project(tried, x)


@final
class L2Moves(Moves):
    """Peaks whose length is taken from elsewhere in the image (algorithm 3)."""

    def start(self, x: Images, threat: ThreatModel, rng: Generator) -> Images:
        """Return a grid of peaks, about five along the height."""
        side = max(min(x.shape[2:]) // TILES, 1)
        down, across = x.shape[2] // side, x.shape[3] // side
        dice = torch.rand(len(x), x.shape[1], down, across, generator=rng, device=x.device, dtype=x.dtype)
        tiles = torch.where(dice < 0.5, -1.0, 1.0).repeat_interleave(side, 2).repeat_interleave(side, 3)
        delta = torch.zeros_like(x)
        top, left = (x.shape[2] - down * side) // 2, (x.shape[3] - across * side) // 2
        grid = peaks(side, x).repeat(down, across)
        delta[:, :, top : top + down * side, left : left + across * side] = tiles * grid
        return threat.project(x + threat.eps * threat.steepest(delta), x)

    def step(self, best: Images, x: Images, threat: ThreatModel, draw: Draw) -> Images:
        """Put a peak into one window, with the length of what was there, of a second window and of what is unused."""
        side = min(max(draw.side, 3) | 1, *x.shape[2:])
        window, emptied = draw.window(x, side, 0), draw.window(x, side, 1)
        delta = best - x
        either = torch.zeros_like(delta)
        either[window] = 1.0
        either[emptied] = 1.0
        unused = (threat.eps**2 - delta.flatten(1).square().sum(1)).clamp_min(0).view(-1, 1, 1, 1)
        available = (length(delta * either).square() + unused / x.shape[1]).sqrt()
        peak = peaks(side, x)
        fresh = draw.sign * torch.where(draw.turned, peak.T, peak)
        mixed = fresh + delta[window] / length(delta[window]).clamp_min(1e-12)
        delta[emptied] = 0.0
        delta[window] = mixed / length(mixed).clamp_min(1e-12) * available
        return threat.project(x + threat.eps * threat.steepest(delta), x)


def length(delta: Tensor) -> Tensor:
    """Return the l2 norm of every channel, (B, C, 1, 1)."""
    norm: Tensor = delta.square().sum((2, 3), keepdim=True).sqrt()
    return norm


def peaks(side: int, like: Tensor) -> Tensor:
    """Return a peak above a trough, (side, side), of unit length (section 3.4, eq. 3)."""
    upper, lower = side // 2, side - side // 2
    both = torch.cat([peak(upper, side, like), -peak(lower, side, like)])
    return unit(both)


def peak(height: int, width: int, like: Tensor) -> Tensor:
    """Return a peak of unit length, falling from its middle in rings of 1/1 + 1/4 + ..."""
    if not height:
        return like.new_zeros(0, width)
    rows = (torch.arange(height, device=like.device) - height // 2).abs()
    columns = (torch.arange(width, device=like.device) - width // 2).abs()
    ring = torch.maximum(rows[:, None], columns)
    steps = 1 / torch.arange(1, max(height, width) // 2 + 2, device=like.device, dtype=like.dtype).square()
    heights = steps.flip(0).cumsum(0).flip(0)[ring]
    return unit(heights)


def unit(pattern: Tensor) -> Tensor:
    """Return a pattern scaled to length 1."""
    scaled: Tensor = pattern / pattern.norm().clamp_min(1e-12)
    return scaled
