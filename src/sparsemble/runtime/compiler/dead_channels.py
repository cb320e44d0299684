"""Remove weights that change no logit: they read channels that are always 0, or write channels that are never read."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.fused import AffineOp, ConvOp, FusedGraph, FusedOp, PoolOp
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
            operation = _drop_zero_inputs(operation, is_zero[operation.source])
        is_zero[operation.out] = _zero_channels(operation, is_zero)
        operations.append(operation)
    needed = [np.zeros(shape[0], bool) for shape in fused.shapes]
    needed[fused.logits_buffer][:] = True
    for i in reversed(range(len(operations))):
        operation = operations[i]
        if isinstance(operation, ConvOp):
            operations[i] = operation = _drop_unread_outputs(operation, needed[operation.out])
            needed[operation.source] |= _read_channels(operation)
            if operation.residual is not None:
                needed[operation.residual] |= needed[operation.out]
        else:
            needed[operation.source] |= needed[operation.out]
            if not isinstance(operation, PoolOp | AffineOp):
                needed[operation.addend] |= needed[operation.out]
    return replace(fused, operations=tuple(operations))


def _channels(weight: Weight) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return output and input channel of every non-zero weight."""
    _, inputs, height, width = weight.shape
    positions = weight.positions.astype(np.int64)
    return positions // (inputs * height * width), positions // (height * width) % inputs


def _with_weights(operation: ConvOp, keep: Flags) -> ConvOp:
    """Return the operation with some of its non-zero weights."""
    weight = operation.weight
    if keep.all():
        return operation
    return replace(operation, weight=Weight(weight.shape, weight.positions[keep], weight.values[keep]))


def _drop_zero_inputs(operation: ConvOp, is_zero: Flags) -> ConvOp:
    """Remove weights that read channels that are always 0."""
    return _with_weights(operation, ~is_zero[_channels(operation.weight)[1]])


def _drop_unread_outputs(operation: ConvOp, needed: Flags) -> ConvOp:
    """Remove weights of outputs that are never read."""
    reduced = _with_weights(operation, needed[_channels(operation.weight)[0]])
    return replace(reduced, needed_outputs=None if needed.all() else needed)


def _read_channels(operation: ConvOp) -> Flags:
    read = np.zeros(operation.weight.shape[1], bool)
    read[_channels(operation.weight)[1]] = True
    return read


def _zero_channels(operation: FusedOp, is_zero: list[Flags]) -> Flags:
    """Return which channels of a result are 0 for every image."""
    if isinstance(operation, ConvOp):
        has_weights = np.zeros(len(operation.bias), bool)
        has_weights[_channels(operation.weight)[0]] = True
        # A ReLU turns a negative bias into 0; -0 does no harm.
        zero: Flags = ~has_weights & (operation.bias <= 0 if operation.relu else operation.bias == 0)
        return zero if operation.residual is None else zero & is_zero[operation.residual]
    if isinstance(operation, PoolOp):
        return is_zero[operation.source]
    if isinstance(operation, AffineOp):
        shift = operation.shift
        affine_zero: Flags = is_zero[operation.source] & (shift <= 0 if operation.relu else shift == 0)
        return affine_zero
    return is_zero[operation.source] & is_zero[operation.addend]
