"""The stream of records that a products kernel reads."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.fused import ConvOp
from sparsemble.runtime.compiler.layout import Plane, WindowLayout
from sparsemble.runtime.kernels.sparse_conv import FIRST, LAST

Bytes = NDArray[np.uint8]


@final
@dataclass(frozen=True, eq=False)
class WeightStream:
    """Records in the order in which they are read, and a head for each run of them."""

    records: Bytes
    heads: Bytes
    head_count: int


def stream(
    operation: ConvOp,
    source: WindowLayout,
    written: Plane,
    *,
    outputs: int,
    block: int,
    chains: int = 1,
    part: tuple[int, int] = (0, 1),
) -> WeightStream:
    """Return the records of a layer.

    Args:
        operation: the layer.
        source: where it finds its inputs.
        written: layout of what it writes.
        outputs: channels that share records.
        block: input channels that are gone through for all outputs before the next ones, so that their tile stays in
            the nearest cache.
        chains: groups of such channels that are gone through side by side.
        part: which of how many parts of the channels, equally much work each.
    """
    weight = operation.weight
    channels, height, width = weight.shape[1:]
    taps, groups = channels * height * width, -(-len(operation.bias) // outputs)
    # Positions rise: those of an output lie together.
    begins = np.searchsorted(weight.positions, np.arange(len(operation.bias) + 1) * taps)
    o = np.repeat(np.arange(len(operation.bias), dtype=np.int32), np.diff(begins))
    tap = (weight.positions - o.astype(np.int64) * taps).astype(np.uint32)
    values, mine = weight.values, _mine(o // outputs, groups, part)
    if part[1] > 1:
        kept = mine[o // outputs]
        o, tap, values = o[kept], tap[kept], values[kept]
    if chains > 1:
        # Every group has a head in every turn: turns so few that heads are no more than weights, or than groups.
        block = max(block, -(-channels * groups // max(weight.nonzeros, groups)))
    key = (tap // np.uint32(height * width) // np.uint32(block)).astype(np.int64) * groups + o // np.int32(outputs)
    # Every output adds up in the order of taps, whatever the layout and the choices: so all give the same bits.
    order = np.argsort(key * taps + tap, kind="stable")
    key, tap, values = key[order], tap[order], values[order]
    # One record for all members of a group that read the same place.
    new = np.ones(len(order), bool)
    if outputs > 1:
        new[1:] = (tap[1:] != tap[:-1]) | (key[1:] != key[:-1])
    total = int(new.sum())
    # The last record is what fills chains that are shorter than their neighbours: it adds 0.
    records = np.zeros(total + 1, dtype=[("offset", "<u4"), ("values", "<f4", (outputs,))])
    records["offset"][:total] = source.offsets(tap[new])
    if outputs > 1:
        records["values"][np.cumsum(new) - 1, o[order] % outputs] = values
    else:
        records["values"][:total, 0] = values
    runs = _runs(key[new], operation, outputs, mine, every=chains > 1)
    return _with_heads(records, runs, operation, written, chains)


def _mine(group: NDArray[np.int32], groups: int, part: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which groups belong to a part: those with most records are dealt out first, there and back."""
    found = np.zeros(groups, bool)
    turn = np.arange(groups) % (2 * part[1])
    owner = np.minimum(turn, 2 * part[1] - 1 - turn)
    found[np.argsort(-np.bincount(group, minlength=groups), kind="stable")[owner == part[0]]] = True
    return found


@final
@dataclass(frozen=True, eq=False)
class _Runs:
    """Runs of records of one group of outputs in one block of inputs."""

    turn: NDArray[np.int64]
    group: NDArray[np.int64]
    begin: NDArray[np.int64]
    length: NDArray[np.int64]

    def __getitem__(self, which: NDArray[np.int64]) -> "_Runs":
        return _Runs(self.turn[which], self.group[which], self.begin[which], self.length[which])


