"""Square attack: random search with squares, no gradients (Andriushchenko et al. 2020)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Generator, Tensor

from sparsemble.attacks.attack import SMALLEST, Access, Attack, attacks
from sparsemble.attacks.best_points import BestPoints
from sparsemble.attacks.losses.margin import margin_of
from sparsemble.core.argument_checks import check_at_least, check_interval
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Counts, Images, Labels

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Points after which the fraction of changed pixels is halved, for a run of 10,000."""
LONGEST = 10_000
RESUMED_AT = LONGEST // 10
"""Position in that run at which `search_from` begins: larger squares would undo what gradients have achieved."""
TILES = 5
"""Tiles along the height of the start in l2 and l1."""


@final
@attacks.register("square")
@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Changes one square of the image at a time and keeps changes that raise the margin.

    Source: Andriushchenko et al. 2020, algorithms 1 to 3, margin loss; in l1 their l2 moves with l1 norms and the exact
    projection (Croce & Hein 2021, section 4). Departs: every image draws its own squares
    (the authors' code moves one square over the whole batch), and an image that is misclassified when clean is
    returned unchanged.
    """

    access: ClassVar[Access] = "scores"

    queries: int = 5000
    """Points tried, the start included, >= 1; a misclassified image takes no more."""
    p_init: float = 0.8
    """Fraction of the pixels in the first squares, in (0, 1]."""
    rescale: bool = True
    """Fit the published schedule of 10,000 points to `queries`; off: cut it short, as the authors' AutoAttack does."""

    def __post_init__(self) -> None:
        check_at_least(1, queries=self.queries)
        check_interval("(0, 1]", p_init=self.p_init)
        self._set_label(f"square{self.queries}")

    @torch.no_grad()
    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Search from a start of stripes (linf) or tiles (l2, l1)."""
        best = BestPoints.of_clean(x, model(x).argmax(1) != y)
        start = _moves_for(threat).start(x, threat, rng)
        sides = (self.side(query, x.shape[2], x.shape[3]) for query in range(self.queries))
        return _random_search(model, best, x, y, threat, sides, rng=rng, start=start).images

    def side(self, query: int, height: int, width: int) -> int:
        """Return the side of the squares tried at a point, in pixels, from 1 to the shorter side of the image.

        Args:
            query: number of the point, from 0 (the start).
            height: of the image, in pixels.
            width: of the image, in pixels.
        """
        position = (query - 1) * LONGEST // self.queries if self.rescale else query - 1
        fraction = self.p_init * 0.5 ** sum(position > halving for halving in HALVINGS)
        return min(max(round(math.sqrt(fraction * height * width)), 1), height, width)


def search_from(
    model: Classifier, points: BestPoints, x: Images, y: Labels, threat: ThreatModel, queries: int, *, rng: Generator
) -> BestPoints:
    """Continue from the best points of a gradient attack, by small squares that raise the margin.

    Source: Andriushchenko et al. 2020, the moves of algorithms 2 and 3 and the sizes of the last nine tenths of a
    search. Departs: they start from stripes or tiles.

    Args:
        model: maps images to logits.
        points: where to start, scored by margin; not changed.
        x: (B, C, H, W) clean images in [0, 1].
        y: (B) true classes.
        threat: norm and radius of the ball.
        queries: points tried for each image, >= 0.
        rng: source of random draws.
    """
    longest = Square(queries=LONGEST)
    positions = (RESUMED_AT + query * (LONGEST - RESUMED_AT) // queries for query in range(queries))
    sides = (longest.side(position, x.shape[2], x.shape[3]) for position in positions)
    best = points.only(torch.arange(len(x), device=x.device))
    return _random_search(model, best, x, y, threat, sides, rng=rng)


@torch.no_grad()
def _random_search(
    model: Classifier,
    best: BestPoints,
    x: Images,
    y: Labels,
    threat: ThreatModel,
    sides: Iterable[int],
    *,
    rng: Generator,
    start: Images | None = None,
) -> BestPoints:
    """Try one square after the other and keep in `best` those that raise the margin (algorithm 1).

    `sides` are those of the squares; the first query tries `start`, if given. Passes, each image: one forward for each
    side; none after a success.
    """
    moves = _moves_for(threat)
    for query, side in enumerate(sides):
        rows = best.open_rows()
        if not len(rows):
            break
        # Drawn for the whole batch, so that an image's draws do not depend on which others are misclassified.
        draw = SquareDraw.sample(x, side, rng)
        if start is not None and query == 0:
            tried = start[rows]
        else:
            tried = moves.step(best.images[rows], x[rows], threat, draw.only(rows))
        with for_images(rows):
            logits = model(tried)
        best.improve_(rows, tried, logits.argmax(1) != y[rows], margin_of(logits, y[rows]))
    return best


@final
@dataclass
class SquareDraw:
    """The random choices of one query, one row for each image."""

    side: int
    sign: Tensor
    """-1 or 1, (B, C, 1, 1)."""
    corners: Tensor
    """Top and left edge of two windows, as fractions of the free range, (B, 4)."""
    transposed: Tensor
    """Whether the pattern of a peak is transposed, (B, 1, 1, 1)."""

    @classmethod
    def sample(cls, x: Images, side: int, rng: Generator) -> "SquareDraw":
        """Draw for a batch.

        Args:
            x: (B, C, H, W) images.
            side: of the square, in pixels.
            rng: source of the draws.
        """
        dice = torch.rand(len(x), x.shape[1] + 5, generator=rng, device=x.device, dtype=torch.float64)
        sign = (dice[:, 5:, None, None] < 0.5).to(x.dtype) * 2 - 1
        return cls(side, sign, dice[:, :4], dice[:, 4, None, None, None] < 0.5)

    def only(self, rows: Counts) -> "SquareDraw":
        """Return the choices of some images."""
        return SquareDraw(self.side, self.sign[rows], self.corners[rows], self.transposed[rows])

    def window(self, x: Images, side: int, which: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the index of one square for each image.

        Args:
            x: (B, C, H, W) images.
            side: of the square, in pixels.
            which: 0 or 1, the first or the second window.

        Returns:
            Index of shape (B, C, side, side).
        """
        free = torch.tensor(x.shape[2:], device=x.device) - side + 1
        corner = (self.corners[:, 2 * which : 2 * which + 2] * free).long()
        along = torch.arange(side, device=x.device)
        rows = (corner[:, :1] + along).view(-1, 1, side, 1)
        columns = (corner[:, 1:] + along).view(-1, 1, 1, side)
        image = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1)
        return image, torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1), rows, columns


