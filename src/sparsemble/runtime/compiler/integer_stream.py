"""The stream of records that an integer convolution reads: four weights each, for four input channels of one tap."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.fused import CHANNELS_OF_LANE, ConvOp
from sparsemble.runtime.compiler.layout import WindowLayout
from sparsemble.runtime.compiler.weight_stream import WeightStream, divide_groups
from sparsemble.runtime.kernels.integer_conv import HEAD_BYTES, RECORD_BYTES
from sparsemble.runtime.kernels.sparse_conv import FIRST, LAST
from sparsemble.runtime.network import Steps

RECORD = np.dtype([("offset", "<u4"), ("weights", "i1", (CHANNELS_OF_LANE,))])
RUN = np.dtype([("records", "<u4"), ("bias", "<i4"), ("scale", "<f4"), ("added", "<f4")])
HEAD = np.dtype(
    [("out", "<u4"), ("residual", "<u4"), ("partial", "<u4"), ("flags", "<u4"), ("runs", RUN, (CHANNELS_OF_LANE,))]
)
assert (RECORD.itemsize, HEAD.itemsize) == (RECORD_BYTES, HEAD_BYTES)


def integer_stream(
    operation: ConvOp,
    source: WindowLayout,
    steps: Steps,
    planes: tuple[int, int],
    *,
    block: int,
    chains: int = 1,
    surplus: int = 0,
    part: tuple[int, int] = (0, 1),
) -> WeightStream:
    """Return the records and heads of a convolution with integer weights.

    Args:
        operation: the convolution.
        source: where its windows are.
        steps: of what it reads.
        planes: bytes from four outputs, and from four channels of the residual, to the next four.
        block: groups of four input channels that are added for all outputs before the next ones.
        chains: every run has a multiple of that many records; those that fill it up have weights 0.
        surplus: what the kernel subtracts from every input.
        part: index and number of parts into which the output channels are divided, with about equal work in each.
    """
    weight, lane = operation.weight, CHANNELS_OF_LANE
    assert weight.integers is not None
    assert weight.scales is not None
    count, channels, height, width = weight.shape
    area, columns, groups = height * width, -(-channels // lane), -(-count // lane)
    output, tap = np.divmod(weight.positions.astype(np.int64), channels * area)
    channel, tap = np.divmod(tap, area)
    # Every output is a row of (group of channels, tap); weights of one entry share a record.
    key = (output * columns + channel // lane) * area + tap
    found, record = np.unique(key, return_inverse=True)
    weights = np.zeros((len(found), lane), np.int8)
    weights[record, channel % lane] = weight.integers
    output, tap = np.divmod(found, columns * area)
    in_part = divide_groups((output // lane).astype(np.int32), groups, part)
    output, tap, weights = (array[in_part[output // lane]] for array in (output, tap, weights))
    # Every four outputs have a head in every turn: so few turns that heads do not outnumber records.
    turns = max(1, min(-(-columns // block), len(tap) // (lane * groups * max(1, chains // 2))))
    block = -(-columns // turns)
    turn = tap // area // block
    run = turn * (lane * groups) + output
    order = np.argsort(run, kind="stable")
    run, tap, weights = run[order], tap[order], weights[order]
    lengths = np.bincount(run, minlength=turns * groups * lane)
    padded = -(-lengths // chains) * chains
    begin = np.cumsum(padded) - padded
    records = np.zeros(int(padded.sum()), RECORD)
    place = begin[run] + np.arange(len(run)) - (np.cumsum(lengths) - lengths)[run]
    records["offset"][place], records["weights"][place] = source.tap_offsets(tap.astype(np.uint32)), weights
    heads = _heads(operation, padded.reshape(turns, groups, lane), steps, planes, surplus)
    heads = heads[:, _computed(operation, groups) & in_part].reshape(-1)
    # Groups that are not computed have no records, as outputs that nobody reads have none.
    return WeightStream(_bytes(records), _bytes(heads), len(heads))


def _computed(operation: ConvOp, groups: int) -> NDArray[np.bool_]:
    """Return which groups of four outputs are read."""
    if operation.needed_outputs is None:
        return np.ones(groups, bool)
    needed = np.zeros(groups * CHANNELS_OF_LANE, bool)
    needed[: len(operation.needed_outputs)] = operation.needed_outputs
    return np.asarray(needed.reshape(groups, CHANNELS_OF_LANE).any(1))


def _heads(
    operation: ConvOp, lengths: NDArray[np.int64], steps: Steps, planes: tuple[int, int], surplus: int
) -> NDArray[Any]:
    """Return (turns, groups) heads; every group has its first sums in the first turn and its last in the last."""
    weight, (turns, groups, lane) = operation.weight, lengths.shape
    assert weight.integers is not None
    assert weight.scales is not None
    count = len(operation.bias)
    output = weight.positions.astype(np.int64) // math.prod(weight.shape[1:])
    totals = np.bincount(output, weight.integers.astype(np.float64), minlength=count).astype(np.int64)

    def by_group(values: NDArray[Any]) -> NDArray[Any]:
        filled = np.zeros(groups * lane, values.dtype)
        filled[:count] = values
        return filled.reshape(groups, lane)

    heads = np.zeros((turns, groups), HEAD)
    for name, bytes_ in zip(("out", "residual"), planes, strict=True):
        heads[name] = np.arange(groups) * bytes_
    heads["partial"] = np.arange(groups) * lane
    heads["flags"][0] += FIRST
    heads["flags"][-1] += LAST
    heads["runs"]["records"] = lengths
    heads["runs"]["bias"] = by_group(totals * (surplus - steps.zero))
    heads["runs"]["scale"] = by_group(weight.scales * np.float32(steps.scale))
    heads["runs"]["added"] = by_group(operation.bias)
    return heads


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.frombuffer(array.tobytes(), np.uint8)
