"""Targeted Auto-PGD that spends its steps where a border is near."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Generator, Tensor

from sparsemble.attacks.apgd_core import Ascent, Outcome, mean_logits, start_at_edge
from sparsemble.attacks.apgd_targeted import Towards, likeliest_wrong
from sparsemble.attacks.attack import Attack, attacks
from sparsemble.attacks.search_on import search_on
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Counts, Flags, Images, Labels, PerImage


@final
@attacks.register("apgd_focused")
@dataclass(frozen=True, kw_only=True)
class APGDFocused(Attack):
    """A short walk towards every target, then walk after walk towards the one that was nearly reached.

    How near a target is: the way left to its border, the way that the best walk came being 1. The measure has no
    unit, so that the scale of the logits does not matter. Every further walk, from a new start, costs its target
    `toll`, so that an image gets the more walks the nearer it is, spread over its targets; it is left alone once no
    target is within `reach`. Last, where a target came within `reach`, a blind search goes on from the best point.
    The walks are those of `apgd_targeted` (Croce & Hein 2020); how steps are divided and the end are ours.
    """

    version: ClassVar[int] = 2

    glance: int = 15
    """Steps of the walk towards every target, >= 1."""
    steps: int = 30
    """Steps of the further walks, >= 1; ten of these find more than three of 100 steps."""
    targets: int = 9
    """Wrong classes to glance at, the likeliest on the clean image first, >= 1."""
    reach: float = 0.3
    """How far a target may be, tolls included, to be walked to; > 0."""
    toll: float = 0.03
    """What each further walk adds to the way left to its target, > 0."""
    walks: int = 20
    """Most further walks of an image, >= 1."""
    queries: int = 500
    """Points that the blind search tries, >= 0."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        if min(self.glance, self.steps, self.targets, self.walks) < 1:
            counts = f"glance = {self.glance}, steps = {self.steps}, targets = {self.targets}"
            raise InputError(f"{counts} and walks = {self.walks} must be 1 or more")
        if not (self.reach > 0 and self.toll > 0):
            raise InputError(f"reach = {self.reach:g} and toll = {self.toll:g} must be above 0")
        if self.queries < 0:
            raise InputError(f"queries = {self.queries} must be 0 or more")
        if not self.label:
            object.__setattr__(self, "label", f"apgd{self.glance}+{self.steps}t{self.targets}")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Glance, walk, search."""
        hunt = Hunt.begin(model, x, y, threat, self.targets)
        for target in range(hunt.targets.shape[1]):
            rows = hunt.standing().nonzero()[:, 0]
            hunt.walk_(rows, torch.full_like(rows, target), self.glance, start_at_edge(x, threat, rng)[rows])
        made = torch.zeros_like(hunt.left)
        for _ in range(self.walks):
            price, which = (hunt.left + self.toll * made).min(1)
            rows = (hunt.standing() & (price <= self.reach)).nonzero()[:, 0]
            if not len(rows):
                break
            hunt.walk_(rows, which[rows], self.steps, start_at_edge(x, threat, rng)[rows])
            made[rows, which[rows]] += 1
        near = (hunt.standing() & (hunt.left.amin(1) <= self.reach)).nonzero()[:, 0]
        with for_images(near):
            last = search_on(model, hunt.found.only(near), x[near], y[near], threat, self.queries, rng=rng)
        hunt.found.improve_(near, last)
        return hunt.found.images


@final
@dataclass
class Hunt:
    """What is known of each image's targets while walks are made."""

    model: Classifier
    x: Images
    y: Labels
    threat: ThreatModel
    targets: Tensor
    """Wrong classes, (B, targets)."""
    behind: Tensor
    """By how much their logits are below the true one on the clean image, (B, targets)."""
    left: Tensor
    """Least way left to their borders so far, (B, targets)."""
    found: Outcome
    """The best points, scored by margin, since ratios towards two targets cannot be compared."""

    @classmethod
    def begin(cls, model: Classifier, x: Images, y: Labels, threat: ThreatModel, most: int) -> "Hunt":
        """Look at the clean images."""
        logits = mean_logits(model, x, 1)
        targets = likeliest_wrong(logits, y, most)
        behind = logits.gather(1, y[:, None]) - logits.gather(1, targets)
        found = Outcome.nothing_yet(x)
        found.broken = logits.argmax(1) != y
        return cls(model, x, y, threat, targets, behind, torch.full_like(behind, float("inf")), found)

    def standing(self) -> Flags:
        """Say which images no walk has broken."""
        return ~self.found.broken

    def walk_(self, rows: Counts, which: Counts, steps: int, start: Images) -> None:
        """Walk with some images, each towards one target, named by its place in `targets`."""
        if not len(rows):
            return
        x, y = self.x[rows], self.y[rows]
        walk = Towards(self.targets[rows, which], y)
        with for_images(rows):
            walked = Ascent(steps=steps)(self.model, x, y, self.threat, start, walk)
        self.found.improve_(rows, replace(walked, score=walked.margin))
        now = way_left(self.behind[rows, which], walked.margin)
        self.left[rows, which] = torch.minimum(self.left[rows, which], now)


def way_left(behind: PerImage, margin: PerImage) -> PerImage:
    """Return the way from a point to the border over the way from the clean image to the point.

    Args:
        behind: (B,) by how much the target's logit was below the true one on the clean image, >= 0.
        margin: (B,) best wrong logit minus the true one at the point.
    """
    come = behind + margin
    return torch.where(come > 0, -margin / come, float("inf"))
