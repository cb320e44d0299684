"""The interface of attacks on an ensemble and its stopping rule together."""

from abc import abstractmethod
from typing import ClassVar, final

from torch import Generator

from sparsemble.attacks.attack import search_inside
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.registry import Component, Registry
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels


class EnsembleAttack(Component):
    """Finds, for each image, a bad one for a deployed ensemble: members, combiner and stopping rule.

    What `Attack` promises of a model holds here for every member. Whether an image is broken is for the deployed
    decision to say, over everything that any attack made for it.
    """

    aims_at_cost: ClassVar[bool] = False
    """Whether it is after the members that run, and so has a use for images that are misclassified anyway."""
    label: str
    """Name in results."""

    @final
    def __call__(
        self, ensemble: Ensemble, rule: StoppingRule, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Images:
        """Return adversarial images.

        Args:
            ensemble: in eval mode.
            rule: the deployed rule.
            x: (B, C, H, W) in [0, 1].
            y: (B) true classes.
            threat: where the adversarial image may lie.
            rng: draws random starts, on the device of `x`.

        Raises:
            InputError: images outside [0, 1].
            RunError: the attack broke its own box or ball, or met NaN.
        """
        return search_inside(threat, x, lambda: self.perturb(ensemble, rule, x, y, threat, rng=rng), self.name)

    @abstractmethod
    def perturb(
        self, ensemble: Ensemble, rule: StoppingRule, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Images:
        """Search; called with checked images."""


ensemble_attacks: Registry[EnsembleAttack] = Registry("ensemble attack", EnsembleAttack)
