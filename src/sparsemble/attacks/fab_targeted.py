"""Targeted FAB, the fast adaptive boundary attack towards one class after another (Croce & Hein 2020)."""

from dataclasses import dataclass
from typing import final

from torch import Generator

from sparsemble.attacks.attack import attacks, likeliest_wrong
from sparsemble.attacks.fab import FABPath, fab_start
from sparsemble.attacks.minimum_norm import MinimumNorm, NearestPoints
from sparsemble.core.errors import InputError
from sparsemble.core.types import Classifier


@final
@attacks.register("fab_targeted")
@dataclass(frozen=True, kw_only=True)
class FABTargeted(MinimumNorm):
    """FAB along the boundary with each of the likeliest wrong classes in turn, one backward pass a step.

    Source: Croce & Hein 2020 (Reliable evaluation, section 4) and the authors' AutoAttack: any misclassified point
    counts, whatever the target. With K classes there are min(targets, K - 1) targets. Departs: as `fab`; the classes
    are ranked once, on the clean image.
    """

    steps: int = 100
    """Steps from each start, >= 1."""
    targets: int = 9
    """Wrong classes used as targets, the likeliest on the clean image first, >= 1."""
    restarts: int = 1
    """Starts for each target, >= 1."""
    alpha_max: float = 0.1
    """Largest weight of the step that starts at the clean image, in [0, 1]."""
    eta: float = 1.05
    """Length of a step, the linearised boundary being at 1; >= 1."""
    beta: float = 0.9
    """Where to continue from a misclassified point, the clean image being at 0; in (0, 1)."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        self._path()
        if self.restarts < 1 or self.targets < 1:
            raise InputError(f"restarts = {self.restarts} and targets = {self.targets} must be 1 or more")
        if not self.label:
            object.__setattr__(self, "label", f"fab{self.steps}t{self.targets}")

    def search(self, model: Classifier, nearest: NearestPoints, *, rng: Generator) -> None:
        """Search towards each target, from each start."""
        targets = likeliest_wrong(nearest.clean_logits, nearest.y, self.targets)
        for target in targets.split(1, dim=1):
            for restart in range(self.restarts):
                self._path()(model, nearest, target, fab_start(restart, nearest, rng))

    def _path(self) -> FABPath:
        return FABPath(steps=self.steps, alpha_max=self.alpha_max, eta=self.eta, beta=self.beta)
