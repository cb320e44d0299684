"""Components by the names of their classes: `losses.TRADES`, `scores.NIS`, `stopping.DIE`."""

from typing import Any, final

import sparsemble.ensemble
import sparsemble.pruning
import sparsemble.training  # noqa: F401 (imports register the components)
from sparsemble.core.interfaces import combiners as combiner_registry
from sparsemble.core.interfaces import stopping_rules
from sparsemble.core.registry import Registry, component_names, find_component
from sparsemble.ensemble.selection.rule import selection_rules
from sparsemble.pruning.score import pruning_scores
from sparsemble.training.loss import training_losses


@final
class Namespace:
    """The components of one kind, as attributes."""

    def __init__(self, registry: Registry[Any]) -> None:
        self._registry = registry
        self.__doc__ = f"Every {registry.kind}: {', '.join(component_names(registry))}."

    def __getattr__(self, name: str) -> Any:
        return find_component(name, self._registry)

    def __dir__(self) -> list[str]:
        return component_names(self._registry)


combiners = Namespace(combiner_registry)
losses = Namespace(training_losses)
scores = Namespace(pruning_scores)
selection = Namespace(selection_rules)
stopping = Namespace(stopping_rules)
