"""The stream of weight records that a sparse convolution reads, and the heads that divide it."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.fused import ConvOp
from sparsemble.runtime.compiler.layout import Plane, WindowLayout
from sparsemble.runtime.kernels.sparse_conv import FIRST, LAST

Bytes = NDArray[np.uint8]
RUN = np.dtype([("turn", np.int64), ("group", np.int64), ("begin", np.int64), ("length", np.int64)])
"""Records of one group of outputs in one turn, which is a block of inputs."""


@final
@dataclass(frozen=True, eq=False)
class WeightStream:
    """Records in the order in which they are read, and a head for each run of them."""

    records: Bytes
    heads: Bytes
    head_count: int


def weight_stream(
    operation: ConvOp,
    source: WindowLayout,
    written: Plane,
    *,
    outputs: int,
    block: int,
    chains: int = 1,
    part: tuple[int, int] = (0, 1),
    channels_of_plane: int = 1,
) -> WeightStream:
    """Return the records of a convolution.

    Args:
        operation: the convolution.
        source: where its windows are.
        written: layout of its output.
        outputs: output channels that share records.
        block: input channels that are added for all outputs before the next ones, so that their tile stays in L1.
        chains: groups of such output channels that are summed side by side.
        part: index and number of parts into which the output channels are divided, with about equal work in each.
        channels_of_plane: output channels that share a plane.
    """
    weight = operation.weight
    channels, height, width = weight.shape[1:]
    taps, groups = channels * height * width, -(-len(operation.bias) // outputs)
    # Positions rise, so those of an output are contiguous.
    starts = np.searchsorted(weight.positions, np.arange(len(operation.bias) + 1) * taps)
    output = np.repeat(np.arange(len(operation.bias), dtype=np.int32), np.diff(starts))
    tap = (weight.positions - output.astype(np.int64) * taps).astype(np.uint32)
    values, in_part = weight.values, divide_groups(output // outputs, groups, part)
    if part[1] > 1:
        selected = in_part[output // outputs]
        output, tap, values = output[selected], tap[selected], values[selected]
    if chains > 1:
        # Every group has a head in every turn: so few turns that there are no more heads than weights, or than groups.
        block = max(block, -(-channels * groups // max(weight.nonzeros, groups)))
    turn = tap // np.uint32(height * width) // np.uint32(block)
    key = turn.astype(np.int64) * groups + output // np.int32(outputs)
    # Every output is summed in the order of taps for every layout and configuration, so all give the same bits.
    order = np.argsort(key * taps + tap, kind="stable")
    key, tap, values = key[order], tap[order], values[order]
    # Outputs of a group that read the same input share one record.
    is_new = np.ones(len(order), bool)
    if outputs > 1:
        is_new[1:] = (tap[1:] != tap[:-1]) | (key[1:] != key[:-1])
    total = int(is_new.sum())
    # The last record adds 0; it fills chains that are shorter than their neighbours.
    records = np.zeros(total + 1, dtype=[("offset", "<u4"), ("values", "<f4", (outputs,))])
    records["offset"][:total] = source.tap_offsets(tap[is_new])
    if outputs > 1:
        records["values"][np.cumsum(is_new) - 1, output[order] % outputs] = values
    else:
        records["values"][:total, 0] = values
    runs = _find_runs(key[is_new], operation, outputs, in_part, every=chains > 1)
    return _with_heads(records, runs, operation, written.plane // channels_of_plane, chains)


def divide_groups(record_groups: NDArray[np.int32], groups: int, part: tuple[int, int]) -> NDArray[np.bool_]:
    """Return (groups) whether each group of outputs belongs to a part.

    Groups are dealt out in the order of their records, most first: 0, 1, .., n-1, n-1, .., 1, 0, 0, ..

    Args:
        record_groups: (records) group of each record.
        groups: number of groups.
        part: index and number of parts.
    """
    in_part = np.zeros(groups, bool)
    turn = np.arange(groups) % (2 * part[1])
    owner = np.minimum(turn, 2 * part[1] - 1 - turn)
    in_part[np.argsort(-np.bincount(record_groups, minlength=groups), kind="stable")[owner == part[0]]] = True
    return in_part


def _find_runs(
    keys: NDArray[np.int64], operation: ConvOp, outputs: int, in_part: NDArray[np.bool_], *, every: bool
) -> NDArray[Any]:
    """Return the runs; a group without records has an empty one, for its bias, if the group is read.

    `keys` are turn x groups + group of each record, rising; `in_part` selects groups; `every` asks for a run of each
    group in every turn, perhaps an empty one.
    """
    count = len(operation.bias)
    groups = -(-count // outputs)
    needed = np.ones(count, bool) if operation.needed_outputs is None else operation.needed_outputs
    read = np.unique(np.flatnonzero(needed) // outputs)
    read = read[in_part[read]]
    begins = np.flatnonzero(np.diff(keys, prepend=-1))
    lengths, key = np.diff(begins, append=len(keys)), keys[begins]
    turns = np.unique(key // groups) if len(key) else np.zeros(1, np.int64)
    one_turn = turns[0] * groups + np.setdiff1d(read, key % groups)
    required = (turns[:, None] * groups + read).reshape(-1) if every else one_turn
    empty = np.setdiff1d(required, key)
    runs = np.zeros(len(key) + len(empty), RUN)
    runs["turn"], runs["group"] = np.divmod(np.concatenate([key, empty]), groups)
    runs["begin"][: len(key)], runs["length"][: len(key)] = begins, lengths
    # Runs of equal length are neighbours, so that the processor predicts their ends.
    return runs[np.lexsort((runs["group"], runs["length"], runs["turn"]))]


def _with_heads(
    records: NDArray[Any], runs: NDArray[Any], operation: ConvOp, channel: int, chains: int
) -> WeightStream:
    """Interleave `chains` runs, the shorter ones padded, and write a head with the offsets of their sums.

    The last record adds 0; runs are in the order in which they are computed. Output channels are `channel` bytes apart.
    """
    if not len(runs):
        return WeightStream(np.zeros(0, np.uint8), np.zeros(0, np.uint8), 0)
    outputs = records["values"].shape[1]
    groups = -(-len(operation.bias) // outputs)
    bias = np.zeros((groups + 1, outputs), np.float32)
    bias.reshape(-1)[: len(operation.bias)] = operation.bias
    first, last = np.full(groups, np.iinfo(np.int64).max), np.full(groups, -1)
    np.minimum.at(first, runs["group"], runs["turn"])
    np.maximum.at(last, runs["group"], runs["turn"])
    of_turns = []
    for turn in np.unique(runs["turn"]):
        of_turn = runs[runs["turn"] == turn]
        rows = np.zeros((-(-len(of_turn) // chains), chains), RUN)
        # A surplus chain has no records, and writes to the spare channels behind the last one.
        rows["turn"], rows["group"] = turn, groups
        rows.reshape(-1)[: len(of_turn)] = of_turn
        of_turns.append(rows)
    chained = np.concatenate(of_turns)
    turn, group = chained["turn"][:, 0], chained["group"][:, 0]
    dtype = [("offset", "<u4", (chains,)), ("records", "<u4"), ("flags", "<u4"), ("bias", "<f4", (chains, outputs))]
    heads = np.zeros(len(chained), dtype)
    heads["offset"] = chained["group"] * outputs * channel
    heads["records"] = chained["length"].max(1)
    heads["flags"] = FIRST * (turn == first[group]) + LAST * (turn == last[group])
    heads["bias"] = bias[chained["group"]]
    taken = records[_interleave(chained["begin"], chained["length"], len(records) - 1)]
    interleaved = np.zeros(len(taken), [("offset", "<u4", (chains,)), ("values", "<f4", (chains, outputs))])
    interleaved["offset"], interleaved["values"] = taken["offset"], taken["values"]
    return WeightStream(_bytes(interleaved), _bytes(heads), len(heads))


def _interleave(begin: NDArray[np.int64], length: NDArray[np.int64], filler: int) -> NDArray[np.int64]:
    """Return (steps, chains) indices of records: for each row of runs, the first of each chain, the second, ..

    `begin` and `length` are (rows, chains); the record `filler` pads shorter runs.
    """
    longest = length.max(1)
    row = np.repeat(np.arange(len(longest)), longest)
    step = np.arange(len(row)) - np.repeat(np.cumsum(longest) - longest, longest)
    return np.where(step[:, None] < length[row], begin[row] + step[:, None], filler)


def _bytes(array: NDArray[Any]) -> Bytes:
    return np.frombuffer(array.tobytes(), dtype=np.uint8)
