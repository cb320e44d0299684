"""Codings of the positions of the non-zero weights of a layer, in few bits."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.errors import RuntimeInputError

Coding = Literal["dense", "bitmap", "rice"]
"""dense: every weight is stored, zeros too; bitmap: a bit for each weight; rice: the gaps between non-zero weights,
each as a quotient in unary and a remainder of a fixed number of bits (Golomb-Rice coding)."""
CODINGS: tuple[str, ...] = get_args(Coding)
Positions = NDArray[np.uint32]
LARGEST_PARAMETER = 31
CHUNK = 2**17
"""Positions that are decoded at a time, which bounds the temporary memory; a multiple of 8."""


def best_coding(positions: Positions, size: int, value_bits: int) -> tuple[Coding, int]:
    """Return the coding that takes the fewest bits, and its Rice parameter.

    Args:
        positions: of the non-zero weights, rising, below `size`.
        size: number of weights, zeros included.
        value_bits: bits of a weight; the dense coding stores that many for every zero.
    """
    gaps = _gaps(positions)
    count = len(gaps)
    bits: dict[tuple[Coding, int], int] = {
        ("dense", 0): (size - count) * value_bits,
        ("bitmap", 0): 8 * -(-size // 8),
    }
    for parameter in range(min(int(gaps.max(initial=0)).bit_length(), LARGEST_PARAMETER) + 1):
        unary = int((gaps >> np.uint64(parameter)).sum()) + count
        bits["rice", parameter] = 8 * (-(-unary // 8) + -(-count * parameter // 8))
    return min(bits, key=lambda coding: bits[coding])


def encode(positions: Positions, size: int, coding: Coding, parameter: int) -> bytes:
    """Return the coded positions.

    Args:
        positions: of the non-zero weights, rising, below `size`.
        size: number of weights, zeros included.
        coding: how they are coded.
        parameter: bits of a remainder; used by the Rice coding.
    """
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
    """Return positions, and the number of bytes that they took.

    Args:
        stored: coded positions, perhaps followed by other bytes; not trusted.
        size: number of weights, zeros included.
        count: number of non-zero weights.
        coding: how they are coded.
        parameter: bits of a remainder; used by the Rice coding.

    Raises:
        RuntimeInputError: the bytes do not hold `count` positions below `size`.
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
    return _decode_rice(stored, size, count, parameter)


def _decode_rice(stored: memoryview, size: int, count: int, parameter: int) -> tuple[Positions, int]:
    positions, length = _decode_quotients(stored, size, count, parameter)
    remainder_bytes = -(-count * parameter // 8)
    if len(stored) < length + remainder_bytes:
        raise RuntimeInputError(f"positions take {length + remainder_bytes} bytes, but {len(stored)} are left")
    before = 0
    for begin in range(0, count, CHUNK):
        part = positions[begin : begin + CHUNK]
        start, bits = length + begin * parameter // 8, len(part) * parameter
        low = np.unpackbits(np.frombuffer(stored[start : start - (-bits // 8)], np.uint8))[:bits]
        steps = np.ones(len(part), np.int64)
        for bit in range(parameter):
            steps += low[bit::parameter].astype(np.int64) << bit
        steps[0] += before
        steps = np.cumsum(steps)
        before = int(steps[-1])
        decoded = (part.astype(np.int64) << parameter) + steps - 1
        if decoded[-1] >= size:
            raise RuntimeInputError(f"a position lies outside the {size} weights of its layer")
        part[:] = decoded
    return positions, length + remainder_bytes


def _decode_quotients(stored: memoryview, size: int, count: int, parameter: int) -> tuple[Positions, int]:
    """Return for each position the sum of the quotients up to it, and the number of bytes that they took."""
    quotients, done = np.empty(count, np.uint32), 0
    begin = 0
    while done < count and begin < len(stored):
        bits = np.unpackbits(np.frombuffer(stored[begin : begin + CHUNK // 8], np.uint8))
        ends = 8 * begin + np.flatnonzero(bits)[: count - done]
        sums = ends - np.arange(done, done + len(ends))
        if len(ends) and sums[-1] > size >> parameter:
            raise RuntimeInputError(f"a position lies outside the {size} weights of its layer")
        quotients[done : done + len(ends)] = sums
        done += len(ends)
        begin = begin + CHUNK // 8 if done < count else int(ends[-1]) // 8 + 1
    if done < count:
        raise RuntimeInputError(f"{count} positions are announced, but only {done} are there")
    return quotients, begin


def _gaps(positions: Positions) -> NDArray[np.uint64]:
    """Return the number of zeros before each position."""
    signed = positions.astype(np.int64)
    return (np.diff(signed, prepend=-1) - 1).astype(np.uint64)
