"""The stream of records that a products kernel reads."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.fused import Product
from sparsemble.runtime.kernels.products import FIRST, LAST
from sparsemble.runtime.layout import Plane, Reading

Bytes = NDArray[np.uint8]


@final
@dataclass(frozen=True, eq=False)
class Stream:
    """Records in the order in which they are read, and a head for each run of them."""

    records: Bytes
    heads: Bytes
    head_count: int


def stream(operation: Product, source: Reading, written: Plane, *, outputs: int, block: int) -> Stream:
    """Return the records of a layer.

    Args:
        operation: the layer.
        source: where it finds its inputs.
        written: layout of what it writes.
        outputs: channels that share records.
        block: input channels that are gone through for all outputs before the next ones, so that their tile stays in
            the nearest cache.
    """
    weight, count = operation.weight, len(operation.bias)
    places = np.unravel_index(weight.positions.astype(np.int64), weight.shape)
    o, c, ky, kx = (place.astype(np.int64) for place in places)
    values = weight.values
    offsets = c * source.plane + source.taps[ky, kx]
    # Every output adds up its inputs in this order, whatever the layout and the choices: so all give the same bits.
    tap = (c * weight.shape[2] + ky) * weight.shape[3] + kx
    group, member, turn = o // outputs, o % outputs, c // block
    order = np.lexsort((tap, group, turn))
    group, member, turn, offsets, tap = (a[order] for a in (group, member, turn, offsets, tap))
    values = values[order]
    # One record for all members of a group that read the same place.
    new = np.ones(len(order), bool)
    if len(order):
        new[1:] = (tap[1:] != tap[:-1]) | (group[1:] != group[:-1])
    place = np.cumsum(new) - 1
    total = int(new.sum())
    records = np.zeros(total, dtype=[("offset", "<u4"), ("values", "<f4", (outputs,))])
    records["offset"] = offsets[new]
    records["values"][place, member] = values
    return _with_heads(records, group[new], turn[new], operation, written, outputs, count)


def _with_heads(
    records: NDArray[Any],
    group: NDArray[np.int64],
    turn: NDArray[np.int64],
    operation: Product,
    written: Plane,
    outputs: int,
    count: int,
) -> Stream:
    """Put runs of equal length beside each other, and say of each where it starts and ends."""
    groups = -(-count // outputs)
    key = turn * groups + group
    runs, begins, lengths = np.unique(key, return_index=True, return_counts=True)
    # A group without weights still has its bias, if anybody reads it.
    wanted = np.ones(count, bool) if operation.wanted is None else operation.wanted
    read = np.unique(np.flatnonzero(wanted) // outputs)
    silent = np.setdiff1d(read, runs % groups)
    runs = np.concatenate([runs, silent])
    begins = np.concatenate([begins, np.zeros(len(silent), begins.dtype)])
    lengths = np.concatenate([lengths, np.zeros(len(silent), lengths.dtype)])
    of_turn, of_group = runs // groups, runs % groups
    order = np.lexsort((of_group, lengths, of_turn))
    heads = np.zeros(
        len(runs), dtype=[("offset", "<u4"), ("records", "<u4"), ("flags", "<u4"), ("bias", "<f4", (outputs,))]
    )
    bias = np.zeros(groups * outputs, np.float32)
    bias[:count] = operation.bias
    first, last = np.full(groups, np.iinfo(np.int64).max), np.full(groups, -1)
    np.minimum.at(first, of_group, of_turn)
    np.maximum.at(last, of_group, of_turn)
    heads["offset"] = of_group * outputs * written.plane
    heads["records"] = lengths
    heads["flags"] = FIRST * (of_turn == first[of_group]) + LAST * (of_turn == last[of_group])
    heads["bias"] = bias.reshape(groups, outputs)[of_group]
    runs_of = [np.arange(b, b + n) for b, n in zip(begins[order], lengths[order], strict=True)]
    moved = np.concatenate([np.zeros(0, np.int64), *runs_of])
    stored = records[moved.astype(np.int64)] if len(moved) else records
    return Stream(_bytes(stored), _bytes(heads[order]), len(heads))


def _bytes(array: NDArray[Any]) -> Bytes:
    return np.frombuffer(array.tobytes(), dtype=np.uint8)
