"""Targeted Auto-PGD that spends its steps where a border is near."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.apgd_targeted import Towards, likeliest_wrong
from sparsemble.attacks.ascent import Ascent, Outcome, mean_logits, start_at_edge
from sparsemble.attacks.attack import Attack, attacks
from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels, PerImage


@final
@attacks.register("apgd_focused")
@dataclass(frozen=True, kw_only=True)
class APGDFocused(Attack):
    """A short walk towards every target, then long ones towards those that the short ones nearly reached.

    A target is nearly reached if the way left to its border is at most `reach` times the way that the short walk
    came; the nearest comes first. The measure has no unit, so that the scale of the logits does not matter. The
    walks are those of `apgd_targeted` (Croce & Hein 2020); the division of steps is ours.
    """

    glance: int = 15
    """Steps of the short walks, >= 1."""
    steps: int = 100
    """Steps of the long walks, >= 1."""
    targets: int = 9
    """Wrong classes to glance at, the likeliest on the clean image first, >= 1."""
    reach: float = 0.3
    """How far a long walk may have to go, the short one's way being 1; > 0."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        if self.glance < 1 or self.steps < 1 or self.targets < 1:
            counts = f"glance = {self.glance}, steps = {self.steps} and targets = {self.targets}"
            raise InputError(f"{counts} must be 1 or more")
        if not self.reach > 0:
            raise InputError(f"reach = {self.reach:g} must be above 0")
        if not self.label:
            object.__setattr__(self, "label", f"apgd{self.glance}+{self.steps}t{self.targets}")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Glance, then walk."""
        clean_logits = mean_logits(model, x, 1)
        found = Outcome.nothing_yet(x)
        found.broken = clean_logits.argmax(1) != y
        targets = likeliest_wrong(clean_logits, y, self.targets)
        behind = clean_logits.gather(1, y[:, None]) - clean_logits.gather(1, targets)
        left = torch.full_like(behind, float("inf"))
        for i, target in enumerate(targets.unbind(1)):
            start = start_at_edge(x, threat, rng)
            rows = (~found.broken).nonzero()[:, 0]
            if not len(rows):
                return found.images
            short = walk_towards(target[rows], model, x[rows], y[rows], threat, start[rows], self.glance)
            found.improve_(rows, short)
            left[rows, i] = way_left(behind[rows, i], short.margin)
        for turn in left.argsort(dim=1).split(1, dim=1):
            start = start_at_edge(x, threat, rng)
            nearly = left.gather(1, turn)[:, 0] <= self.reach
            rows = (~found.broken & nearly).nonzero()[:, 0]
            if not len(rows):
                break
            target = targets.gather(1, turn)[rows, 0]
            found.improve_(rows, walk_towards(target, model, x[rows], y[rows], threat, start[rows], self.steps))
        return found.images


def walk_towards(
    target: Labels, model: Classifier, x: Images, y: Labels, threat: ThreatModel, start: Images, steps: int
) -> Outcome:
    """Walk towards one target an image; scored by margin, since ratios towards two targets cannot be compared."""
    walked = Ascent(steps=steps)(model, x, y, threat, start, Towards(target, y))
    return replace(walked, score=walked.margin)


def way_left(behind: PerImage, margin: PerImage) -> PerImage:
    """Return the way from a point to the border over the way from the clean image to the point.

    Args:
        behind: (B,) by how much the target's logit was below the true one on the clean image, >= 0.
        margin: (B,) best wrong logit minus the true one at the point.
    """
    come = behind + margin
    return torch.where(come > 0, -margin / come, float("inf"))