class Moves(ABC):
    """Start and moves of the search in one norm."""

    @abstractmethod
    def start(self, x: Images, threat: ThreatModel, rng: Generator) -> Images:
        """Return the first points.

        Args:
            x: (B, C, H, W) clean images in [0, 1].
            threat: norm and radius of the ball.
            rng: source of random draws.
        """

    @abstractmethod
    def step(self, best: Images, x: Images, threat: ThreatModel, draw: SquareDraw) -> Images:
        """Return the next points to try.

        Args:
            best: (B, C, H, W) best points so far.
            x: (B, C, H, W) clean images in [0, 1].
            threat: norm and radius of the ball.
            draw: random choices of this query.
        """


def _moves_for(threat: ThreatModel) -> Moves:
    """Return the moves in the norm of a threat model."""
    return LinfMoves() if threat.norm == "linf" else PeakMoves(2 if threat.norm == "l2" else 1)


@final
class LinfMoves(Moves):
    """Squares of one colour, eps away from the clean image (algorithm 2)."""

    def start(self, x: Images, threat: ThreatModel, rng: Generator) -> Images:
        """Return vertical stripes, one pixel wide."""
        batch, channels, _, width = x.shape
        dice = torch.rand(batch, channels, 1, width, generator=rng, device=x.device, dtype=x.dtype)
        return threat.project(x + threat.eps * torch.where(dice < 0.5, -1.0, 1.0), x)

    def step(self, best: Images, x: Images, threat: ThreatModel, draw: SquareDraw) -> Images:
        """Recolour a square."""
        window = draw.window(x, draw.side, 0)
        tried = best.clone()
        tried[window] = x[window] + threat.eps * draw.sign
        return threat.project(tried, x)