def _runs(keys: NDArray[np.int64], operation: ConvOp, outputs: int, mine: NDArray[np.bool_], *, every: bool) -> _Runs:
    """Find the runs; a group that has none still has its bias, if anybody reads it.

    Args:
        keys: block of inputs x groups + group of each record, rising.
        operation: whose they are.
        outputs: in a group.
        mine: which groups are asked for.
        every: give every group a run in every turn, perhaps an empty one.
    """
    count = len(operation.bias)
    groups = -(-count // outputs)
    wanted = np.ones(count, bool) if operation.wanted is None else operation.wanted
    read = np.unique(np.flatnonzero(wanted) // outputs)
    read = read[mine[read]]
    begins = np.flatnonzero(np.diff(keys, prepend=-1))
    lengths, key = np.diff(begins, append=len(keys)), keys[begins]
    turns = np.unique(key // groups) if len(key) else np.zeros(1, np.int64)
    one_turn = turns[0] * groups + np.setdiff1d(read, key % groups)
    needed = (turns[:, None] * groups + read).reshape(-1) if every else one_turn
    silent = np.setdiff1d(needed, key)
    key = np.concatenate([key, silent])
    none = np.zeros(len(silent), np.int64)
    found = _Runs(key // groups, key % groups, np.concatenate([begins, none]), np.concatenate([lengths, none]))
    # Runs of equal length beside each other: then the processor foresees their ends.
    return found[np.lexsort((found.group, found.length, found.turn))]


def _with_heads(records: NDArray[Any], runs: _Runs, operation: ConvOp, written: Plane, chains: int) -> WeightStream:
    """Put `chains` runs side by side, those filled up that are shorter, and say where the sums of each go."""
    if not len(runs.turn):
        return WeightStream(np.zeros(0, np.uint8), np.zeros(0, np.uint8), 0)
    outputs = records["values"].shape[1]
    groups = -(-len(operation.bias) // outputs)
    bias = np.zeros((groups + 1, outputs), np.float32)
    bias.reshape(-1)[: len(operation.bias)] = operation.bias
    kind = [("offset", "<u4", (chains,)), ("records", "<u4"), ("flags", "<u4"), ("bias", "<f4", (chains, outputs))]
    first, last = np.full(groups, np.iinfo(np.int64).max), np.full(groups, -1)
    np.minimum.at(first, runs.group, runs.turn)
    np.maximum.at(last, runs.group, runs.turn)
    heads, begins, lengths = [], [], []
    for turn in np.unique(runs.turn):
        here = runs[np.flatnonzero(runs.turn == turn)]
        rows = -(-len(here.group) // chains)
        # A chain too many has no records, and writes to the spare channels behind the last one.
        spare = rows * chains - len(here.group)
        group = np.concatenate([here.group, np.full(spare, groups)]).reshape(rows, chains)
        begin = np.concatenate([here.begin, np.zeros(spare, np.int64)]).reshape(rows, chains)
        length = np.concatenate([here.length, np.zeros(spare, np.int64)]).reshape(rows, chains)
        head = np.zeros(rows, kind)
        head["offset"] = group * outputs * written.plane
        head["records"] = length.max(1)
        head["flags"] = FIRST * (turn == first[group[:, 0]]) + LAST * (turn == last[group[:, 0]])
        head["bias"] = bias[group]
        heads.append(head)
        begins.append(begin)
        lengths.append(length)
    taken = records[_side_by_side(np.concatenate(begins), np.concatenate(lengths), len(records) - 1)]
    apart = np.zeros(len(taken), [("offset", "<u4", (chains,)), ("values", "<f4", (chains, outputs))])
    apart["offset"], apart["values"] = taken["offset"], taken["values"]
    all_heads = np.concatenate(heads)
    return WeightStream(_bytes(apart), _bytes(all_heads), len(all_heads))


def _side_by_side(begin: NDArray[np.int64], length: NDArray[np.int64], filler: int) -> NDArray[np.int64]:
    """Return the records of runs (rows, chains): of the first row the first of each chain, the second of each, .."""
    longest = length.max(1)
    row = np.repeat(np.arange(len(longest)), longest)
    step = np.arange(len(row)) - np.repeat(np.cumsum(longest) - longest, longest)
    return np.where(step[:, None] < length[row], begin[row] + step[:, None], filler)


def _bytes(array: NDArray[Any]) -> Bytes:
    return np.frombuffer(array.tobytes(), dtype=np.uint8)
