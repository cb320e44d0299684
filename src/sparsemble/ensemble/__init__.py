"""Many sub-models as one: choose the ensemble, combine, diversify, stop early."""

from sparsemble.core import interfaces
from sparsemble.ensemble.dynamic import answer_dynamic, predict_dynamic
from sparsemble.ensemble.selection.rule import Evidence, Selected, SelectionRule, robust_diversity, selection_rules
from sparsemble.training import loss

__all__ = [
    "Evidence",
    "Selected",
    "SelectionRule",
    "answer_dynamic",
    "predict_dynamic",
    "robust_diversity",
    "selection_rules",
]

interfaces.combiners.walk("sparsemble.ensemble.combiners")
interfaces.stopping_rules.walk("sparsemble.ensemble.stopping")
loss.training_losses.walk("sparsemble.ensemble.losses")
selection_rules.walk("sparsemble.ensemble.selection")
