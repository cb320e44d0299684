"""The sparse convolution kernel: convolutions and linear layers over the weights that are not 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from llvmlite import ir

from sparsemble.runtime.kernels.llvm_builder import LONG, Kernel, LLVMBuilder, Value
from sparsemble.runtime.kernels.steps import PACKED, append_byte, load_steps, rounded

FIRST, LAST = 1, 2
"""Flags of a head: its sums start with it; its sums end with it."""
INPUT, OUTPUT, RESIDUAL, RECORDS, HEADS, HEAD_COUNT, TILES, STEPS = range(8)
"""Indices in the table of arguments."""
CACHE_LINE = 64
PREFETCH_BYTES = 2048
"""Distance at which records are prefetched: each is read once, from L3 or memory."""


@final
@dataclass(frozen=True)
class SparseConv(Kernel):
    """Loops over tiles of outputs; for each tile over heads; for each head over records.

    A tile is {input offset, output offset}; a head {output offsets, records, flags, biases}, its records behind those
    of the head before; a record {input offsets, values}. All are 32 bits wide, offsets in bytes. `outputs` consecutive
    channels share the input that a record reads; heads and records are for `chains` of such groups. Sums that start
    with a head begin with the bias (plus the residual), others with the partial sums in the output. The range is over
    tiles.
    """

    lanes: int
    """Floats in a vector."""
    outputs: int
    """Channels that share records: 1 for single weights, 4 or 8 for blocks."""
    reads: tuple[int, ...]
    """Bytes from a record's input to each vector of a tile."""
    writes: tuple[int, ...]
    """Bytes from a tile's output offset to each of its vectors."""
    plane: int
    """Bytes from one output channel to the next."""
    residual: bool
    relu: bool
    aligned: bool
    chains: int = 1
    """Groups of outputs that are summed side by side, which hides the latency of multiply-adds."""
    to_steps: bool = False
    """Whether results are rounded to 8-bit steps, which a ReLU is part of; then all sums end with their first head."""

    @property
    def record_bytes(self) -> int:
        """Size of a record."""
        return 4 * self.chains * (1 + self.outputs)

    @property
    def head_bytes(self) -> int:
        """Size of a head."""
        return 8 + 4 * self.chains * (1 + self.outputs)

    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""
        code = LLVMBuilder(module, name, self.lanes, aligned=self.aligned)
        source, out, residual = code.argument(INPUT), code.argument(OUTPUT), code.argument(RESIDUAL)
        records, heads, tiles = code.argument(RECORDS), code.argument(HEADS), code.argument(TILES)
        count = code.argument(HEAD_COUNT, LONG)
        steps = code.argument(STEPS) if self.to_steps else out

        with code.loop(code.first, code.last) as tile:
            entry = code.address(tiles, code.scaled(tile, 8))
            written = code.load_uint32(entry, 4)
            read = code.address(source, code.load_uint32(entry))
            pointers = (read, code.address(out, written), code.address(residual, written), steps)
            following = [records]
            with code.loop(0, count, following) as i:
                head = code.address(heads, code.scaled(i, self.head_bytes))
                following[0] = self._head(code, head, following[0], pointers)
        code.finish()

    def _head(self, code: LLVMBuilder, head: Value, records: Value, pointers: tuple[Value, ...]) -> Value:
        """Write the code of one head; return the address of the next head's records."""
        counts = 4 * self.chains
        count, flags = code.load_uint32(head, counts), code.load_uint32(head, counts + 4)
        source = pointers[0]
        outs, residuals = [], []
        for chain in range(self.chains):
            offset = code.load_uint32(head, 4 * chain)
            outs.append(code.address(pointers[1], offset))
            residuals.append(code.address(pointers[2], offset))
        targets = [
            (chain, j, j * self.plane + written)
            for chain in range(self.chains)
            for j in range(self.outputs)
            for written in self.writes
        ]

        def initial() -> Sequence[Value]:
            biases = [code.load_broadcast(head, counts + 8 + 4 * i) for i in range(self.chains * self.outputs)]
            values = [biases[chain * self.outputs + j] for chain, j, _ in targets]
            if not self.residual:
                return values
            added = [code.load(residuals[chain], offset) for chain, _, offset in targets]
            return [code.builder.fadd(value, residual) for value, residual in zip(values, added, strict=True)]

        def partial() -> Sequence[Value]:
            return [code.load(outs[chain], offset) for chain, _, offset in targets]

        sums = code.if_else(code.bit(flags, FIRST), initial, partial)
        end = code.address(records, code.scaled(count, self.record_bytes))
        with code.loop(0, count, sums) as i:
            sums[:] = self._record(code, code.address(records, code.scaled(i, self.record_bytes)), source, sums)
        if self.to_steps:
            self._store_steps(code, sums, outs, pointers[3])
            return end
        if self.relu:

            def rectified() -> Sequence[Value]:
                return [code.maximum(value, code.zero()) for value in sums]

            sums = code.if_else(code.bit(flags, LAST), rectified, lambda: list(sums))
        for (chain, _, offset), value in zip(targets, sums, strict=True):
            code.store(value, outs[chain], offset)
        return end

    def _store_steps(self, code: LLVMBuilder, sums: Sequence[Value], outs: Sequence[Value], steps: Value) -> None:
        """Round the sums and store four channels of a vector as one."""
        found, size = load_steps(code, steps), len(self.writes)
        for chain, out in enumerate(outs):
            for group in range(self.outputs // PACKED):
                for i, written in enumerate(self.writes):
                    first = (chain * self.outputs + group * PACKED) * size + i
                    packed = code.splat_integer(0)
                    for value in sums[first : first + PACKED * size : size]:
                        packed = append_byte(code, packed, rounded(code, value, found))
                    code.store(packed, out, group * self.plane + written)

    def _record(self, code: LLVMBuilder, record: Value, source: Value, sums: Sequence[Value]) -> list[Value]:
        """Write the code of one record; return the sums with its products added."""
        if self.record_bytes >= CACHE_LINE // 2:
            code.prefetch(record, PREFETCH_BYTES)
        results: list[Value] = []
        sums_per_chain = len(self.reads) * self.outputs
        for chain in range(self.chains):
            pointer = code.address(source, code.load_uint32(record, 4 * chain))
            first = 4 * (self.chains + chain * self.outputs)
            chain_sums = sums[chain * sums_per_chain : (chain + 1) * sums_per_chain]
            if self.outputs == 1:
                value = code.load_broadcast(record, first)
                results += [
                    code.intrinsic("fma", code.load(pointer, read), value, total)
                    for read, total in zip(self.reads, chain_sums, strict=True)
                ]
                continue
            inputs = [code.load(pointer, read) for read in self.reads]
            values = [code.load_broadcast(record, first + 4 * j) for j in range(self.outputs)]
            pairs = [(vector, value) for value in values for vector in inputs]
            results += [
                code.intrinsic("fma", vector, value, total)
                for (vector, value), total in zip(pairs, chain_sums, strict=True)
            ]
        return results
