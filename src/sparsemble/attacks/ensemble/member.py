"""The prediction of one member."""

from dataclasses import dataclass
from typing import final

from sparsemble.attacks.ensemble.surrogate import Surrogate, surrogates
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.types import Classifier


@final
@surrogates.register("member")
@dataclass(frozen=True, kw_only=True)
class Member(Surrogate):
    """One member alone: its loss, without the others' gradients."""

    index: int = 1
    """Position in the running order, 1..M; member 1 is prefix 1."""

    @property
    def label(self) -> str:
        """Name in results."""
        return f"member{self.index}"

    def __call__(self, ensemble: Ensemble, rule: StoppingRule) -> Classifier:
        """Return the member."""
        if not 1 <= self.index <= len(ensemble.members):
            raise InputError(
                f"index = {self.index} must be between 1 and the ensemble's {len(ensemble.members)} members"
            )
        return ensemble.members[self.index - 1]
