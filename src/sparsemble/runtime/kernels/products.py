"""Sums of products: convolutions and linear layers over the weights that are not 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from llvmlite import ir

from sparsemble.runtime.kernels.writer import Kernel, Value, Writer

FIRST, LAST = 1, 2
"""Flags of a head: its sums start here; they end here."""
INPUT, OUTPUT, RESIDUAL, RECORDS, HEADS, HEAD_COUNT, TILES = range(7)
"""Places in the table of arguments."""


@final
@dataclass(frozen=True)
class Products(Kernel):
    """A kernel that goes over tiles of outputs; in each, over heads; for each, over records.

    A tile is {input offset, output offset}; a head {output offset, records, flags, biases}, with its records after
    those of the head before; a record {input offset, values}. All are 32 bits wide, offsets in bytes. `outputs`
    channels in a row share the input that a record reads. Sums that start at a head begin at the bias (and what the
    residual holds), others at what the output holds.
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

    @property
    def record_bytes(self) -> int:
        """Length of a record."""
        return 4 + 4 * self.outputs

    @property
    def head_bytes(self) -> int:
        """Length of a head."""
        return 12 + 4 * self.outputs

    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""
        w = Writer(module, name, self.lanes, aligned=self.aligned)
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
        self, w: Writer, heads: Value, index: Value, records: Value, at: tuple[Value, Value, Value]
    ) -> Sequence[Value]:
        """Write the sums of one head; returns where the next one's records begin."""
        head = w.at(heads, w.builder.mul(index, w.long(self.head_bytes)))
        offset, count, flags = w.number(head), w.number(head, 4), w.number(head, 8)
        source, out, residual = at[0], w.at(at[1], offset), w.at(at[2], offset)
        places = [(j, j * self.plane + to) for j in range(self.outputs) for to in self.writes]

        def fresh() -> Sequence[Value]:
            biases = [w.splat(head, 12 + 4 * j) for j in range(self.outputs)]
            if not self.residual:
                return [biases[j] for j, _ in places]
            return [w.builder.fadd(biases[j], w.load(residual, to)) for j, to in places]

        def partial() -> Sequence[Value]:
            return [w.load(out, to) for _, to in places]

        sums = w.choose(w.bit(flags, FIRST), fresh, partial)
        end = w.at(records, w.builder.mul(count, w.long(self.record_bytes)))
        sums = w.loop(0, count, lambda i, carried: self._record(w, records, i, source, carried), sums)
        if self.relu:

            def rectified() -> Sequence[Value]:
                return [w.larger(one, w.zero()) for one in sums]

            sums = w.choose(w.bit(flags, LAST), rectified, lambda: list(sums))
        for (_, to), value in zip(places, sums, strict=True):
            w.store(value, out, to)
        return [end]

    def _record(self, w: Writer, records: Value, index: Value, source: Value, sums: Sequence[Value]) -> Sequence[Value]:
        record = w.at(records, w.builder.mul(index, w.long(self.record_bytes)))
        place = w.at(source, w.number(record))
        if self.outputs == 1:
            value = w.splat(record, 4)
            return [w.multiply_add(w.load(place, r), value, s) for r, s in zip(self.reads, sums, strict=True)]
        inputs = [w.load(place, read) for read in self.reads]
        values = [w.splat(record, 4 + 4 * j) for j in range(self.outputs)]
        pairs = [(one, value) for value in values for one in inputs]
        return [w.multiply_add(one, value, s) for (one, value), s in zip(pairs, sums, strict=True)]
