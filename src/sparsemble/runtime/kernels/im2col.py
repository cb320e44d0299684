"""Copying planes so that the inputs of neighbouring outputs lie side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from llvmlite import ir

from sparsemble.runtime.kernels.llvm_builder import FLOAT, INT, Kernel, LLVMBuilder, Value

WIDEST = 4
"""Stride up to which a vector is picked out of neighbouring ones, not put together from floats."""


@final
@dataclass(frozen=True)
class Im2colVector(Kernel):
    """A kernel that copies each row of a plane once for each column of a window.

    Output x of the copy for displacement d is input `stride x + d`, 0 where there is none. Arguments: input, output,
    table of rows {offset in the input, in the first column's copy}, number of rows. Goes over channels. May read a
    vector beyond a row.
    """

    lanes: int
    """Outputs that are copied at once."""
    starts: tuple[int, ...]
    """Where vectors begin in a row of the copy."""
    stride: int
    columns: tuple[int, ...]
    """The displacements."""
    width: int
    """Of the input."""
    copy: int
    """Bytes from the copies for one displacement to those for the next."""
    read_plane: int
    write_plane: int

    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""
        w = LLVMBuilder(module, name, self.lanes, aligned=False)
        source, out, table = (w.argument(place) for place in range(3))
        count = w.argument(3, ir.IntType(64))

        def channel(index: Value, _: Sequence[Value]) -> Sequence[Value]:
            read = w.at(source, w.builder.mul(index, w.long(self.read_plane)))
            written = w.at(out, w.builder.mul(index, w.long(self.write_plane)))

            def row(y: Value, _: Sequence[Value]) -> Sequence[Value]:
                entry = w.at(table, w.builder.shl(y, w.long(3)))
                here, there = w.at(read, w.number(entry)), w.at(written, w.number(entry, 4))
                for i, away in enumerate(self.columns):
                    for x in self.starts:
                        w.store(self._shifted(w, here, x * self.stride + away), there, i * self.copy + 4 * x)
                return ()

            w.loop(0, count, row)
            return ()

        w.loop(w.first, w.last, channel)
        w.close()

    def _shifted(self, w: LLVMBuilder, row: Value, begin: int) -> Value:
        """Return inputs begin, begin + stride, ..; 0 where there are none."""
        wanted = [begin + lane * self.stride for lane in range(self.lanes)]
        inside = [place for place in wanted if 0 <= place < self.width]
        if not inside:
            return w.zero()
        if self.lanes == 1 or self.stride > WIDEST:
            zero = ir.Constant(FLOAT, 0.0)
            floats = [w.builder.load(w.at(row, 4 * p), typ=FLOAT) if p in inside else zero for p in wanted]
            return w.together(floats)
        first, span = inside[0], inside[-1] - inside[0] + 1
        taken = self.lanes if span <= self.lanes else self.lanes * self.stride
        wide = ir.VectorType(FLOAT, taken)
        found = w.builder.load(w.at(row, 4 * first), typ=wide)
        found.align = 4
        if inside == list(range(first, first + self.lanes)):
            return found
        zeros = ir.Constant(wide, [0.0] * taken)
        places = [place - first if place in inside else taken for place in wanted]
        return w.builder.shuffle_vector(found, zeros, ir.Constant(ir.VectorType(INT, self.lanes), places))


@final
@dataclass(frozen=True)
class Im2colScalar(Kernel):
    """The same float by float, for windows so wide or rows so long that code for each vector would never end.

    Arguments: input, output, table of {offset in the input, in the output, floats}, its length. Goes over channels.
    """

    stride: int
    read_plane: int
    write_plane: int

    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""
        w = LLVMBuilder(module, name, 1, aligned=False)
        source, out, table = (w.argument(place) for place in range(3))
        count = w.argument(3, ir.IntType(64))

        def channel(index: Value, _: Sequence[Value]) -> Sequence[Value]:
            read = w.at(source, w.builder.mul(index, w.long(self.read_plane)))
            written = w.at(out, w.builder.mul(index, w.long(self.write_plane)))

            def row(y: Value, _: Sequence[Value]) -> Sequence[Value]:
                entry = w.at(table, w.builder.mul(y, w.long(12)))
                here, there = w.at(read, w.number(entry)), w.at(written, w.number(entry, 4))

                def pixel(x: Value, _: Sequence[Value]) -> Sequence[Value]:
                    found = w.load(here, w.builder.mul(x, w.long(4 * self.stride)))
                    w.store(found, there, w.builder.shl(x, w.long(2)))
                    return ()

                w.loop(0, w.number(entry, 8), pixel)
                return ()

            w.loop(0, count, row)
            return ()

        w.loop(w.first, w.last, channel)
        w.close()
