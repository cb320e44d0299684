"""The JSON header of a packed file: parsed strictly, checked field by field; all faults are `RuntimeInputError`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, final

from sparsemble.runtime.errors import RuntimeInputError

LARGEST_INT = 2**40
"""Upper bound of every number of bytes, weights or pixels."""
LARGEST_NUMBER = 1e300
"""Upper bound of the size of every other number."""
MAX_DEPTH = 40
"""Upper bound of nested lists and tables."""


def encode_header(header: Mapping[str, Any]) -> bytes:
    """Return a header as JSON."""
    try:
        return json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise RuntimeInputError(f"the header cannot be written as JSON: {error}") from None


def parse_header(encoded: bytes) -> dict[str, Any]:
    """Return the table in a header; what `encode_header` never writes is refused: duplicate keys, NaN, deep nesting."""

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            raise RuntimeInputError("the header names something twice")
        return entries

    def constant(name: str) -> Any:
        raise RuntimeInputError(f"the header holds {name}, which is no number")

    depth = 0
    for byte in encoded:
        depth += (byte in b"[{") - (byte in b"]}")
        if depth > MAX_DEPTH:
            raise RuntimeInputError("the header is nested too deeply")
    try:
        header = json.loads(encoded.decode("utf-8-sig"), object_pairs_hook=table, parse_constant=constant)
    except RuntimeInputError:
        raise
    except (ValueError, RecursionError) as error:
        raise RuntimeInputError(f"the header is no JSON: {str(error)[:80]}") from None
    if not isinstance(header, dict):
        raise RuntimeInputError("the header is no table")
    return header


@final
class Fields:
    """A table of the header, whose values are checked as they are read.

    Args:
        value: any value from the header.
        name: of the table, for messages.
    """

    def __init__(self, value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise RuntimeInputError(f"{name} = {_shortened(value)} must be a table")
        self.values: dict[str, Any] = value
        self.name = name

    def get(self, key: str) -> Any:
        """Return the value of a key that must be there."""
        if key not in self.values:
            raise RuntimeInputError(f"{self.name} lacks {key}")
        return self.values[key]

    def integer(self, key: str, low: int = 0, high: int = LARGEST_INT) -> int:
        """Return a whole number.

        Args:
            key: of the value.
            low: smallest value allowed.
            high: largest value allowed.
        """
        return self._integer(key, self.get(key), low, high)

    def integers(self, key: str, length: int | None = None, low: int = 0, high: int = LARGEST_INT) -> tuple[int, ...]:
        """Return a list of whole numbers.

        Args:
            key: of the list.
            length: required number of entries; None: any.
            low: smallest value allowed.
            high: largest value allowed.
        """
        return tuple(self._integer(key, value, low, high) for value in self.items(key, length))

    def number(self, key: str) -> float:
        """Return a number."""
        value = self.get(key)
        if type(value) not in (int, float) or abs(value) > LARGEST_NUMBER:
            raise RuntimeInputError(f"{self.name}: {key} = {_shortened(value)} must be a finite number")
        return float(value)

    def items(self, key: str, length: int | None = None) -> list[Any]:
        """Return a list, of that many entries unless `length` is None."""
        value = self.get(key)
        if not isinstance(value, list) or (length is not None and len(value) != length):
            expected = "a list" if length is None else f"a list of {length}"
            raise RuntimeInputError(f"{self.name}: {key} = {_shortened(value)} must be {expected}")
        return value

    def choice(self, key: str, allowed: Sequence[str]) -> Any:
        """Return a value that is one of those allowed."""
        value = self.get(key)
        if value not in allowed:
            raise RuntimeInputError(f"{self.name}: {key} = {value!r:.60} must be one of {', '.join(allowed)}")
        return value

    def table(self, key: str) -> "Fields":
        """Return a table within this one."""
        return Fields(self.get(key), f"{self.name}: {key}")

    def _integer(self, key: str, value: Any, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:
            raise RuntimeInputError(
                f"{self.name}: {key} = {_shortened(value)} must be a whole number from {low} to {high}"
            )
        return value


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
