"""Kernels that copy planes so that the inputs of neighbouring outputs are contiguous."""

from dataclasses import dataclass
from typing import final

from llvmlite import ir

from sparsemble.runtime.kernels.llvm_builder import INT, LONG, Kernel, LLVMBuilder, Value

MAX_SHUFFLED_STRIDE = 4
"""Stride up to which a vector is shuffled from neighbouring ones; for larger ones it is built from single floats."""


@final
@dataclass(frozen=True)
class Im2colVector(Kernel):
    """Copies each row of a plane once for each column of a window, vector by vector.

    Output x of the copy for displacement d is input `stride x + d`, four times `fill` outside the row. Arguments:
    input, output, table of rows {offset in the input, offset in the first column's copy}, number of rows. The range is
    over channels. May read a vector beyond a row.
    """

    lanes: int
    """Outputs in a vector."""
    starts: tuple[int, ...]
    """Index of the first output of each vector in a row of the copy."""
    stride: int
    columns: tuple[int, ...]
    """The displacements of the window's columns."""
    width: int
    """Of the input."""
    copy: int
    """Bytes from the copies for one displacement to those for the next."""
    read_plane: int
    write_plane: int
    fill: int = 0
    """The byte of pixels outside the plane."""

    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""
        code = LLVMBuilder(module, name, self.lanes, aligned=False)
        source, out, table = (code.argument(i) for i in range(3))
        count = code.argument(3, LONG)
        with code.loop(code.first, code.last) as channel:
            read = code.address(source, code.scaled(channel, self.read_plane))
            written = code.address(out, code.scaled(channel, self.write_plane))
            with code.loop(0, count) as row:
                entry = code.address(table, code.scaled(row, 8))
                source_row = code.address(read, code.load_uint32(entry))
                target_row = code.address(written, code.load_uint32(entry, 4))
                for i, displacement in enumerate(self.columns):
                    for x in self.starts:
                        vector = self._shifted(code, source_row, x * self.stride + displacement)
                        code.store(vector, target_row, i * self.copy + 4 * x)
        code.finish()

    def _shifted(self, code: LLVMBuilder, row: Value, begin: int) -> Value:
        """Return inputs begin, begin + stride, .., as integers; the fill outside the row."""
        indices = [begin + lane * self.stride for lane in range(self.lanes)]
        inside = [index for index in indices if 0 <= index < self.width]
        outside = int.from_bytes(bytes([self.fill] * 4), "little", signed=True)
        if not inside:
            return code.splat_integer(outside)
        if self.lanes == 1 or self.stride > MAX_SHUFFLED_STRIDE:
            fill = ir.Constant(INT, outside)
            values = [code.builder.load(code.address(row, 4 * i), typ=INT) if i in inside else fill for i in indices]
            return code.pack_lanes(values)
        first, span = inside[0], inside[-1] - inside[0] + 1
        count = self.lanes if span <= self.lanes else self.lanes * self.stride
        wide = ir.VectorType(INT, count)
        vector = code.builder.load(code.address(row, 4 * first), typ=wide)
        vector.align = 4
        if inside == list(range(first, first + self.lanes)):
            return vector
        fills = ir.Constant(wide, [outside] * count)
        selected = [index - first if index in inside else count for index in indices]
        return code.builder.shuffle_vector(vector, fills, ir.Constant(ir.VectorType(INT, self.lanes), selected))


@final
@dataclass(frozen=True)
class Im2colScalar(Kernel):
    """The same copies float by float, for windows and rows for which the code of all vectors would be too long.

    Arguments: input, output, table of runs {offset in the input, offset in the output, floats}, number of runs. The
    range is over channels.
    """

    stride: int
    read_plane: int
    write_plane: int

    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""
        code = LLVMBuilder(module, name, 1, aligned=False)
        source, out, table = (code.argument(i) for i in range(3))
        count = code.argument(3, LONG)
        with code.loop(code.first, code.last) as channel:
            read = code.address(source, code.scaled(channel, self.read_plane))
            written = code.address(out, code.scaled(channel, self.write_plane))
            with code.loop(0, count) as run:
                entry = code.address(table, code.scaled(run, 12))
                source_run = code.address(read, code.load_uint32(entry))
                target_run = code.address(written, code.load_uint32(entry, 4))
                with code.loop(0, code.load_uint32(entry, 8)) as x:
                    value = code.load(source_run, code.scaled(x, 4 * self.stride))
                    code.store(value, target_run, code.builder.shl(x, code.int64(2)))
        code.finish()
