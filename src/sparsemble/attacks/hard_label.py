"""Attacks that see nothing but the answered class."""

from dataclasses import dataclass
from typing import final

from torch import Generator

from sparsemble.attacks.attack import Attack, attacks
from sparsemble.attacks.hop_skip_jump import search_border
from sparsemble.attacks.query_oracle import Oracle
from sparsemble.attacks.rays import search_rays
from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels


@final
@attacks.register("hard_label")
@dataclass(frozen=True, kw_only=True)
class HardLabel(Attack):
    """RayS for linf, HopSkipJump for l2: neither logits nor gradients are asked for, so neither can be masked.

    Source: Chen & Gu 2020 (RayS), Chen et al. 2020 (HopSkipJump). An image stops once it is broken inside the ball.
    """

    queries: int = 1000
    """Forward passes for each image at most, >= 1."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise InputError(f"queries = {self.queries} must be 1 or more")
        if not self.label:
            object.__setattr__(self, "label", f"hard_label{self.queries}")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Ask; where nothing inside the ball is misclassified, return the nearest point found brought into it."""
        oracle = Oracle.ask_about(model, x, y, threat, self.queries)
        if threat.norm == "linf":
            search_rays(oracle)
        else:
            search_border(oracle, rng)
        return oracle.inside(rng)
