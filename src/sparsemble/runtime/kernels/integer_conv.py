"""The sparse convolution kernel in 8 bits: integer sums of products, then one float32 result, perhaps rounded again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from llvmlite import ir

from sparsemble.runtime.kernels.dot_product import Dot, dot_product
from sparsemble.runtime.kernels.llvm_builder import LONG, Kernel, LLVMBuilder, Value
from sparsemble.runtime.kernels.sparse_conv import (
    FIRST,
    HEAD_COUNT,
    HEADS,
    INPUT,
    LAST,
    OUTPUT,
    RECORDS,
    RESIDUAL,
    STEPS,
    TILES,
)
from sparsemble.runtime.kernels.steps import PACKED, STEP_BYTES, append_byte, load_steps, rounded, to_floats

PARTIAL_SUMS = 8
"""A further index in the table of arguments: memory for the sums of a tile. The steps are of output and residual."""
RECORD_BYTES = 8
"""Of {input offset, four weights}."""
RUN_BYTES = 16
"""Of the part of a head for one output: {number of records, integer bias, scale, bias}."""
HEAD_BYTES = 16 + PACKED * RUN_BYTES
"""Of {output offset, residual offset, offset of partial sums, flags, four runs}."""
Residual = Literal["none", "floats", "steps"]


@final
@dataclass(frozen=True)
class IntegerConv(Kernel):
    """Loops over tiles of outputs; for each tile over heads; for each head over four outputs and their records.

    A tile is {input offset, output offset}. The records of a head's first output come first. Sums that start with a
    head begin with the integer bias, others with partial sums; sums that end with it become floats: scale times sum
    plus bias plus residual, rectified. Integers are exact, so their order is free: `chains` records are added to sums
    of their own, which hides latency; every run has a multiple of that many records. The range is over tiles.
    """

    lanes: int
    """Outputs of a vector."""
    reads: tuple[int, ...]
    """Bytes from a record's input to each vector of a tile."""
    writes: tuple[int, ...]
    """Bytes from a tile's output offset to each of its vectors."""
    plane: int
    """Bytes from one output channel to the next, where the output is floats."""
    residual_plane: int
    """Bytes from one channel of the residual to the next, where that is floats."""
    residual: Residual
    relu: bool
    to_steps: bool
    """Whether the result is rounded to steps; then four channels share a plane."""
    aligned: bool
    dot: Dot
    chains: int = 1

    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""
        code = LLVMBuilder(module, name, self.lanes, aligned=self.aligned)
        source, out, residual = code.argument(INPUT), code.argument(OUTPUT), code.argument(RESIDUAL)
        records, heads, tiles = code.argument(RECORDS), code.argument(HEADS), code.argument(TILES)
        steps, partial = code.argument(STEPS), code.argument(PARTIAL_SUMS)
        count = code.argument(HEAD_COUNT, LONG)
        with code.loop(code.first, code.last) as tile:
            entry = code.address(tiles, code.scaled(tile, 8))
            written = code.load_uint32(entry, 4)
            read = code.address(source, code.load_uint32(entry))
            pointers = (read, code.address(out, written), code.address(residual, written), partial)
            following = [records]
            with code.loop(0, count, following) as i:
                head = code.address(heads, code.scaled(i, HEAD_BYTES))
                following[0] = self._head(code, head, following[0], pointers, steps)
        code.finish()

    def _head(self, code: LLVMBuilder, head: Value, records: Value, pointers: tuple[Value, ...], steps: Value) -> Value:
        """Write the code of one head; return the address of the next head's records."""
        source, size = pointers[0], len(self.writes)
        out, residual = (code.address(pointers[1 + i], code.load_uint32(head, 4 * i)) for i in range(2))
        vector = 4 * self.lanes
        partial = code.address(pointers[3], code.scaled(code.load_uint32(head, 8), size * vector))
        flags = code.load_uint32(head, 12)
        carried = [records, *[code.splat_integer(0)] * (size if self.to_steps else 0)]
        with code.loop(0, PACKED, carried) as j:
            run = code.address(head, code.builder.add(code.scaled(j, RUN_BYTES), code.int64(16)))
            own = code.address(partial, code.scaled(j, size * vector))

            def initial(run: Value = run) -> Sequence[Value]:
                return [code.load_integer(run, 4)] * size

            def before(own: Value = own) -> Sequence[Value]:
                return [code.load_integers(own, vector * i) for i in range(size)]

            sums = code.if_else(code.bit(flags, FIRST), initial, before)
            carried[0], sums = self._sums(code, run, carried[0], source, sums)
            packed = list(carried[1:])

            def results(
                sums: Sequence[Value] = sums, run: Value = run, j: Value = j, packed: list[Value] = packed
            ) -> list[Value]:
                values = self._floats(code, sums, run, j, residual, steps)
                if self.to_steps:
                    found = load_steps(code, steps)
                    bytes_ = [rounded(code, value, found) for value in values]
                    return [append_byte(code, old, byte) for old, byte in zip(packed, bytes_, strict=True)]
                target = code.address(out, code.scaled(j, self.plane))
                for value, offset in zip(values, self.writes, strict=True):
                    code.store(value, target, offset)
                return []

            def unfinished(sums: Sequence[Value] = sums, own: Value = own, packed: list[Value] = packed) -> list[Value]:
                for i, value in enumerate(sums):
                    code.store(value, own, vector * i)
                return packed

            carried[1:] = code.if_else(code.bit(flags, LAST), results, unfinished)
        if self.to_steps:
            with code.builder.if_then(code.bit(flags, LAST)):
                for value, offset in zip(carried[1:], self.writes, strict=True):
                    code.store(value, out, offset)
        return carried[0]

    def _sums(
        self, code: LLVMBuilder, run: Value, records: Value, source: Value, sums: Sequence[Value]
    ) -> tuple[Value, list[Value]]:
        """Write the loop over the records of one output; return the address behind them, and the sums."""
        zeros = [code.splat_integer(0)] * len(sums)
        totals = [list(sums), *[list(zeros) for _ in range(self.chains - 1)]]
        flat = [value for chain in totals for value in chain]
        count, size = code.load_uint32(run), len(sums)
        with code.loop(0, count, flat, step=self.chains) as i:
            record = code.address(records, code.scaled(i, RECORD_BYTES))
            added: list[Value] = []
            for chain in range(self.chains):
                pointer = code.address(source, code.load_uint32(record, RECORD_BYTES * chain))
                weights = code.load_integer(record, RECORD_BYTES * chain + 4)
                for read, total in zip(self.reads, flat[chain * size : (chain + 1) * size], strict=True):
                    added.append(dot_product(code, self.dot, total, code.load_integers(pointer, read), weights))
            flat[:] = added
        result = flat[:size]
        for chain in range(1, self.chains):
            result = [code.builder.add(a, b) for a, b in zip(result, flat[chain * size :], strict=False)]
        return code.address(records, code.scaled(count, RECORD_BYTES)), result

    def _floats(
        self, code: LLVMBuilder, sums: Sequence[Value], run: Value, j: Value, residual: Value, steps: Value
    ) -> list[Value]:
        """Return the results of one output in float32; every operation rounds once."""
        scale, bias = code.load_broadcast(run, 8), code.load_broadcast(run, 12)
        products = [code.builder.fmul(code.builder.sitofp(value, code.vector), scale) for value in sums]
        values = [code.builder.fadd(value, bias) for value in products]
        if self.residual == "floats":
            pointer = code.address(residual, code.scaled(j, self.residual_plane))
            added = [code.load(pointer, offset) for offset in self.writes]
            values = [code.builder.fadd(value, more) for value, more in zip(values, added, strict=True)]
        elif self.residual == "steps":
            meaning = load_steps(code, code.address(steps, STEP_BYTES))
            bits = code.broadcast(code.builder.trunc(code.builder.shl(j, code.int64(3)), ir.IntType(32)))
            for i, offset in enumerate(self.writes):
                more = to_floats(code, code.load_integers(residual, offset), bits, meaning)
                values[i] = code.builder.fadd(values[i], more)
        # Where the result is rounded, clipping the steps at the zero rectifies it.
        return values if self.to_steps or not self.relu else [code.maximum(value, code.zero()) for value in values]
