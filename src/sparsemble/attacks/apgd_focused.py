"""Targeted Auto-PGD with restarts concentrated on the targets that are nearly reached; a part of fast AutoAttack."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Generator, Tensor

from sparsemble.attacks.apgd_core import APGDSearch, plain_logits, random_start_at_eps
from sparsemble.attacks.apgd_targeted import TargetedDLR
from sparsemble.attacks.attack import Attack, attacks, likeliest_wrong
from sparsemble.attacks.best_points import BestPoints
from sparsemble.attacks.black_box.square import search_from
from sparsemble.core.argument_checks import check_above_zero, check_at_least
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Counts, Images, Labels, PerImage


@final
@attacks.register("apgd_focused")
@dataclass(frozen=True, kw_only=True)
class APGDFocused(Attack):
    """A short probe towards every target, then restarts towards the target that was nearly reached.

    The distance of a target is what remains of the margin divided by what the best run has gained (`remaining`). It
    has no unit, so that the scale of the logits does not matter. Each restart goes to the target of least distance
    plus `revisit_penalty` for each restart it has had, so that an image gets more restarts the nearer it is to
    misclassification, spread over its targets; none once no target lies within `max_distance`. Last, where a target
    came within `max_distance`, a random search with squares continues from the best point. The runs are those of
    `apgd_targeted` (Croce & Hein 2020); how steps are divided and the last search are ours.
    """

    version: ClassVar[int] = 2

    probe_steps: int = 15
    """Steps of the probe towards every target, >= 1."""
    steps: int = 30
    """Steps of each restart, >= 1; ten of these find more than three of 100 steps."""
    targets: int = 9
    """Wrong classes that are probed, the likeliest on the clean image first, >= 1."""
    max_distance: float = 0.3
    """Distance, penalties included, up to which a target gets restarts; > 0."""
    revisit_penalty: float = 0.03
    """Added to the distance of a target for each restart it has had, > 0."""
    restarts: int = 20
    """Most restarts of an image, >= 1."""
    queries: int = 500
    """Points that the random search tries, >= 0."""

    def __post_init__(self) -> None:
        check_at_least(1, probe_steps=self.probe_steps, steps=self.steps, targets=self.targets, restarts=self.restarts)
        check_above_zero(max_distance=self.max_distance, revisit_penalty=self.revisit_penalty)
        check_at_least(0, queries=self.queries)
        self._set_label(f"apgd{self.probe_steps}+{self.steps}t{self.targets}")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Probe, restart, search with squares."""
        state = _TargetStates.of_clean(model, x, y, threat, self.targets)
        for index in range(state.targets.shape[1]):
            rows, start = state.best.open_rows(), random_start_at_eps(x, threat, rng)
            state.attack_(rows, torch.full_like(rows, index), self.probe_steps, start[rows])
        visits = torch.zeros_like(state.distance)
        for _ in range(self.restarts):
            distance, target = (state.distance + self.revisit_penalty * visits).min(1)
            rows = (~state.best.success & (distance <= self.max_distance)).nonzero()[:, 0]
            if not len(rows):
                break
            state.attack_(rows, target[rows], self.steps, random_start_at_eps(x, threat, rng)[rows])
            visits[rows, target[rows]] += 1
        near = (~state.best.success & (state.distance.amin(1) <= self.max_distance)).nonzero()[:, 0]
        with for_images(near):
            last = search_from(model, state.best.only(near), x[near], y[near], threat, self.queries, rng=rng)
        state.best.improve_(near, last.images, last.success, last.score)
        return state.best.images


@final
@dataclass
class _TargetStates:
    """How near each image's targets have been reached."""

    model: Classifier
    x: Images
    y: Labels
    threat: ThreatModel
    targets: Tensor
    """Wrong classes, (B, J)."""
    clean_gap: Tensor
    """True logit minus the target's on the clean image, (B, J)."""
    distance: Tensor
    """Least distance so far (see `remaining`), (B, J)."""
    best: BestPoints
    """Scored by margin, since ratios towards two targets cannot be compared."""

    @classmethod
    def of_clean(cls, model: Classifier, x: Images, y: Labels, threat: ThreatModel, count: int) -> "_TargetStates":
        """Return the states before any run, by one forward pass."""
        logits = plain_logits(model, x)
        targets = likeliest_wrong(logits, y, count)
        gap = logits.gather(1, y[:, None]) - logits.gather(1, targets)
        best = BestPoints.of_clean(x, logits.argmax(1) != y)
        return cls(model, x, y, threat, targets, gap, torch.full_like(gap, float("inf")), best)

    def attack_(self, rows: Counts, target: Counts, steps: int, start: Images) -> None:
        """Run targeted APGD on some images."""
        if not len(rows):
            return
        x, y = self.x[rows], self.y[rows]
        loss = TargetedDLR(self.targets[rows, target], y)
        with for_images(rows):
            points, margin = APGDSearch(steps=steps)(self.model, x, y, self.threat, start, loss)
        self.best.improve_(rows, points.images, points.success, margin)
        distance = remaining(self.clean_gap[rows, target], margin)
        self.distance[rows, target] = torch.minimum(self.distance[rows, target], distance)


def remaining(clean_gap: PerImage, margin: PerImage) -> PerImage:
    """Return what remains of the margin at a point, divided by its gain since the clean image; inf without a gain."""
    gained = clean_gap + margin
    return torch.where(gained > 0, -margin / gained, float("inf"))
