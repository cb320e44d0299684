"""The interface of surrogates: differentiable stand-ins for a deployed ensemble."""

from abc import abstractmethod

from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.registry import Component, Registry
from sparsemble.core.types import Classifier


class Surrogate(Component):
    """A differentiable classifier made of an ensemble and its stopping rule, for any attack to run on."""

    @property
    def label(self) -> str:
        """Name in results; with the settings that distinguish it from others of its kind, if it has any."""
        return self.name

    @abstractmethod
    def __call__(self, ensemble: Ensemble, rule: StoppingRule) -> Classifier:
        """Return the classifier to attack."""


surrogates: Registry[Surrogate] = Registry("surrogate", Surrogate)
