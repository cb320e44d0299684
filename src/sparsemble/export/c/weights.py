"""Weights of a layer as constants: values in the smallest form that loses nothing, and the gaps between them."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sparsemble.core.errors import InputError
from sparsemble.export.c.literals import Array
from sparsemble.runtime.format.quantization import dequantize, quantize
from sparsemble.runtime.network import Floats, Weight

GAP_BITS = (2, 4, 8)


@final
@dataclass(frozen=True, eq=False)
class StoredWeights:
    """What `layers.c` reads as a layer's values, gaps and scales."""

    values: Array
    gaps: Array | None
    """None: zeros are stored among the values."""
    gap_bits: int
    scales: Array | None
    """None: values are floats."""

    @property
    def arrays(self) -> list[Array]:
        """The arrays that there are."""
        return [array for array in (self.values, self.gaps, self.scales) if array is not None]


def store_weights(weight: Weight, name: str) -> StoredWeights:
    """Return the weights of a layer in the form that takes the fewest bytes; all of them read back exactly.

    Args:
        weight: (outputs, inputs, height, width)
        name: beginning of the arrays' names.

    Raises:
        InputError: an output of 2^31 or more weights, zeros included: C counts with 32 bits.
    """
    if weight.size // weight.shape[0] >= 2**31:
        raise InputError(f"{name} has weights of shape {weight.shape}; C needs fewer than 2^31 for each output")
    values, factors = _smallest_values(weight)
    scales = None if factors is None else Array(f"{name}_scales", factors)
    gaps = _gaps(weight)[1]
    # Codes of other widths are counted, not made: a file of a few bytes may have a gap of 2^31.
    gap_bits = min(GAP_BITS, key=lambda bits: bits * (int((gaps // (2**bits - 2)).sum()) + len(gaps) + weight.shape[0]))
    codes = gap_codes(weight, gap_bits)
    dense = weight.size * values.itemsize
    if dense <= len(codes) + values.nbytes:
        all_values = np.zeros(weight.size, values.dtype)
        all_values[weight.positions] = values
        return StoredWeights(Array(f"{name}_values", all_values), None, gap_bits, scales)
    return StoredWeights(Array(f"{name}_values", values), Array(f"{name}_gaps", codes), gap_bits, scales)


def _smallest_values(weight: Weight) -> tuple[NDArray[Any], Floats | None]:
    """Return floats, halves, or whole numbers and their scales: the smallest that are equal to the weights.

    Weights that have whole numbers keep these, as 8-bit arithmetic uses them.
    """
    if weight.integers is not None:
        return weight.integers, weight.scales
    with np.errstate(over="ignore"):
        halves = weight.values.astype(np.float16)
    floats = halves if np.array_equal(halves.astype(np.float32), weight.values) else weight.values
    scales, integers = quantize(weight)
    smaller = integers.nbytes + scales.nbytes < floats.nbytes
    if smaller and np.array_equal(dequantize(integers, weight.positions, weight.shape, scales), weight.values):
        return integers, scales
    return floats, None


def gap_codes(weight: Weight, bits: int) -> NDArray[np.uint8]:
    """Return the number of zeros before each weight of an output as codes of 2, 4 or 8 bits, lowest bits first.

    The largest code ends an output; the second largest, c, means c zeros without a weight behind them.
    """
    end, skip = 2**bits - 1, 2**bits - 2
    outputs, gaps = _gaps(weight)
    lengths = gaps // skip + 1
    ends = np.cumsum(lengths)
    codes = np.full(int(lengths.sum()), skip, np.uint8)
    codes[ends - 1] = gaps % skip
    counts = np.bincount(outputs, minlength=weight.shape[0])
    codes = np.insert(codes, np.concatenate([[0], ends])[np.cumsum(counts)], end)
    per_byte = 8 // bits
    padded = np.zeros(-(-len(codes) // per_byte) * per_byte, np.uint8)
    padded[: len(codes)] = codes
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shifts, axis=1)
    return packed


def _gaps(weight: Weight) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the output of each weight, and the number of zeros between it and the one before it in that output."""
    outputs, positions = np.divmod(weight.positions.astype(np.int64), weight.size // weight.shape[0])
    first = np.diff(outputs, prepend=-1) > 0
    return outputs, positions - np.where(first, 0, np.roll(positions, 1) + 1)
