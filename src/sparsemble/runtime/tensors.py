"""How weights, and results in 8 bits, are stored."""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.errors import RuntimeInputError

Shape = tuple[int, ...]
"""Of a result for one image: (channels, height, width) or (features,)."""
Pair = tuple[int, int]
"""Vertical and horizontal: of a window, stride, padding or dilation."""
Floats = NDArray[np.float32]


@final
@dataclass(frozen=True, eq=False)
class Weight:
    """The non-zero weights of a layer."""

    shape: Shape
    """(outputs, inputs) or (outputs, inputs, height, width)."""
    positions: NDArray[np.uint32]
    """(nonzeros) indices into the flattened weights (C order), rising."""
    values: Floats
    """(nonzeros)"""
    integers: NDArray[np.int8] | None = None
    """(nonzeros) in -127..127; with `scales`, whose products they are, `values` are exact in 8 bits."""
    scales: Floats | None = None
    """(outputs) the value of one step of an output's integers."""

    @staticmethod
    def from_dense(array: NDArray[Any]) -> "Weight":
        """Return the non-zero entries of an array."""
        flat = np.ascontiguousarray(array, np.float32).reshape(-1)
        positions = np.flatnonzero(flat).astype(np.uint32)
        return Weight(tuple(array.shape), positions, flat[positions])

    @property
    def size(self) -> int:
        """Number of weights, zeros included."""
        return math.prod(self.shape)

    @property
    def nonzeros(self) -> int:
        """Number of weights that are not 0."""
        return len(self.positions)

    def dense(self) -> Floats:
        """Return all weights, zeros included."""
        dense = np.zeros(self.size, np.float32)
        dense[self.positions] = self.values
        return dense.reshape(self.shape)

    def kept(self, keep: NDArray[np.bool_]) -> "Weight":
        """Return some of the non-zero weights."""
        if keep.all():
            return self
        integers = None if self.integers is None else self.integers[keep]
        return Weight(self.shape, self.positions[keep], self.values[keep], integers, self.scales)

    def largest_sum(self) -> int:
        """Return the largest sum of the absolute integers of an output; 0 without integers."""
        if self.integers is None:
            return 0
        output = self.positions.astype(np.int64) // math.prod(self.shape[1:])
        return int(np.bincount(output, np.abs(self.integers.astype(np.int64)), minlength=1).max())


@final
@dataclass(frozen=True)
class Steps:
    """How a result is stored in 8 bits: x as clip(round(x / scale) + zero, 0, 255), halves rounded to even.

    Raises:
        RuntimeInputError: a scale that is not a positive, normal float32, or a zero outside 0..255.
    """

    scale: float
    """The value of one step, a positive, normal float32."""
    zero: int
    """The step, 0..255, that means 0."""

    def __post_init__(self) -> None:
        limits = np.finfo(np.float32)
        if not float(limits.tiny) <= self.scale <= float(limits.max) or float(np.float32(self.scale)) != self.scale:
            raise RuntimeInputError(f"scale = {self.scale!r:.60} of 8-bit steps must be a positive, normal float32")
        if self.zero not in range(256):
            raise RuntimeInputError(f"zero = {self.zero!r:.60} of 8-bit steps must be a whole number in 0..255")
