"""Projected gradient descent (Madry et al. 2018)."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Generator

from sparsemble.attacks.attack import Attack, attacks, input_gradient, refuse_nan
from sparsemble.attacks.best_points import BestPoints
from sparsemble.attacks.losses.cross_entropy import CrossEntropy
from sparsemble.attacks.losses.loss import AttackLoss
from sparsemble.attacks.losses.margin import Margin
from sparsemble.attacks.pga import Evaluation, Progress, ascent_step, projected_gradient_ascent
from sparsemble.core.argument_checks import check_above_zero, check_at_least
from sparsemble.core.distributed_rng import normal_like
from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels


@final
@attacks.register("pgd")
@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Takes steps along the gradient of the loss, each followed by projection into the threat model.

    Source: Madry et al. 2018, section 2.1. Departs, where `keep_best` is on: returns the best point of the path over
    all restarts (misclassified before correct, then the higher loss), and leaves misclassified clean images alone.

    Alias `cw_linf`: the margin loss and 30 steps, which many papers on pruning and adversarial training call C&W.
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
    """What the steps maximise."""

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps, restarts=self.restarts)
        check_above_zero(step_size=self.step_size)
        if self.start_noise is not None and not (self.start_noise > 0 and self.random_start):
            raise InputError(f"start_noise = {self.start_noise:g} must be above 0 and needs random_start")
        if self.restarts > 1 and not (self.random_start and self.keep_best):
            raise InputError(f"restarts = {self.restarts} need random_start and keep_best")
        self._set_label(f"pgd{self.steps}" + f"x{self.restarts}" * (self.restarts > 1))

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Search from each start."""
        if not self.keep_best:
            return self._last_point(model, x, y, threat, rng)
        with torch.no_grad():
            clean_logits = model(x)
        refuse_nan(clean_logits)

        def objective(point: Images, progress: Progress) -> Evaluation:
            labels, logits = y[progress.rows], model(point)
            refuse_nan(logits.detach())
            loss = self.loss(logits, clean_logits[progress.rows], labels)
            return Evaluation(loss, logits.detach().argmax(1) != labels, loss.detach())

        return projected_gradient_ascent(
            objective,
            BestPoints.of_clean(x, clean_logits.argmax(1) != y),
            x,
            threat,
            steps=self.steps,
            step_size=self.step_size,
            starts=(self._start(x, threat, rng) for _ in range(self.restarts)),
            keep_start=self.random_start,  # the clean image must not stand for a failure
            stop_at_success=self.stop_at_success,
        ).images

    def _start(self, x: Images, threat: ThreatModel, rng: Generator) -> Images:
        if not self.random_start:
            return x
        if self.start_noise is None:
            return threat.random_start(x, rng)
        return threat.project(x + self.start_noise * normal_like(x, rng), x)

    def _last_point(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, rng: Generator) -> Images:
        """Return the end of one path; NaN is not checked, as `fit` does that in training."""
        clean_logits = None
        if not isinstance(self.loss, CrossEntropy | Margin):  # these do not use the clean logits
            with torch.no_grad():
                clean_logits = model(x)
        point = self._start(x, threat, rng)
        for _ in range(self.steps):
            point = point.detach().requires_grad_()
            logits = model(point)
            loss = self.loss(logits, logits.detach() if clean_logits is None else clean_logits, y)
            point = ascent_step(point.detach(), input_gradient(loss, point), x, threat, self.step_size)
        return point


attacks.alias("cw_linf", "pgd", steps=30, loss="margin", label="cw_linf")
