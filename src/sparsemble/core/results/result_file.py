"""Results as files: frozen dataclasses, written as JSON and read back strictly; and the checks that all of them use."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from sparsemble.core.artifacts import read_json, write_bytes
from sparsemble.core.config import from_dict
from sparsemble.core.errors import InputError
from sparsemble.core.registry import to_dict

R = TypeVar("R", bound="ResultFile")

SCHEMA = 3
"""Version of the result files; raised when a field changes its meaning or its name."""


class ResultFile:
    """A frozen dataclass that is a file of its own; its field `schema` is the version of the format."""

    def to_json(self) -> str:
        """Return the result as JSON text that `load` reads back."""
        return json.dumps(to_dict(self), indent=1, allow_nan=False) + "\n"

    def save(self, path: Path) -> None:
        """Write the result as JSON, atomically."""
        write_bytes(path, self.to_json().encode())

    @classmethod
    def load(cls: type[R], path: Path) -> R:
        """Read a result strictly.

        Raises:
            InputError: the file cannot be read, or a field is missing, unknown, of the wrong type or contradicts
                another one; the message names the file and the field.
        """
        table = read_json(path)
        schema = table.get("schema") if isinstance(table, dict) else None
        if schema != SCHEMA:
            raise InputError(f"{path} has schema {schema!r}, this version reads {SCHEMA}; make the result anew")
        try:
            return from_dict(cls, table)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def check_fractions(**values: float) -> None:
    """Check that every value lies in [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} = {value} must be a number in [0, 1]")


def check_not_negative(**values: float | None) -> None:
    """Check that every value that is known is finite and 0 or more."""
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name} = {value} must be a finite number, 0 or more")


def check_intervals(lowest: float, **intervals: Sequence[float]) -> None:
    """Check that every interval is two growing numbers within [lowest, 1]."""
    for name, interval in intervals.items():
        if len(interval) != 2 or not lowest <= interval[0] <= interval[1] <= 1:
            raise InputError(f"{name} = {list(interval)} must be two numbers, low <= high, in [{lowest}, 1]")


def check_lengths(expected: int, reason: str, **lists: Sequence[Any]) -> None:
    """Check the number of entries of every list; the reason names where it comes from."""
    for name, values in lists.items():
        if len(values) != expected:
            raise InputError(f"{name} has {len(values)} entries but {reason} is {expected}")


def check_accuracy(name: str, accuracy: float, correct: Sequence[int], interval: Sequence[float]) -> None:
    """Check an accuracy against the images it is the fraction of, and against its interval.

    Args:
        name: of the accuracy, for messages.
        accuracy: fraction of the images that are classified correctly.
        correct: 1 or 0, one an image.
        interval: low and high.
    """
    if not set(correct) <= {0, 1}:
        raise InputError(f"the outcomes of {name} must be 0 or 1")
    if not correct or abs(accuracy - sum(correct) / len(correct)) > 1e-6:
        raise InputError(
            f"{name} = {accuracy} must be the fraction of its correct images, {sum(correct)} of {len(correct)}"
        )
    check_intervals(0, **{f"interval of {name}": interval})
    if not interval[0] - 1e-9 <= accuracy <= interval[1] + 1e-9:
        raise InputError(f"{name} = {accuracy} must lie in its interval {list(interval)}")
