"""What losses and stopping rules of ensembles refuse, each in one sentence."""

import math

from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble
from sparsemble.training.loss import TrainingLoss


def check_not_negative(**settings: float) -> None:
    """Refuse settings that are below 0, infinite or NaN.

    Raises:
        InputError: it names the first of them.
    """
    for name, value in settings.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name} = {value:g} must be 0 or more, and finite")


def check_above_zero(**settings: float) -> None:
    """Refuse settings that are 0 or below, infinite or NaN.

    Raises:
        InputError: it names the first of them.
    """
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name} = {value:g} must be above 0, and finite")


def check_finite(**settings: float) -> None:
    """Refuse settings that are infinite or NaN.

    Raises:
        InputError: it names the first of them.
    """
    for name, value in settings.items():
        if not math.isfinite(value):
            raise InputError(f"{name} = {value:g} must be finite")


def as_ensemble(model: nn.Module, loss: TrainingLoss) -> Ensemble:
    """Return the model, if it is an ensemble.

    Raises:
        InputError: it is a single network.
    """
    if not isinstance(model, Ensemble):
        raise InputError(
            f"{loss.name} is the loss of an ensemble, and this {type(model).__name__} is a single network; put it into an "
            "Ensemble, or use a loss such as madry or trades"
        )
    return model
