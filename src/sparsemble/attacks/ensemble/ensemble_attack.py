"""The interface of attacks on an ensemble and its stopping rule together."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Generator

from sparsemble.attacks.attack import Labelled, checked_arguments, search_inside
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.registry import Registry
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels


@dataclass(frozen=True, kw_only=True)
class EnsembleAttack(Labelled):
    """Finds, for each image, an adversarial image for a deployed ensemble: members, combiner and stopping rule.

    What `Attack` guarantees for a model holds here for every member. Whether an image is misclassified is decided by
    the deployed prediction, over the images of all attacks.
    """

    aims_at_cost: ClassVar[bool] = False
    """Whether it raises the number of members that run, also of images misclassified when clean."""

    @final
    def __call__(
        self,
        ensemble: Ensemble,
        rule: StoppingRule,
        x: Images,
        y: Labels,
        threat: ThreatModel,
        *,
        rng: Generator | None = None,
    ) -> Images:
        """Return adversarial images.

        Args:
            ensemble: in eval mode.
            rule: the deployed rule.
            x: (B, C, H, W) clean images in [0, 1].
            y: (B) true classes.
            threat: norm and radius of the ball in which the adversarial images must lie.
            rng: source of random draws, on the device of `x`; None uses a fixed seed.

        Returns:
            (B, C, H, W) images in [0, 1], within `threat.eps` of `x`.

        Raises:
            InputError: images outside [0, 1].
            RunError: the attack left the box or the ball, or met NaN.
        """
        x, y, rng = checked_arguments(x, y, threat, rng)
        return search_inside(threat, x, lambda: self.perturb(ensemble, rule, x, y, threat, rng=rng), self.name)

    @abstractmethod
    def perturb(
        self, ensemble: Ensemble, rule: StoppingRule, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Images:
        """Search for adversarial images; `__call__` has checked the arguments and checks the result.

        Args:
            ensemble: in eval mode.
            rule: the deployed rule.
            x: (B, C, H, W) clean images in [0, 1].
            y: (B) true classes.
            threat: norm and radius of the ball.
            rng: source of random draws, on the device of `x`.
        """


ensemble_attacks: Registry[EnsembleAttack] = Registry("ensemble attack", EnsembleAttack)
