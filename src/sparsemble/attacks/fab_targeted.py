"""Fast adaptive boundary attack towards one class after another (Croce & Hein 2020)."""

from dataclasses import dataclass
from typing import final

from torch import Generator

from sparsemble.attacks.apgd_targeted import likeliest_wrong
from sparsemble.attacks.attack import attacks
from sparsemble.attacks.boundary_walk import BoundaryWalk, start_for
from sparsemble.attacks.minimum_norm import MinimumNorm, Nearest
from sparsemble.core.errors import InputError
from sparsemble.core.types import Classifier


@final
@attacks.register("fab_targeted")
@dataclass(frozen=True, kw_only=True)
class FABTargeted(MinimumNorm):
    """FAB along the border with each of the likeliest wrong classes in turn, one backward pass a step.

    Source: Croce & Hein 2020 (Reliable evaluation, section 4) and the authors' AutoAttack: any misclassified point
    counts, whatever the target. With K classes it goes through min(targets, K - 1). Departs: as `fab`; the classes
    are ranked once, on the clean image.
    """

    steps: int = 100
    """Steps of each walk, >= 1."""
    targets: int = 9
    """Wrong classes to walk along, the likeliest on the clean image first, >= 1."""
    restarts: int = 1
    """Walks for each target, >= 1."""
    alpha_max: float = 0.1
    """Largest share of the step that starts at the clean image."""
    eta: float = 1.05
    """How far a step goes, the border being at 1."""
    beta: float = 0.9
    """Where to go on from a misclassified point, the clean image being at 0."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        self._walk()
        if self.restarts < 1 or self.targets < 1:
            raise InputError(f"restarts = {self.restarts} and targets = {self.targets} must be 1 or more")
        if not self.label:
            object.__setattr__(self, "label", f"fab{self.steps}t{self.targets}")

    def approach(self, model: Classifier, nearest: Nearest, *, rng: Generator) -> None:
        """Walk towards each target, from each start."""
        targets = likeliest_wrong(nearest.clean_logits, nearest.y, self.targets)
        for target in targets.split(1, dim=1):
            for restart in range(self.restarts):
                self._walk()(model, nearest, target, start_for(restart, nearest, rng))

    def _walk(self) -> BoundaryWalk:
        return BoundaryWalk(steps=self.steps, alpha_max=self.alpha_max, eta=self.eta, beta=self.beta)
