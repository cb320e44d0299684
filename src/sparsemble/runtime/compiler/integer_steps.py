"""The steps of a plan that compute in 8 bits: integer convolutions, and conversions from and to floats."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.execution_plan import BufferAddress, ExecutionPlan, KernelCall, KernelConfig
from sparsemble.runtime.compiler.fused import CHANNELS_OF_LANE, ConvertOp, ConvOp, FusedGraph
from sparsemble.runtime.compiler.im2col import PartialSums
from sparsemble.runtime.compiler.integer_stream import integer_stream
from sparsemble.runtime.compiler.layout import Plane, TileLayout
from sparsemble.runtime.kernels.integer_conv import IntegerConv
from sparsemble.runtime.kernels.jit import dot_instructions
from sparsemble.runtime.kernels.steps import Convert
from sparsemble.runtime.network import Pair, Steps

LARGEST_TILE = 12
"""Vectors: their sums and their packed results stay in registers."""
SUMS_IN_FLIGHT = 4
"""Independent sums that hide the latency of a multiply-add, as the next output begins before this one ends."""
SIGNED_SURPLUS = 128
"""What `sdot` takes from every input."""


def partial_sums(fused: FusedGraph, lanes: int) -> list[PartialSums]:
    """Return the memory for sums that a plan needs, if it adds integers."""
    counts = [len(o.bias) for o in fused.operations if isinstance(o, ConvOp) and fused.reads_integers(o)]
    return [PartialSums((max(counts) + CHANNELS_OF_LANE) * LARGEST_TILE * 4 * lanes)] if counts else []


def integer_configs(tiles: Sequence[Pair], block: int) -> list[KernelConfig]:
    """Return configurations that may be the fastest; the first one is rarely slow.

    Args:
        tiles: rows and columns of vectors, at most LARGEST_TILE.
        block: groups of input channels of the first tile that fit into the L1 cache.
    """
    return [KernelConfig(tile, block, 1, max(1, SUMS_IN_FLIGHT // (tile[0] * tile[1]))) for tile in tiles]


def add_integer_conv(plan: ExecutionPlan, index: int, config: KernelConfig, tiles: TileLayout) -> None:
    """Add a convolution that reads steps and has integer weights.

    Args:
        plan: where it is added.
        index: of the operation.
        config: how it is computed.
        tiles: how it reads and writes.
    """
    operation, steps = plan.fused.operations[index], plan.fused.steps
    assert isinstance(operation, ConvOp)
    residual = operation.out if operation.residual is None else operation.residual
    kind = dot_instructions(tiles.lanes)
    written, added = plan.layout.plane(operation.out), plan.layout.plane(residual)
    kernel = IntegerConv(
        lanes=tiles.lanes,
        reads=tiles.reads,
        writes=tiles.writes,
        plane=written.plane,
        residual_plane=added.plane,
        residual="none" if operation.residual is None else "steps" if residual in steps else "floats",
        relu=operation.relu,
        to_steps=operation.out in steps,
        aligned=tiles.aligned,
        dot=kind,
        chains=config.chains,
    )
    strides = tuple(
        plane.plane * (1 if buffer in steps else CHANNELS_OF_LANE)
        for buffer, plane in ((operation.out, written), (residual, added))
    )
    constants = np.concatenate(
        [step_constants(steps.get(operation.out), relu=operation.relu), step_constants(steps.get(residual), relu=False)]
    )
    calls = []
    for thread in range(plan.threads):
        key = (index, config.block, config.chains, thread)
        if key not in plan.streams:
            plan.streams[key] = integer_stream(
                operation,
                tiles.window,
                steps[operation.source],
                (strides[0], strides[1]),
                block=config.block,
                chains=config.chains,
                surplus=SIGNED_SURPLUS if kind == "sdot" else 0,
                part=(thread, plan.threads),
            )
        stream = plan.streams[key]
        buffers = (BufferAddress(tiles.buffer), BufferAddress(operation.out), BufferAddress(residual))
        partial = BufferAddress(next(i for i, b in enumerate(plan.layout.buffers) if isinstance(b, PartialSums)))
        arguments = (*buffers, stream.records, stream.heads, stream.head_count, tiles.offsets, constants, partial)
        calls.append(KernelCall(arguments, 0, len(tiles.offsets)))
    plan.add_step(kernel, tuple(calls))


def add_conversion(plan: ExecutionPlan, operation: ConvertOp, grid: tuple[int, int, int]) -> None:
    """Add the conversion of floats to steps, or of steps to floats.

    Args:
        plan: where it is added.
        operation: the conversion.
        grid: floats in a vector, rows of vectors in a channel, vectors in a row.
    """
    read, written = plan.layout.plane(operation.source), plan.layout.plane(operation.out)
    steps, (lanes, rows, row_vectors) = plan.fused.steps, grid
    to_steps = operation.out in steps
    kernel = Convert(
        lanes=lanes,
        rows=rows,
        row_vectors=row_vectors,
        read_offset=read.origin,
        read_row=read.row,
        read_plane=read.plane,
        write_offset=written.origin,
        write_row=written.row,
        write_plane=written.plane,
        to_steps=to_steps,
    )
    packed: Plane = written if to_steps else read
    constants = step_constants(steps[operation.out if to_steps else operation.source], relu=False)
    plan.add(kernel, (BufferAddress(operation.source), BufferAddress(operation.out), constants), packed.channels)


def step_constants(steps: Steps | None, *, relu: bool) -> NDArray[np.uint8]:
    """Return {scale, zero, lowest, highest} of steps; a ReLU clips at 0."""
    found = steps or Steps(1.0, 0)
    values = np.zeros(1, [("scale", "<f4"), ("zero", "<i4"), ("lowest", "<f4"), ("highest", "<f4")])
    values["scale"], values["zero"] = found.scale, found.zero
    values["lowest"], values["highest"] = 0 if relu else -found.zero, 255 - found.zero
    return np.frombuffer(values.tobytes(), np.uint8)
