"""The combined prediction of the first members."""

from dataclasses import dataclass
from typing import final

from sparsemble.attacks.ensemble.surrogate import Surrogate, surrogates
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble, StoppingRule, stack_logits
from sparsemble.core.types import Classifier, Images, Logits


@final
@surrogates.register("prefix")
@dataclass(frozen=True, kw_only=True)
class Prefix(Surrogate):
    """The first `length` members, which give the prediction where the rule stops there."""

    length: int = 1
    """Number of members, 1..M."""

    @property
    def label(self) -> str:
        """Name in results."""
        return f"prefix{self.length}"

    def __call__(self, ensemble: Ensemble, rule: StoppingRule) -> Classifier:
        """Return the classifier made of the first members."""
        members = list(ensemble.members)[: self.length]
        if not 1 <= self.length <= len(ensemble.members):
            raise InputError(
                f"length = {self.length} must be between 1 and the ensemble's {len(ensemble.members)} members"
            )

        def classify(x: Images) -> Logits:
            return ensemble.combiner(stack_logits([member(x) for member in members]))

        return classify
