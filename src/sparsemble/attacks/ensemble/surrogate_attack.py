"""Any attack on any surrogate of an ensemble."""

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
    """An attack on a single classifier that follows the gradient of a surrogate of the ensemble.

    With `use_deployed_logits`, the attack gets the deployed logits with the surrogate's gradient: the point that it
    keeps as best, and the one at which it stops, then depend on the deployed prediction instead of the surrogate's.
    That costs a deployed prediction, without gradient, at every point.
    """

    attack: Attack
    """Run on the surrogate."""
    surrogate: Surrogate
    """Stands in for the ensemble."""
    use_deployed_logits: bool = True
    """Off where the surrogate is the deployed prediction itself, and for attacks that need a gradient that belongs to
    the logits, such as DeepFool or FAB."""

    def __post_init__(self) -> None:
        self._set_label(f"{self.attack.label}-{self.surrogate.label}")

    def perturb(
        self, ensemble: Ensemble, rule: StoppingRule, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Images:
        """Attack the surrogate."""
        return self.attack(self.classifier(ensemble, rule), x, y, threat, rng=rng)

    def classifier(self, ensemble: Ensemble, rule: StoppingRule) -> Classifier:
        """Return the classifier that the attack inside sees."""
        target = self.surrogate(ensemble, rule)
        return _with_deployed_logits(target, ensemble, rule) if self.use_deployed_logits else target


def _with_deployed_logits(surrogate: Classifier, ensemble: Ensemble, rule: StoppingRule) -> Classifier:
    """Return a classifier with the deployed logits and the surrogate's gradient."""

    def classify(x: Images) -> Logits:
        logits = surrogate(x)
        with torch.no_grad():
            deployed = decide(ensemble, x.detach(), rule).logits
        return deployed + (logits - logits.detach())

    return classify