@final
@dataclass(frozen=True)
class PeakMoves(Moves):
    """Peaks whose norm is taken from elsewhere in the image (algorithm 3; for l1, Croce & Hein 2021, section 4)."""

    order: int
    """2 for l2, 1 for l1."""

    def start(self, x: Images, threat: ThreatModel, rng: Generator) -> Images:
        """Return a grid of peaks, about five along the height."""
        side = max(min(x.shape[2:]) // TILES, 1)
        down, across = x.shape[2] // side, x.shape[3] // side
        dice = torch.rand(len(x), x.shape[1], down, across, generator=rng, device=x.device, dtype=x.dtype)
        tiles = torch.where(dice < 0.5, -1.0, 1.0).repeat_interleave(side, 2).repeat_interleave(side, 3)
        delta = torch.zeros_like(x)
        top, left = (x.shape[2] - down * side) // 2, (x.shape[3] - across * side) // 2
        grid = peaks(side, x, self.order).repeat(down, across)
        delta[:, :, top : top + down * side, left : left + across * side] = tiles * grid
        return threat.project(x + self._spread(delta, threat), x)

    def step(self, best: Images, x: Images, threat: ThreatModel, draw: SquareDraw) -> Images:
        """Put a peak into one window, with the norm of that window, of a second one and of what eps leaves unused."""
        side = min(max(draw.side, 3) | 1, *x.shape[2:])
        window, emptied = draw.window(x, side, 0), draw.window(x, side, 1)
        delta = best - x
        either = torch.zeros_like(delta)
        either[window] = 1.0
        either[emptied] = 1.0
        used = delta.abs().pow(self.order).flatten(1).sum(1)
        unused = (threat.eps**self.order - used).clamp_min(0).view(-1, 1, 1, 1)
        available = (self._length(delta * either).pow(self.order) + unused / x.shape[1]).pow(1 / self.order)
        if self.order == 1:  # longer than the ball allows, because the projection then leaves few values
            available = available * x.shape[1]
        peak = peaks(side, x, self.order)
        fresh = draw.sign * torch.where(draw.transposed, peak.T, peak)
        mixed = fresh + delta[window] / self._length(delta[window]).clamp_min(SMALLEST)
        delta[emptied] = 0.0
        delta[window] = mixed / self._length(mixed).clamp_min(SMALLEST) * available
        return threat.project(x + self._spread(delta, threat), x)

    def _spread(self, delta: Images, threat: ThreatModel) -> Images:
        """Return a perturbation of norm eps; in l1 one that is too long stays so, as its projection is sparser."""
        if self.order == 2:
            return threat.eps * threat.steepest(delta)
        length = delta.flatten(1).abs().sum(1).clamp_min(SMALLEST).view(-1, 1, 1, 1)
        return delta * (threat.eps / length).clamp_min(1)

    def _length(self, delta: Tensor) -> Tensor:
        """Return the norm of every channel, (B, C, 1, 1)."""
        norm: Tensor = delta.abs().pow(self.order).sum((2, 3), keepdim=True).pow(1 / self.order)
        return norm


def peaks(side: int, like: Tensor, order: int) -> Tensor:
    """Return a peak above a trough, (side, side), of unit norm (section 3.4, eq. 3).

    Args:
        side: of the square, in pixels.
        like: gives device and dtype.
        order: of the norm, 1 or 2.
    """
    upper, lower = side // 2, side - side // 2
    return _unit(torch.cat([_peak(upper, side, like, order), -_peak(lower, side, like, order)]), order)


def _peak(height: int, width: int, like: Tensor, order: int) -> Tensor:
    """Return a peak of unit norm, falling from its middle in rings of 1/1 + 1/4 + ..."""
    if not height:
        return like.new_zeros(0, width)
    rows = (torch.arange(height, device=like.device) - height // 2).abs()
    columns = (torch.arange(width, device=like.device) - width // 2).abs()
    ring = torch.maximum(rows[:, None], columns)
    steps = 1 / torch.arange(1, max(height, width) // 2 + 2, device=like.device, dtype=like.dtype).square()
    heights = steps.flip(0).cumsum(0).flip(0)[ring]
    return _unit(heights, order)


def _unit(pattern: Tensor, order: int) -> Tensor:
    """Return a pattern scaled to norm 1."""
    scaled: Tensor = pattern / pattern.norm(p=order).clamp_min(SMALLEST)
    return scaled
