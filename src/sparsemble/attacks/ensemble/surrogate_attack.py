"""Any attack through any surrogate."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack, ensemble_attacks
from sparsemble.attacks.ensemble.surrogate import Surrogate
from sparsemble.core.dynamic import decide
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels, Logits


@final
@ensemble_attacks.register("surrogate_attack")
@dataclass(frozen=True, kw_only=True)
class SurrogateAttack(EnsembleAttack):
    """An attack on a single classifier, led by the gradient of a surrogate of the ensemble.

    While `judged`, the attack reads the deployed logits and differentiates the surrogate's: what it keeps as best, and
    where it stops, is then what is really broken, not what the surrogate gets wrong. That costs a deployed answer,
    without gradient, at every point.
    """

    attack: Attack
    """What climbs."""
    surrogate: Surrogate
    """What is climbed."""
    judged: bool = True
    """Off where the surrogate is the deployed decision itself, and for attacks that need logits and gradient to fit
    together, such as DeepFool or FAB."""
    label: str = ""
    """Name in results; empty: the attack's and the surrogate's."""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", f"{self.attack.label}-{self.surrogate.label}")

    def perturb(
        self, ensemble: Ensemble, rule: StoppingRule, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Images:
        """Attack the surrogate."""
        target = self.surrogate(ensemble, rule)
        if self.judged:
            target = _judged(target, ensemble, rule)
        return self.attack(target, x, y, threat, rng=rng)


def _judged(surrogate: Classifier, ensemble: Ensemble, rule: StoppingRule) -> Classifier:
    """Return a classifier with the deployed logits and the surrogate's gradient."""

    def classify(x: Images) -> Logits:
        led = surrogate(x)
        with torch.no_grad():
            answer = decide(ensemble, x.detach(), rule).logits
        return answer + (led - led.detach())

    return classify
