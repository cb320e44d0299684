"""Weights that change no answer: they read channels that are always 0, or make channels that nobody reads."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.fused import AffineOp, ConvOp, FusedGraph, FusedOp, PoolOp
from sparsemble.runtime.network import Weight

Flags = NDArray[np.bool_]


def remove_dead_channels(fused: FusedGraph) -> FusedGraph:
    """Return the same network without such weights; outputs that nobody reads are marked as not wanted.

    Answers keep their bits: what is left out adds 0, or goes nowhere.
    """
    silent = [np.zeros(shape[0], bool) for shape in fused.shapes]
    operations: list[FusedOp] = []
    for operation in fused.operations:
        kept = _hearing(operation, silent[operation.source]) if isinstance(operation, ConvOp) else operation
        silent[operation.out] = _silent(kept, silent)
        operations.append(kept)
    wanted = [np.zeros(shape[0], bool) for shape in fused.shapes]
    wanted[fused.answer][:] = True
    for place in reversed(range(len(operations))):
        operation = operations[place]
        if isinstance(operation, ConvOp):
            operations[place] = operation = _heard(operation, wanted[operation.out])
            wanted[operation.source] |= _read(operation)
            if operation.residual is not None:
                wanted[operation.residual] |= wanted[operation.out]
        else:
            wanted[operation.source] |= wanted[operation.out]
            if not isinstance(operation, PoolOp | AffineOp):
                wanted[operation.other] |= wanted[operation.out]
    return replace(fused, operations=tuple(operations))


def _parts(weight: Weight) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return output and input channel of every weight."""
    _, inputs, height, width = weight.shape
    positions = weight.positions.astype(np.int64)
    return positions // (inputs * height * width), positions // (height * width) % inputs


def _only(operation: ConvOp, kept: Flags) -> ConvOp:
    weight = operation.weight
    if kept.all():
        return operation
    return replace(operation, weight=Weight(weight.shape, weight.positions[kept], weight.values[kept]))


def _hearing(operation: ConvOp, silent: Flags) -> ConvOp:
    """Drop weights that read channels that are always 0."""
    return _only(operation, ~silent[_parts(operation.weight)[1]])


def _heard(operation: ConvOp, wanted: Flags) -> ConvOp:
    """Drop weights of outputs that nobody reads."""
    found = _only(operation, wanted[_parts(operation.weight)[0]])
    return replace(found, wanted=None if wanted.all() else wanted)


def _read(operation: ConvOp) -> Flags:
    found = np.zeros(operation.weight.shape[1], bool)
    found[_parts(operation.weight)[1]] = True
    return found


def _silent(operation: FusedOp, silent: list[Flags]) -> Flags:
    """Return which channels of a result are 0 for every image."""
    if isinstance(operation, ConvOp):
        alive = np.zeros(len(operation.bias), bool)
        alive[_parts(operation.weight)[0]] = True
        # -0 would do no harm; a bias below 0 is cut off by the ReLU.
        found: Flags = ~alive & (operation.bias <= 0 if operation.relu else operation.bias == 0)
        return found if operation.residual is None else found & silent[operation.residual]
    if isinstance(operation, PoolOp):
        return silent[operation.source]
    if isinstance(operation, AffineOp):
        shift = operation.shift
        gone: Flags = silent[operation.source] & (shift <= 0 if operation.relu else shift == 0)
        return gone
    return silent[operation.source] & silent[operation.other]
