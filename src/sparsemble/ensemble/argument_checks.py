"""Checks of numeric settings, shared by ensemble losses and stopping rules."""

import math

from sparsemble.core.errors import InputError


def check_not_negative(**settings: float) -> None:
    """Check that settings are finite and at least 0."""
    for name, value in settings.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name} = {value:g} must be 0 or more, and finite")


def check_above_zero(**settings: float) -> None:
    """Check that settings are finite and above 0."""
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name} = {value:g} must be above 0, and finite")


def check_finite(**settings: float) -> None:
    """Check that settings are finite."""
    for name, value in settings.items():
        if not math.isfinite(value):
            raise InputError(f"{name} = {value:g} must be finite")
