"""Carlini & Wagner's descent in tanh variables, where no step can leave the box."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sparsemble.attacks.attack import input_gradient
from sparsemble.attacks.losses.margin import Margin
from sparsemble.attacks.minimum_norm import Nearest
from sparsemble.core.pass_counter import for_images
from sparsemble.core.types import Classifier, Counts, Flags, Images, PerImage

INSIDE = 1 - 1e-6
"""Pixels at 0 and 1 are moved in by this factor, or their tanh variable would be infinite."""
CHECKS = 10
"""How often an image is asked whether its least loss still falls, but with no fewer steps in between than `LULL`."""
LULL = 10
FALLING = 0.9999


@final
@dataclass(frozen=True, kw_only=True)
class TanhWalk:
    """Settings of the walk: minimise |x' - x|^2 + c max(kappa - margin, 0) over w with x' = (tanh(w) + 1) / 2."""

    steps: int
    step_size: float
    """Of Adam at the first step; falls linearly to nothing."""
    kappa: float

    def __call__(self, model: Classifier, nearest: Nearest, rows: Counts, c: PerImage, start: Images) -> Flags:
        """Walk from these points for the images at `rows`, and return which were misclassified on the way.

        Passes, each image: steps + 1 forward and steps backward; none once its loss stops falling or it is near
        enough.
        """
        broken = torch.zeros_like(c, dtype=torch.bool)
        active = torch.arange(len(rows), device=rows.device)
        w = torch.atanh((2 * start - 1) * INSIDE)
        adam = Adam(torch.zeros_like(w), torch.zeros_like(w), self.step_size)
        least = checked = torch.full_like(c, float("inf"))
        window = max(self.steps // CHECKS, LULL)
        for step in range(self.steps + 1):
            leaf = w.detach().requires_grad_(step < self.steps)
            with torch.set_grad_enabled(step < self.steps), for_images(rows[active]):
                point = (leaf.tanh() + 1) / 2
                logits = model(point)
                loss = self._loss(point, logits, nearest, rows[active], c[active])
            broken[active] |= nearest.see_(rows[active], point.detach(), logits.detach(), self.kappa)
            if step == self.steps:
                break
            w = adam.step(w, input_gradient(loss, leaf), step + 1, 1 - step / self.steps)
            going = nearest.is_open()[rows[active]]
            least = torch.minimum(least, loss.detach())
            if step % window == 0:
                going &= least <= FALLING * checked
                checked = least
            if not bool(going.all()):
                active, w, adam = active[going], w[going], adam.only(going)
                least, checked = least[going], checked[going]
                if not len(active):
                    break
        return broken

    def _loss(self, point: Images, logits: Tensor, nearest: Nearest, rows: Counts, c: PerImage) -> PerImage:
        margin = Margin()(logits, logits, nearest.y[rows])
        return (point - nearest.x[rows]).flatten(1).square().sum(1) + c * (self.kappa - margin).clamp_min(0)


@final
@dataclass
class Adam:
    """Adam (Kingma & Ba 2015) with moments that images can take along or leave with."""

    first: Tensor
    second: Tensor
    step_size: float
    decay: tuple[float, ...] = (0.9, 0.999)

    def step(self, w: Tensor, gradient: Tensor, count: int, share: float = 1.0) -> Tensor:
        """Return the variables after step number `count`, from 1, at a share of the step size."""
        a, b = self.decay
        self.first = a * self.first + (1 - a) * gradient
        self.second = b * self.second + (1 - b) * gradient.square()
        scale = (self.second / (1 - b**count)).sqrt() + 1e-8
        return w - share * self.step_size * self.first / (1 - a**count) / scale

    def only(self, kept: Flags) -> "Adam":
        """Return the moments of some images."""
        return Adam(self.first[kept], self.second[kept], self.step_size, self.decay)
