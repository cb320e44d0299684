"""Remove weights that change no logit: they read channels that are always 0, or write channels that are never read."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.fused import AffineOp, ConvOp, FusedGraph, FusedOp, sources
from sparsemble.runtime.network import Weight

Flags = NDArray[np.bool_]


def remove_dead_channels(fused: FusedGraph) -> FusedGraph:
    """Return the same network without such weights; `needed_outputs` marks the channels that are read.

    Logits are equal bit for bit: what is removed adds 0, or is never read.
    """
    is_zero = [np.zeros(shape[0], bool) for shape in fused.shapes]
    operations: list[FusedOp] = []
    for operation in fused.operations:
        if isinstance(operation, ConvOp):
            weight = operation.weight
            operation = replace(operation, weight=weight.kept(~is_zero[operation.source][_channels(weight)[1]]))
        is_zero[operation.out] = _zero_channels(operation, is_zero)
        operations.append(operation)
    needed = [np.zeros(shape[0], bool) for shape in fused.shapes]
    needed[fused.logits_buffer][:] = True
    for i in reversed(range(len(operations))):
        operation = operations[i]
        read, buffers = needed[operation.out], sources(operation)
        if isinstance(operation, ConvOp):
            weight = operation.weight.kept(read[_channels(operation.weight)[0]])
            operations[i] = replace(operation, weight=weight, needed_outputs=None if read.all() else read)
            needed[operation.source][_channels(weight)[1]] = True
            buffers = buffers[1:]
        for buffer in buffers:
            needed[buffer] |= read
    return replace(fused, operations=tuple(operations))


def _channels(weight: Weight) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return output and input channel of every non-zero weight."""
    _, inputs, height, width = weight.shape
    positions = weight.positions.astype(np.int64)
    return positions // (inputs * height * width), positions // (height * width) % inputs


def _zero_channels(operation: FusedOp, is_zero: list[Flags]) -> Flags:
    """Return which channels of a result are 0 for every image."""
    if isinstance(operation, ConvOp):
        constant = operation.bias
        zero: Flags = np.ones(len(constant), bool)
        zero[_channels(operation.weight)[0]] = False
        if operation.residual is not None:
            zero &= is_zero[operation.residual]
    else:
        zero = np.all([is_zero[buffer] for buffer in sources(operation)], 0)
        if not isinstance(operation, AffineOp):
            return zero
        constant = operation.shift
    # A ReLU turns a negative constant into 0; -0 does no harm.
    zero &= constant <= 0 if operation.relu else constant == 0
    return zero
