"""Sums of products: convolutions and linear layers over the weights that are not 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from llvmlite import ir

from sparsemble.runtime.kernels.llvm_builder import Kernel, LLVMBuilder, Value

FIRST, LAST = 1, 2
"""Flags of a head: its sums start here; they end here."""
INPUT, OUTPUT, RESIDUAL, RECORDS, HEADS, HEAD_COUNT, TILES = range(7)
"""Places in the table of arguments."""
LINE = 64
AHEAD = 2048
"""Bytes of records that are asked for before they are read: what one takes from memory, the sums take to add up."""


@final
@dataclass(frozen=True)
class SparseConv(Kernel):
    """A kernel that goes over tiles of outputs; in each, over heads; for each, over records.

    A tile is {input offset, output offset}; a head {output offsets, records, flags, biases}, with its records after
    those of the head before; a record {input offsets, values}. All are 32 bits wide, offsets in bytes. `outputs`
    channels in a row share the input that a record reads; a head is for `chains` of such groups, and so is a record.
    Sums that start at a head begin at the bias (and what the residual holds), others at what the output holds.
    """

    lanes: int
    """Floats in a vector."""
    outputs: int
    """Channels that share records: 1 for single weights, 4 or 8 for blocks."""
    reads: tuple[int, ...]
    """Where each vector of a tile is read, in bytes from the record's place."""
    writes: tuple[int, ...]
    """Where it is written, in bytes from the tile's place in the output."""
    plane: int
    """Bytes from one output channel to the next."""
    residual: bool
    relu: bool
    aligned: bool
    chains: int = 1
    """Groups of outputs whose sums grow side by side, each with inputs of its own, so that none waits for itself."""

    @property
    def record_bytes(self) -> int:
        """Length of a record."""
        return 4 * self.chains * (1 + self.outputs)

    @property
    def head_bytes(self) -> int:
        """Length of a head."""
        return 8 + 4 * self.chains * (1 + self.outputs)

    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""
        w = LLVMBuilder(module, name, self.lanes, aligned=self.aligned)
        source, out, residual = w.argument(INPUT), w.argument(OUTPUT), w.argument(RESIDUAL)
        records, heads, tiles = w.argument(RECORDS), w.argument(HEADS), w.argument(TILES)
        count = w.argument(HEAD_COUNT, ir.IntType(64))

        def tile(index: Value, _: Sequence[Value]) -> Sequence[Value]:
            place = w.at(tiles, w.builder.shl(index, w.long(3)))
            to = w.number(place, 4)
            at = (w.at(source, w.number(place)), w.at(out, to), w.at(residual, to))
            w.loop(0, count, lambda head, carried: self._head(w, heads, head, carried[0], at), [records])
            return ()

        w.loop(w.first, w.last, tile)
        w.close()

    def _head(
        self, w: LLVMBuilder, heads: Value, index: Value, records: Value, at: tuple[Value, Value, Value]
    ) -> Sequence[Value]:
        """Write the sums of one head; returns where the next one's records begin."""
        head = w.at(heads, w.builder.mul(index, w.long(self.head_bytes)))
        counts = 4 * self.chains
        count, flags = w.number(head, counts), w.number(head, counts + 4)
        source = at[0]
        outs, residuals = [], []
        for chain in range(self.chains):
            offset = w.number(head, 4 * chain)
            outs.append(w.at(at[1], offset))
            residuals.append(w.at(at[2], offset))
        places = [
            (chain, j, j * self.plane + to)
            for chain in range(self.chains)
            for j in range(self.outputs)
            for to in self.writes
        ]

        def fresh() -> Sequence[Value]:
            biases = [w.splat(head, counts + 8 + 4 * i) for i in range(self.chains * self.outputs)]
            values = [biases[chain * self.outputs + j] for chain, j, _ in places]
            if not self.residual:
                return values
            held = [w.load(residuals[chain], to) for chain, _, to in places]
            return [w.builder.fadd(value, one) for value, one in zip(values, held, strict=True)]

        def partial() -> Sequence[Value]:
            return [w.load(outs[chain], to) for chain, _, to in places]

        sums = w.choose(w.bit(flags, FIRST), fresh, partial)
        end = w.at(records, w.builder.mul(count, w.long(self.record_bytes)))
        sums = w.loop(0, count, lambda i, carried: self._record(w, records, i, source, carried), sums)
        if self.relu:

            def rectified() -> Sequence[Value]:
                return [w.larger(one, w.zero()) for one in sums]

            sums = w.choose(w.bit(flags, LAST), rectified, lambda: list(sums))
        for (chain, _, to), value in zip(places, sums, strict=True):
            w.store(value, outs[chain], to)
        return [end]

    def _record(
        self, w: LLVMBuilder, records: Value, index: Value, source: Value, sums: Sequence[Value]
    ) -> Sequence[Value]:
        record = w.at(records, w.builder.mul(index, w.long(self.record_bytes)))
        if self.record_bytes >= LINE // 2:
            w.prefetch(record, AHEAD)
        found: list[Value] = []
        each = len(self.reads) * self.outputs
        for chain in range(self.chains):
            place = w.at(source, w.number(record, 4 * chain))
            first = 4 * (self.chains + chain * self.outputs)
            mine = sums[chain * each : (chain + 1) * each]
            if self.outputs == 1:
                value = w.splat(record, first)
                found += [w.multiply_add(w.load(place, r), value, s) for r, s in zip(self.reads, mine, strict=True)]
                continue
            inputs = [w.load(place, read) for read in self.reads]
            values = [w.splat(record, first + 4 * j) for j in range(self.outputs)]
            pairs = [(one, value) for value in values for one in inputs]
            found += [w.multiply_add(one, value, s) for (one, value), s in zip(pairs, mine, strict=True)]
        return found
