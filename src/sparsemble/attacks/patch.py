"""An adversarial patch: a square of any content, at a place that is searched for (Rao et al. 2020)."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Generator, Tensor

from sparsemble.attacks.attack import DEFAULT_SEED, Labelled, input_gradient, refuse_nan, refusing_other_labels
from sparsemble.attacks.best_points import BestPoints
from sparsemble.attacks.losses.margin import margin_of
from sparsemble.core.argument_checks import check_above_zero, check_at_least, check_interval
from sparsemble.core.distributed_rng import uniform_like
from sparsemble.core.pass_counter import for_images
from sparsemble.core.tensor_checks import checked_images, checked_labels
from sparsemble.core.types import Classifier, Images, Labels, seeded

OUTSIDE = "an image with a patch lies in no ball around the clean one; call sparsemble.attacks.Patch from Python"
"""Why an evaluation does not take it among its attacks."""
Corners = Int[Tensor, "B 2"]
"""Top and left edge of a square, in pixels."""
MOVE_EVERY = 4
"""Steps after each of which another place is tried."""
LAST_MOVE = 0.5
"""Fraction of the steps after which the patch stays where it is."""


@final
@dataclass(frozen=True, kw_only=True)
class Patch(Labelled):
    """Finds, for each image, a square whose content makes the model err; all other pixels stay as they are.

    The first start is where the gradient is largest, later ones are random. Signed steps on the margin change the
    content, and during the first half the square tries to move by a random distance, and does where the margin grows.

    Not an `Attack`, and not part of an evaluation's worst case: an image with a patch lies in no ball around the clean
    one. Source: Brown et al. 2017 and Rao et al. 2020 (location optimisation), section 3. Departs: the first place,
    steps that shrink, and an image stops at its first misclassified point.
    """

    name: ClassVar[str] = "patch"

    area: float = 0.05
    """Fraction of the pixels that the square covers, in (0, 1]."""
    steps: int = 100
    """Gradient steps of each start, >= 1."""
    step_size: float = 0.1
    """Length of the first steps, > 0, where a pixel spans 0 to 1; it falls to 0."""
    restarts: int = 3
    """Starts, >= 1."""

    def __post_init__(self) -> None:
        check_interval("(0, 1]", area=self.area)
        check_at_least(1, steps=self.steps, restarts=self.restarts)
        check_above_zero(step_size=self.step_size)
        self._set_label(f"patch{100 * self.area:g}")

    def side(self, height: int, width: int) -> int:
        """Return the side of the square in pixels, 1 or more, for images of this size."""
        return min(max(round(math.sqrt(self.area * height * width)), 1), height, width)

    def __call__(self, model: Classifier, x: Images, y: Labels, *, rng: Generator | None = None) -> Images:
        """Return images with a patch; those that are misclassified when clean are returned unchanged.

        Passes, each image: at most restarts (steps + 1 + steps / 8) + 2 forward and restarts (steps + 1) backward.

        Args:
            model: maps images to logits; differentiable.
            x: (B, C, H, W) clean images in [0, 1].
            y: (B) true classes.
            rng: source of random draws, on the device of `x`; None uses a fixed seed.

        Returns:
            (B, C, H, W) images in [0, 1] that differ from `x` inside one square each.

        Raises:
            InputError: images outside [0, 1].
            RunError: the model returned NaN.
        """
        x = checked_images(x)
        y = checked_labels(y, len(x)).to(x.device)
        if not len(x):
            return x
        model = refusing_other_labels(model, y)
        rng = rng if rng is not None else seeded(DEFAULT_SEED, x.device)
        side = self.side(*x.shape[2:])
        with torch.no_grad():
            best = BestPoints.of_clean(x, model(x).argmax(1) != y)
        for restart in range(self.restarts):
            corner = _random_corners(x, side, rng)
            if not len(best.open_rows()):
                break
            if not restart:
                corner = _salient_corners(model, x, y, side, best, corner)
            self._run(model, best, x, y, corner, uniform_like(x[:, :, :side, :side], rng), rng)
        return best.images

    def _run(
        self, model: Classifier, best: BestPoints, x: Images, y: Labels, corner: Corners, patch: Tensor, rng: Generator
    ) -> None:
        """Change content and place from one start."""
        for step in range(self.steps + 1):
            elsewhere = _moved(corner, x, patch.shape[2], rng)
            rows = best.open_rows()
            if not len(rows):
                return
            at = _square(corner[rows], x, patch.shape[2])
            leaf = x[rows].index_put(at, patch[rows]).requires_grad_()
            with torch.enable_grad(), for_images(rows):
                logits = model(leaf)
                margin = margin_of(logits, y[rows])
            slope, margin = input_gradient(margin, leaf)[at], margin.detach()
            refuse_nan(margin)
            best.improve_(rows, leaf.detach(), logits.detach().argmax(1) != y[rows], margin)
            if step == self.steps:
                return
            length = self.step_size * (1 - step / self.steps)
            patch[rows] = (patch[rows] + length * slope.sign()).clamp(0, 1)
            if step % MOVE_EVERY == 0 and step < LAST_MOVE * self.steps:
                there = x[rows].index_put(_square(elsewhere[rows], x, patch.shape[2]), patch[rows])
                with torch.no_grad(), for_images(rows):
                    logits = model(there)
                reached = margin_of(logits, y[rows])
                best.improve_(rows, there, logits.argmax(1) != y[rows], reached)
                corner[rows] = torch.where((reached > margin)[:, None], elsewhere[rows], corner[rows])


def _square(corner: Corners, x: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the index of one square in each image, (B, C, side, side)."""
    along = torch.arange(side, device=x.device)
    image = torch.arange(len(corner), device=x.device).view(-1, 1, 1, 1)
    channel = torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1)
    down, across = (corner[:, :1] + along)[:, None, :, None], (corner[:, 1:] + along)[:, None, None, :]
    return image, channel, down, across


def _random_corners(x: Images, side: int, rng: Generator) -> Corners:
    free = torch.tensor(x.shape[2:], device=x.device) - side + 1
    return (uniform_like(x.new_empty(len(x), 2), rng) * free).long()


def _moved(corner: Corners, x: Images, side: int, rng: Generator) -> Corners:
    """Return places up to half a side away."""
    reach = max(side // 2, 1)
    by = (uniform_like(x.new_empty(len(x), 2), rng) * (2 * reach + 1)).long() - reach
    return torch.minimum((corner + by).clamp_min(0), torch.tensor(x.shape[2:], device=x.device) - side)


def _salient_corners(model: Classifier, x: Images, y: Labels, side: int, best: BestPoints, others: Corners) -> Corners:
    """Return the squares in which the gradient of the margin is largest; `others` for images that need none."""
    rows, corner = best.open_rows(), others.clone()
    leaf = x[rows].clone().requires_grad_()
    with torch.enable_grad(), for_images(rows):
        slope = input_gradient(margin_of(model(leaf), y[rows]), leaf)
    inside = F.avg_pool2d(slope.abs().sum(1, keepdim=True), side, stride=1)
    largest = inside.flatten(1).argmax(1)
    corner[rows] = torch.stack([largest // inside.shape[3], largest % inside.shape[3]], dim=1)
    return corner
