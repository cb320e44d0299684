"""Where the non-zero weights of a layer are, in few bits."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.refused import Refused

Coding = Literal["dense", "bitmap", "rice"]
"""dense: every place; bitmap: a bit for each; rice: the gaps between them, each as a quotient in ones and zeros and a
remainder of a fixed number of bits."""
Positions = NDArray[np.uint32]
LARGEST_PARAMETER = 31


def best_coding(positions: Positions, size: int, value_bits: int) -> tuple[Coding, int]:
    """Return the coding that takes fewest bits, values of the zeros that it stores included, and Rice's parameter."""
    gaps = _gaps(positions)
    count = len(gaps)
    bits: dict[tuple[Coding, int], int] = {
        ("dense", 0): (size - count) * value_bits,
        ("bitmap", 0): 8 * -(-size // 8),
    }
    for parameter in range(min(int(gaps.max(initial=0)).bit_length(), LARGEST_PARAMETER) + 1):
        unary = int((gaps >> np.uint64(parameter)).sum()) + count
        bits["rice", parameter] = 8 * (-(-unary // 8) + -(-count * parameter // 8))
    return min(bits, key=lambda one: bits[one])


def encode(positions: Positions, size: int, coding: Coding, parameter: int) -> bytes:
    """Return the coded positions (rising, below size)."""
    if coding == "dense":
        return b""
    if coding == "bitmap":
        bits = np.zeros(size, np.uint8)
        bits[positions] = 1
        return np.packbits(bits).tobytes()
    gaps = _gaps(positions)
    ends = np.cumsum(gaps >> np.uint64(parameter)) + np.arange(len(gaps), dtype=np.uint64)
    unary = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, np.uint8)
    unary[ends] = 1
    shifts = np.arange(parameter, dtype=np.uint64)
    remainders = ((gaps[:, None] >> shifts) & np.uint64(1)).astype(np.uint8)
    return np.packbits(unary).tobytes() + np.packbits(remainders.reshape(-1)).tobytes()


def decode(stored: memoryview, size: int, count: int, coding: Coding, parameter: int) -> tuple[Positions, int]:
    """Return `count` positions below size, and how many bytes they took.

    Raises:
        Refused: the bytes do not hold them.
    """
    if coding == "dense":
        return np.arange(size, dtype=np.uint32), 0
    if coding == "bitmap":
        length = -(-size // 8)
        if len(stored) < length:
            raise Refused(f"a bitmap of {size} weights takes {length} bytes, but {len(stored)} are left")
        bits = np.unpackbits(np.frombuffer(stored[:length], np.uint8))
        found = np.flatnonzero(bits).astype(np.uint32)
        if len(found) != count or (len(found) and found[-1] >= size):
            raise Refused(f"a bitmap holds {len(found)} weights where {count} of {size} are announced")
        return found, length
    return _from_rice(stored, size, count, parameter)


def _from_rice(stored: memoryview, size: int, count: int, parameter: int) -> tuple[Positions, int]:
    fixed = -(-count * parameter // 8)
    # Quotients add up to at most size / 2^parameter, so no more bits than these are worth a look.
    most = -(-(count + (size >> parameter)) // 8)
    unary = np.unpackbits(np.frombuffer(stored[:most], np.uint8))
    ends = np.flatnonzero(unary)[:count]
    if len(ends) < count:
        raise Refused(f"{count} positions are announced, but only {len(ends)} are there")
    length = -(-(int(ends[-1]) + 1) // 8) if count else 0
    if len(stored) < length + fixed:
        raise Refused(f"positions take {length + fixed} bytes, but {len(stored)} are left")
    del unary
    quotients = np.diff(ends, prepend=-1) - 1
    bits = np.unpackbits(np.frombuffer(stored[length : length + fixed], np.uint8))[: count * parameter]
    gaps = quotients.astype(np.uint64) << np.uint64(parameter)
    for bit in range(parameter):
        gaps |= bits[bit::parameter].astype(np.uint64) << np.uint64(bit)
    places = np.cumsum(gaps + np.uint64(1)) - np.uint64(1) if count else gaps
    if count and (int(places[-1]) >= size or int(gaps.max()) >= size):
        raise Refused(f"a position lies outside the {size} weights of its layer")
    return places.astype(np.uint32), length + fixed


def _gaps(positions: Positions) -> NDArray[np.uint64]:
    """Return how many zeros lie before each position."""
    signed = positions.astype(np.int64)
    return (np.diff(signed, prepend=-1) - 1).astype(np.uint64)
