"""The JSON header of a packed file: read strictly, checked field by field."""

import json
from collections.abc import Mapping
from typing import Any

from sparsemble.runtime.errors import RuntimeInputError

LARGEST = 2**40
"""No number of bytes, weights or pixels is larger."""
DEEPEST = 40


def text(header: Mapping[str, Any]) -> bytes:
    """Return a header as bytes.

    Raises:
        RuntimeInputError: something that JSON has no word for.
    """
    try:
        return json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise RuntimeInputError(f"the header cannot be written as JSON: {error}") from None


def parse(encoded: bytes) -> dict[str, Any]:
    """Return the table in a header.

    Raises:
        RuntimeInputError: no JSON, or none that we write: duplicate keys, NaN, endless nesting or digits.
    """

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise RuntimeInputError("the header names something twice")
        return found

    def constant(word: str) -> Any:
        raise RuntimeInputError(f"the header holds {word}, which is no number")

    deepest = 0
    for byte in encoded:
        deepest += (byte in b"[{") - (byte in b"]}")
        if deepest > DEEPEST:
            raise RuntimeInputError("the header is nested too deeply")
    try:
        found = json.loads(encoded.decode(), object_pairs_hook=table, parse_constant=constant)
    except RuntimeInputError:
        raise
    except (ValueError, RecursionError) as error:
        raise RuntimeInputError(f"the header is no JSON: {str(error)[:80]}") from None
    if not isinstance(found, dict):
        raise RuntimeInputError("the header is no table")
    return found


def whole(value: Any, where: str, low: int = 0, high: int = LARGEST) -> int:
    """Return a whole number in a range.

    Raises:
        RuntimeInputError: it is something else.
    """
    if type(value) is not int or not low <= value <= high:
        raise RuntimeInputError(f"{where} = {_short(value)} must be a whole number from {low} to {high}")
    return value


def pair(value: Any, where: str, low: int = 0) -> tuple[int, int]:
    """Return two whole numbers, neither of them large."""
    first, second = items(value, where, 2)
    return whole(first, where, low, 2**16), whole(second, where, low, 2**16)


def items(value: Any, where: str, count: int | None = None) -> list[Any]:
    """Return a list, of so many entries if asked for."""
    if not isinstance(value, list) or (count is not None and len(value) != count):
        wanted = "a list" if count is None else f"a list of {count}"
        raise RuntimeInputError(f"{where} = {_short(value)} must be {wanted}")
    return value


def table_of(value: Any, where: str) -> dict[str, Any]:
    """Return a table."""
    if not isinstance(value, dict):
        raise RuntimeInputError(f"{where} = {_short(value)} must be a table")
    return value


def field(table: Mapping[str, Any], name: str, where: str) -> Any:
    """Return what a table has under a name."""
    if name not in table:
        raise RuntimeInputError(f"{where} lacks {name}")
    return table[name]


def _short(value: Any) -> str:
    found = repr(value)
    return found if len(found) <= 60 else found[:57] + "..."
