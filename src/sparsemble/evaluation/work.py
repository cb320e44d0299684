"""How much work an attack is, in forward and backward passes: expected before it runs, counted after."""

import math
from dataclasses import dataclass
from typing import final

from sparsemble.attacks.apgd_focused import APGDFocused
from sparsemble.attacks.autoattack import AutoAttack
from sparsemble.attacks.black_box.transfer import Transfer
from sparsemble.attacks.bpda import BPDA
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.attacks.eot import EOT
from sparsemble.evaluation.job import AnyAttack
from sparsemble.evaluation.outcome_store import Outcome

BACKWARD = 1.5
"""Time of a backward pass towards the image, in forward passes."""
FACTORS = ("steps", "queries", "draws", "restarts", "rounds", "searches")
"""Settings of attacks whose product is the number of points they evaluate for an image."""
AUTOATTACK = {"fast": (600.0, 230.0), "exact": (7800.0, 1900.0)}
"""Passes for an image that withstands every part, measured on `digits`."""
NEARLY_REACHED = 0.2
"""Fraction of the restarts and queries of `apgd_focused` that an image is expected to take."""
STANDING = 0.5
"""Fraction of images that is expected to withstand an attack."""


@final
@dataclass(frozen=True)
class Work:
    """Passes of one image through models, each member of an ensemble counted."""

    forward: float
    backward: float = 0.0

    @property
    def units(self) -> float:
        """The work in forward passes."""
        return self.weighed(BACKWARD)

    def weighed(self, backward: float) -> float:
        """Return the work in forward passes, where a backward pass counts as so many of them."""
        return self.forward + backward * self.backward

    def by_forward(self, forward: float) -> float:
        """Return the units of work of so many forward passes, with as many backward passes to each as in this work."""
        return forward * self.units / self.forward if self.forward else 0.0

    def times(self, factor: float) -> "Work":
        """Return this work, so many times."""
        return Work(self.forward * factor, self.backward * factor)

    def plus(self, other: "Work") -> "Work":
        """Return this work and another one."""
        return Work(self.forward + other.forward, self.backward + other.backward)

    @staticmethod
    def of(outcome: Outcome) -> "Work":
        """Return the work that an attack was."""
        forward, backward = outcome.total_passes()
        return Work(forward, backward)


def expected_work(attack: AnyAttack, members: int, classes: int) -> Work:
    """Return the work of an attack on one image that withstands it: roughly, for the time left and budgets.

    Args:
        attack: any attack; that of one from outside is estimated from its settings.
        members: of the ensemble; 1 for a single model.
        classes: of the data set.
    """
    if isinstance(attack, SurrogateAttack):
        seen = getattr(attack.surrogate, "length", 1 if hasattr(attack.surrogate, "index") else members)
        work = expected_work(attack.attack, seen, classes)
        return Work(work.forward * (1 + attack.use_deployed_logits), work.backward)
    if isinstance(attack, EOT):
        return expected_work(attack.attack, members, classes).times(attack.passes)
    if isinstance(attack, Transfer | BPDA):
        return expected_work(attack.attack, members if isinstance(attack, BPDA) else 1, classes)
    if isinstance(attack, AutoAttack) and attack.variant == "standard":
        return Work(*AUTOATTACK[attack.mode]).times(members)
    if isinstance(attack, APGDFocused):
        probes, targets = attack.probe_steps, min(attack.targets, classes - 1)
        restarts = NEARLY_REACHED * attack.restarts * attack.steps
        forward = targets * (probes + 1) + restarts + NEARLY_REACHED * attack.queries
        return Work(forward, targets * probes + restarts).times(members)
    points = math.prod(max(1, int(getattr(attack, name, 1))) for name in FACTORS)
    points *= max(1, min(int(getattr(attack, "targets", 1)), classes - 1))
    gradient = not any(hasattr(attack, name) for name in ("queries", "draws"))
    work = Work(points + 1, points if gradient else 0).times(members)
    return work.times(members) if isinstance(attack, EnsembleAttack) and hasattr(attack, "rounds") else work


def expected_shard(attack: AnyAttack, members: int, classes: int, images: int) -> Work:
    """Return the work of an attack on a shard, some of whose images are expected to withstand it.

    Args:
        attack: any attack.
        members: of the ensemble; 1 for a single model.
        classes: of the data set.
        images: in the shard.
    """
    inner = attack.attack if isinstance(attack, SurrogateAttack | Transfer | BPDA) else attack
    stops = getattr(inner, "stop_at_success", not isinstance(inner, EnsembleAttack))
    return expected_work(attack, members, classes).times(images * (STANDING if stops else 1.0))
