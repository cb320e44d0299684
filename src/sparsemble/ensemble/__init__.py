"""Many sub-models as one: losses, selection, combiners, stopping, calibration."""

from typing import Any

from sparsemble.core import interfaces
from sparsemble.core.dynamic import predict_dynamic
from sparsemble.core.registry import Registry, component_names, find_component
from sparsemble.ensemble.calibration import CalibrationLogits, CalibrationResult, calibrate, evaluate_rule
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

REGISTRIES: dict[str, Registry[Any]] = {
    "combiners": interfaces.combiners,
    "stopping": interfaces.stopping_rules,
    "losses": loss.training_losses,
    "selection": selection_rules,
}
for folder, registry in REGISTRIES.items():
    registry.register_package(f"sparsemble.ensemble.{folder}")


def __getattr__(name: str) -> Any:
    """Return a combiner, stopping rule, loss or selection rule by the name of its class: `DIE`, `EED`."""
    return find_component(name, *REGISTRIES.values())


def __dir__() -> list[str]:
    return [*__all__, *component_names(*REGISTRIES.values())]
