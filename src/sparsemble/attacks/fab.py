"""Fast adaptive boundary attack (Croce & Hein 2020)."""

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
@attacks.register("fab")
@dataclass(frozen=True, kw_only=True)
class FAB(MinimumNorm):
    """Steps to the nearest linearised border, drawn towards the clean image.

    Source: Croce & Hein 2020 (Minimally distorted adversarial examples), algorithm 1, with the starts of the authors'
    AutoAttack: the first at the clean image, later ones at random points half as far away as the best point or the
    ball's border. Each step takes K - 1 backward passes; for many classes see `fab_targeted`. Departs: where a
    distance is near enough (`enough`, the ball's radius in `perturb`), an image takes no further passes.
    """

    steps: int = 100
    """Steps of each walk, >= 1."""
    restarts: int = 1
    """Walks, >= 1."""
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
        if self.restarts < 1:
            raise InputError(f"restarts = {self.restarts} must be 1 or more")
        if not self.label:
            times = f"x{self.restarts}" if self.restarts > 1 else ""
            object.__setattr__(self, "label", f"fab{self.steps}{times}")

    def approach(self, model: Classifier, nearest: Nearest, *, rng: Generator) -> None:
        """Walk from each start."""
        classes = nearest.clean_logits.shape[1]
        others = likeliest_wrong(nearest.clean_logits, nearest.y, classes - 1)
        for restart in range(self.restarts):
            self._walk()(model, nearest, others, start_for(restart, nearest, rng))

    def _walk(self) -> BoundaryWalk:
        return BoundaryWalk(steps=self.steps, alpha_max=self.alpha_max, eta=self.eta, beta=self.beta)
