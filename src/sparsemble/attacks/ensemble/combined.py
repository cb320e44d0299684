"""The full ensemble with another combiner."""

from dataclasses import dataclass
from typing import final

from sparsemble.attacks.ensemble.surrogate import Surrogate, surrogates
from sparsemble.core.interfaces import Combiner, Ensemble, StoppingRule
from sparsemble.core.types import Classifier, Images, Logits


@final
@surrogates.register("combined")
@dataclass(frozen=True, kw_only=True)
class Combined(Surrogate):
    """All members with another combiner than the deployed one, which weights the members' gradients differently."""

    combiner: Combiner
    """Used in place of the ensemble's own."""

    @property
    def label(self) -> str:
        """Name in results."""
        return self.combiner.name

    def __call__(self, ensemble: Ensemble, rule: StoppingRule) -> Classifier:
        """Return the ensemble with the other combiner."""

        def classify(x: Images) -> Logits:
            return self.combiner(ensemble.member_logits(x))

        return classify
