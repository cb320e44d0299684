"""Checks of numeric settings; the error names the first setting that is out of range."""

import math
import operator
from typing import Any

from sparsemble.core.errors import InputError


def check_at_least(least: int, **settings: float) -> None:
    """Check that settings are `least` or more, and finite."""
    for name, value in settings.items():
        if not least <= value < math.inf:
            finite = "" if isinstance(value, int) else ", and finite"
            raise InputError(f"{name} = {value:g} must be {least} or more{finite}")


def check_above_zero(**settings: float) -> None:
    """Check that settings are above 0, and finite."""
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name} = {value:g} must be above 0, and finite")


def check_finite(**settings: float) -> None:
    """Check that settings are finite."""
    for name, value in settings.items():
        if not math.isfinite(value):
            raise InputError(f"{name} = {value:g} must be finite")


def check_interval(interval: str, **settings: float) -> None:
    """Check that settings lie in an interval, such as `[0, 1)`."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name, value in settings.items():
        above = low < value or (low == value and interval[0] == "[")
        below = value < high or (high == value and interval[-1] == "]")
        if not (above and below):
            raise InputError(f"{name} = {value:g} must lie in {interval}")


def checked_seed(seed: Any) -> int:
    """Return a seed of any size.

    Raises:
        InputError: it is no whole number, or negative.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        raise InputError(f"seed = {seed!r:.40} must be a whole number, 0 or more") from None
    if number < 0:
        raise InputError(f"seed = {number} must be 0 or more")
    return number
