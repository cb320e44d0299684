"""The combined prediction of all members."""

from dataclasses import dataclass
from typing import final

from sparsemble.attacks.ensemble.surrogate import Surrogate, surrogates
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.types import Classifier


@final
@surrogates.register("full_ensemble")
@dataclass(frozen=True, kw_only=True)
class FullEnsemble(Surrogate):
    """The static ensemble: all members, without the stopping rule."""

    @property
    def label(self) -> str:
        """Name in results."""
        return "whole"

    def __call__(self, ensemble: Ensemble, rule: StoppingRule) -> Classifier:
        """Return the ensemble itself."""
        return ensemble
