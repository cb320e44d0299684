"""Many sub-models as one: losses, selection, combiners, stopping, calibration."""

from sparsemble.core import interfaces
from sparsemble.ensemble.calibration import CalibrationLogits, CalibrationResult, calibrate, evaluate_rule
from sparsemble.ensemble.dynamic import predict_dynamic
from sparsemble.ensemble.selection.rule import (
    PoolLogits,
    Selection,
    SelectionRule,
    robust_diversity,
    select,
    selection_rules,
)
from sparsemble.training import loss

__all__ = [
    "CalibrationLogits",
    "CalibrationResult",
    "PoolLogits",
    "Selection",
    "SelectionRule",
    "calibrate",
    "evaluate_rule",
    "predict_dynamic",
    "robust_diversity",
    "select",
    "selection_rules",
]

interfaces.combiners.walk("sparsemble.ensemble.combiners")
interfaces.stopping_rules.walk("sparsemble.ensemble.stopping")
loss.training_losses.walk("sparsemble.ensemble.losses")
selection_rules.walk("sparsemble.ensemble.selection")
