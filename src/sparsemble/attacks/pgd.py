"""Projected gradient descent (Madry et al. 2018)."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from sparsemble.attacks.apgd_core import Outcome
from sparsemble.attacks.attack import Attack, attacks, input_gradient
from sparsemble.attacks.losses.cross_entropy import CrossEntropy
from sparsemble.attacks.losses.loss import AttackLoss
from sparsemble.attacks.losses.margin import Margin
from sparsemble.core.distributed_rng import normal_like
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels, Logits, PerImage


@final
@attacks.register("pgd")
@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Repeated steps up the loss, projected back into the threat model.

    Source: Madry et al. 2018, section 2.1. Departs, where `keep_best` is on: keeps the best point of the path over
    all restarts (misclassified before correct, then the higher loss), and leaves alone what is broken already.
    """

    version: ClassVar[int] = 2

    steps: int = 20
    """Gradient steps, >= 1."""
    step_size: float = 0.25
    """Length of a step in units of eps, > 0; 0.25 is 2/255 at 8/255."""
    restarts: int = 1
    """Independent starts, >= 1."""
    random_start: bool = True
    """Start at a random allowed image, not at the clean one."""
    start_noise: float | None = None
    """Standard deviation of the normal noise of the random start, > 0, where images span [0, 1]; none: the start is
    uniform in the ball."""
    keep_best: bool = True
    """Return the best point of the path; off for training, where the last point is meant and one pass is saved."""
    stop_at_success: bool = True
    """With `keep_best`: return the first misclassified point, and take no passes after it; off where the images are
    to be shown to other models: then the highest loss is wanted."""
    loss: AttackLoss = CrossEntropy()
    """What the steps climb."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise InputError(f"steps = {self.steps} and restarts = {self.restarts} must be 1 or more")
        if not self.step_size > 0:
            raise InputError(f"step_size = {self.step_size:g} must be above 0 (it is in units of eps)")
        if self.start_noise is not None and not (self.start_noise > 0 and self.random_start):
            raise InputError(f"start_noise = {self.start_noise:g} must be above 0 and needs random_start")
        if self.restarts > 1 and not (self.random_start and self.keep_best):
            raise InputError(f"restarts = {self.restarts} need random_start and keep_best")
        if not self.label:
            times = f"x{self.restarts}" if self.restarts > 1 else ""
            object.__setattr__(self, "label", f"pgd{self.steps}{times}")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Search from each start."""
        if not self.keep_best:
            return self._last_point(model, x, y, threat, rng)
        with torch.no_grad():
            clean_logits = model(x)
        _refuse_nan(clean_logits)
        found = Outcome.nothing_yet(x)
        found.broken = clean_logits.argmax(1) != y
        for _ in range(self.restarts):
            # Drawn for the whole batch, so that an image's start does not depend on which others are left.
            start = self._start(x, threat, rng)
            rows = (~found.broken if self.stop_at_success else torch.ones_like(found.broken)).nonzero()[:, 0]
            self._walk(model, x, y, threat, clean_logits, start, rows, found)
        return found.images

    def _start(self, x: Images, threat: ThreatModel, rng: Generator) -> Images:
        if not self.random_start:
            return x
        if self.start_noise is None:
            return threat.random_start(x, rng)
        return threat.project(x + self.start_noise * normal_like(x, rng), x)

    def _walk(
        self,
        model: Classifier,
        x: Images,
        y: Labels,
        threat: ThreatModel,
        clean_logits: Logits,
        start: Images,
        rows: Int[Tensor, "R"],
        found: Outcome,
    ) -> None:
        """Climb with the images at `rows`, and show `found` every point on the way."""
        point = start[rows]
        for step in range(self.steps + 1):
            if not len(rows):
                return
            point = point.detach().requires_grad_(step < self.steps)
            with torch.set_grad_enabled(step < self.steps), for_images(rows):
                logits = model(point)
                loss = self.loss(logits, clean_logits[rows], y[rows])
            seen = logits.detach()
            _refuse_nan(seen)
            margin = Margin()(seen, seen, y[rows])
            here = Outcome(point.detach(), seen.argmax(1) != y[rows], loss.detach(), margin)
            if step or self.random_start:  # else it is the clean image, which must not stand for a failure
                found.improve_(rows, here)
            if step < self.steps:
                point = self._step(point, loss, x[rows], threat)
                going = ~here.broken if self.stop_at_success else torch.ones_like(here.broken)
                rows, point = rows[going], point[going]

    def _last_point(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, rng: Generator) -> Images:
        clean_logits = None
        if not isinstance(self.loss, CrossEntropy | Margin):  # these never look at the clean answer
            with torch.no_grad():
                clean_logits = model(x)
        point = self._start(x, threat, rng)
        for _ in range(self.steps):
            point = point.detach().requires_grad_()
            logits = model(point)
            loss = self.loss(logits, logits.detach() if clean_logits is None else clean_logits, y)
            point = self._step(point, loss, x, threat)
        return point

    def _step(self, point: Images, loss: PerImage, x: Images, threat: ThreatModel) -> Images:
        gradient = input_gradient(loss, point)
        if self.keep_best:  # in training, `fit` finds NaN itself and says what to do
            _refuse_nan(gradient)
        move = self.step_size * threat.eps * threat.steepest(gradient)
        return threat.project(point.detach() + move, x)


def _refuse_nan(found: Tensor) -> None:
    """Stop at NaN: its argmax looks like a wrong answer, its sign like no gradient, and no comparison holds."""
    if found.isnan().any():
        raise RunError("an attack met NaN; does the model return NaN or infinite logits?")
