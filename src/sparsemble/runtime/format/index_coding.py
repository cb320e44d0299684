"""Where the non-zero weights of a layer are, in few bits."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.errors import RuntimeInputError

Coding = Literal["dense", "bitmap", "rice"]
"""dense: every place; bitmap: a bit for each; rice: the gaps between them, each as a quotient in ones and zeros and a
remainder of a fixed number of bits."""
Positions = NDArray[np.uint32]
LARGEST_PARAMETER = 31
CHUNK = 2**17
"""Positions that are decoded at a time, so that what that takes beside them is little; in whole bytes."""


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
        RuntimeInputError: the bytes do not hold them.
    """
    if coding == "dense":
        return np.arange(size, dtype=np.uint32), 0
    if coding == "bitmap":
        length = -(-size // 8)
        if len(stored) < length:
            raise RuntimeInputError(f"a bitmap of {size} weights takes {length} bytes, but {len(stored)} are left")
        bits = np.unpackbits(np.frombuffer(stored[:length], np.uint8))
        ones = int(np.count_nonzero(bits))
        if ones != count or bits[size:].any():
            raise RuntimeInputError(f"a bitmap holds {ones} weights where {count} of {size} are announced")
        return np.flatnonzero(bits).astype(np.uint32), length
    return _from_rice(stored, size, count, parameter)


def _from_rice(stored: memoryview, size: int, count: int, parameter: int) -> tuple[Positions, int]:
    found, length = _quotients(stored, size, count, parameter)
    fixed = -(-count * parameter // 8)
    if len(stored) < length + fixed:
        raise RuntimeInputError(f"positions take {length + fixed} bytes, but {len(stored)} are left")
    before = 0
    for begin in range(0, count, CHUNK):
        part = found[begin : begin + CHUNK]
        at, bits = length + begin * parameter // 8, len(part) * parameter
        low = np.unpackbits(np.frombuffer(stored[at : at - (-bits // 8)], np.uint8))[:bits]
        steps = np.ones(len(part), np.int64)
        for bit in range(parameter):
            steps += low[bit::parameter].astype(np.int64) << bit
        steps[0] += before
        steps = np.cumsum(steps)
        before = int(steps[-1])
        places = (part.astype(np.int64) << parameter) + steps - 1
        if places[-1] >= size:
            raise RuntimeInputError(f"a position lies outside the {size} weights of its layer")
        part[:] = places
    return found, length + fixed


def _quotients(stored: memoryview, size: int, count: int, parameter: int) -> tuple[Positions, int]:
    """Return for each position the sum of the quotients up to it, and how many bytes they took."""
    found, done = np.empty(count, np.uint32), 0
    begin = 0
    while done < count and begin < len(stored):
        bits = np.unpackbits(np.frombuffer(stored[begin : begin + CHUNK // 8], np.uint8))
        ends = 8 * begin + np.flatnonzero(bits)[: count - done]
        sums = ends - np.arange(done, done + len(ends))
        if len(ends) and sums[-1] > size >> parameter:
            raise RuntimeInputError(f"a position lies outside the {size} weights of its layer")
        found[done : done + len(ends)] = sums
        done += len(ends)
        begin = begin + CHUNK // 8 if done < count else int(ends[-1]) // 8 + 1
    if done < count:
        raise RuntimeInputError(f"{count} positions are announced, but only {done} are there")
    return found, begin


def _gaps(positions: Positions) -> NDArray[np.uint64]:
    """Return how many zeros lie before each position."""
    signed = positions.astype(np.int64)
    return (np.diff(signed, prepend=-1) - 1).astype(np.uint64)
