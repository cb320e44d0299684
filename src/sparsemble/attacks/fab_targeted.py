"""Targeted FAB, the fast adaptive boundary attack towards one class after another (Croce & Hein 2020)."""

from dataclasses import dataclass
from typing import final

from torch import Generator

from sparsemble.attacks.attack import attacks, likeliest_wrong
from sparsemble.attacks.fab import FABAttack, fab_start
from sparsemble.attacks.minimum_norm import NearestPoints
from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.types import Classifier


@final
@attacks.register("fab_targeted")
@dataclass(frozen=True, kw_only=True)
class FABTargeted(FABAttack):
    """FAB along the boundary with each of the likeliest wrong classes in turn, one backward pass a step.

    Source: Croce & Hein 2020 (Reliable evaluation, section 4) and the authors' AutoAttack: any misclassified point
    counts, whatever the target. With K classes there are min(targets, K - 1) targets. Departs: as `fab`; the classes
    are ranked once, on the clean image.
    """

    targets: int = 9
    """Wrong classes used as targets, the likeliest on the clean image first, >= 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, targets=self.targets)
        self._complete(f"fab{self.steps}t{self.targets}")

    def search(self, model: Classifier, nearest: NearestPoints, *, rng: Generator) -> None:
        """Search towards each target, from each start."""
        targets = likeliest_wrong(nearest.clean_logits, nearest.y, self.targets)
        for target in targets.split(1, dim=1):
            for restart in range(self.restarts):
                self._run(model, nearest, target, fab_start(restart, nearest, rng))
