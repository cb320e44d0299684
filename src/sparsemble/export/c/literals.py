"""Values as C99 source: numbers that read back exactly, strings that end nowhere but at their end, arrays."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

TYPES = {"float32": "float", "float16": "uint16_t", "uint8": "uint8_t", "int8": "int8_t"}
"""C type of an array by its dtype; halves are written as their bits."""
PER_LINE = 20


def float_literal(value: float) -> str:
    """Return the float32 next to a number; beyond its range infinity."""
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
    return ("-" if rounded < 0 else "") + "INFINITY" if np.isinf(rounded) else f"{rounded}f"


def string_literal(text: str) -> str:
    """Return a text as a string of its UTF-8 bytes; all but plain ASCII characters are octal escapes.

    An octal escape ends after three digits, whatever follows; a question mark could begin a trigraph.
    """
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode())
    return f'"{"".join(plain)}"'


@final
@dataclass(frozen=True, eq=False)
class Array:
    """A constant array."""

    name: str
    values: NDArray[Any]
    """(n) of a dtype in `TYPES`; empty ones are written as one 0, as C has none."""

    @property
    def size(self) -> int:
        """Bytes of flash."""
        return max(len(self.values), 1) * self.values.itemsize

    def __str__(self) -> str:
        """Return its definition."""
        kind, values = self.values.dtype.name, self.values
        if kind == "float32":
            items = [float_literal(value) for value in values.tolist()]
        else:
            items = [str(value) for value in (values.view(np.uint16) if kind == "float16" else values).tolist()]
        items = items or ["0"]
        lines = [", ".join(items[i : i + PER_LINE]) for i in range(0, len(items), PER_LINE)]
        return f"static const {TYPES[kind]} {self.name}[{len(items)}] = {{\n    " + ",\n    ".join(lines) + "};\n"
