"""The deployed dynamic prediction."""

from dataclasses import dataclass
from typing import final

from sparsemble.attacks.ensemble.surrogate import Surrogate, surrogates
from sparsemble.core.dynamic import decide
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.types import Classifier, Images, Logits


@final
@surrogates.register("deployed")
@dataclass(frozen=True, kw_only=True)
class Deployed(Surrogate):
    """Logits of the prefix at which the rule stops, as deployed: what a black-box attack should query.

    Gradients reach the members of that prefix, and not the decision to stop.
    """

    def __call__(self, ensemble: Ensemble, rule: StoppingRule) -> Classifier:
        """Return the deployed classifier."""

        def classify(x: Images) -> Logits:
            return decide(ensemble, x, rule).logits

        return classify
