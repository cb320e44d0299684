"""The JSON header of a packed file: parsed strictly, checked field by field."""

import json
from collections.abc import Mapping
from typing import Any

from sparsemble.runtime.errors import RuntimeInputError

LARGEST_INT = 2**40
"""Upper bound of every number of bytes, weights or pixels."""
MAX_DEPTH = 40
"""Upper bound of nested lists and tables."""


def encode_header(header: Mapping[str, Any]) -> bytes:
    """Return a header as JSON.

    Raises:
        RuntimeInputError: a value that JSON cannot represent.
    """
    try:
        return json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise RuntimeInputError(f"the header cannot be written as JSON: {error}") from None


def parse_header(encoded: bytes) -> dict[str, Any]:
    """Return the table in a header.

    Raises:
        RuntimeInputError: it is not JSON, or not JSON as `encode_header` writes it: duplicate keys, NaN, too many
            levels or digits.
    """

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
        header = json.loads(encoded.decode(), object_pairs_hook=table, parse_constant=constant)
    except RuntimeInputError:
        raise
    except (ValueError, RecursionError) as error:
        raise RuntimeInputError(f"the header is no JSON: {str(error)[:80]}") from None
    if not isinstance(header, dict):
        raise RuntimeInputError("the header is no table")
    return header


def check_int(value: Any, name: str, low: int = 0, high: int = LARGEST_INT) -> int:
    """Return the value if it is a whole number in a range.

    Args:
        value: any value from the header.
        name: of the field, for the message.
        low: smallest value allowed.
        high: largest value allowed.

    Raises:
        RuntimeInputError: it is another value.
    """
    if type(value) is not int or not low <= value <= high:
        raise RuntimeInputError(f"{name} = {_shortened(value)} must be a whole number from {low} to {high}")
    return value


def check_pair(value: Any, name: str, low: int = 0) -> tuple[int, int]:
    """Return the value if it is a list of two whole numbers.

    Args:
        value: any value from the header.
        name: of the field, for the message.
        low: smallest number allowed; the largest is 2^16.

    Raises:
        RuntimeInputError: it is another value.
    """
    first, second = check_list(value, name, 2)
    return check_int(first, name, low, 2**16), check_int(second, name, low, 2**16)


def check_list(value: Any, name: str, length: int | None = None) -> list[Any]:
    """Return the value if it is a list.

    Args:
        value: any value from the header.
        name: of the field, for the message.
        length: required number of entries; None: any.

    Raises:
        RuntimeInputError: it is another value.
    """
    if not isinstance(value, list) or (length is not None and len(value) != length):
        expected = "a list" if length is None else f"a list of {length}"
        raise RuntimeInputError(f"{name} = {_shortened(value)} must be {expected}")
    return value


def check_table(value: Any, name: str) -> dict[str, Any]:
    """Return the value if it is a table."""
    if not isinstance(value, dict):
        raise RuntimeInputError(f"{name} = {_shortened(value)} must be a table")
    return value


def get_field(table: Mapping[str, Any], key: str, name: str) -> Any:
    """Return the value of a key.

    Args:
        table: a part of the header.
        key: that must be there.
        name: of the table, for the message.

    Raises:
        RuntimeInputError: the key is missing.
    """
    if key not in table:
        raise RuntimeInputError(f"{name} lacks {key}")
    return table[key]


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
