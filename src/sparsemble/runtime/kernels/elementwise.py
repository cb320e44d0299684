"""What is not a sum of products: packing images, pooling, scaling, adding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from llvmlite import ir

from sparsemble.runtime.kernels.llvm_builder import FLOAT, LONG, POINTER, Kernel, LLVMBuilder, Value

UNROLLED = 256
"""Windows of more vectors are gone through in a loop, as code for each place takes long to compile."""


@final
@dataclass(frozen=True)
class Gather(Kernel):
    """A kernel that makes each output vector of a channel of some vectors of the same channel: pooling and copying.

    Arguments: input, output, table. The table holds, for each output vector, its place in the output and `window`
    places in the input, in bytes within a channel, 32 bits wide. Goes over channels from first to last.
    """

    lanes: int
    vectors: int
    """Output vectors of a channel."""
    window: int
    """Input vectors that each is made of."""
    how: Literal["largest", "sum"]
    scale: float
    """What the result is multiplied by."""
    read_plane: int
    """Bytes from one input channel to the next."""
    write_plane: int
    aligned: bool

    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""
        w = LLVMBuilder(module, name, self.lanes, aligned=self.aligned)
        source, out, table = (w.argument(place) for place in range(3))

        def channel(index: Value, _: Sequence[Value]) -> Sequence[Value]:
            read = w.at(source, w.builder.mul(index, w.long(self.read_plane)))
            written = w.at(out, w.builder.mul(index, w.long(self.write_plane)))

            def vector(place: Value, _: Sequence[Value]) -> Sequence[Value]:
                row = w.at(table, w.builder.mul(place, w.long(4 * (self.window + 1))))
                found = w.load(read, w.number(row, 4))

                def also(found: Value, entry: Value) -> Value:
                    other = w.load(read, w.number(entry))
                    return w.larger(found, other) if self.how == "largest" else w.builder.fadd(found, other)

                if self.window > UNROLLED:
                    end = 4 * (self.window + 1)
                    (found,) = w.loop(8, end, lambda at, one: [also(one[0], w.at(row, at))], [found], step=4)
                else:
                    for i in range(1, self.window):
                        found = also(found, w.at(row, 4 + 4 * i))
                if self.scale != 1:
                    found = w.builder.fmul(found, w.spread(ir.Constant(FLOAT, self.scale)))
                w.store(found, written, w.number(row))
                return ()

            w.loop(0, self.vectors, vector)
            return ()

        w.loop(w.first, w.last, channel)
        w.close()


@final
@dataclass(frozen=True)
class Elementwise(Kernel):
    """A kernel that changes every vector of a channel: relu(scale x + shift), or relu(x + other).

    Arguments: input, other input, output, and per channel {scale, shift}. Goes over channels; all of a plane is done,
    its frame too, so the frame is 0 afterwards only where shift is 0 or `rows` leave it out.
    """

    lanes: int
    rows: int
    row_vectors: int
    """Vectors of a row that are changed."""
    read_offset: int
    """Bytes from the start of a channel to its first vector."""
    read_row: int
    """Bytes from row to row."""
    read_plane: int
    write_offset: int
    write_row: int
    write_plane: int
    what: Literal["scale", "add"]
    relu: bool
    aligned: bool

    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""
        w = LLVMBuilder(module, name, self.lanes, aligned=self.aligned)
        source, other, out, constants = (w.argument(place) for place in range(4))

        def channel(index: Value, _: Sequence[Value]) -> Sequence[Value]:
            offset = w.builder.add(w.builder.mul(index, w.long(self.read_plane)), w.long(self.read_offset))
            read, second = w.at(source, offset), w.at(other, offset)
            written = w.builder.add(w.builder.mul(index, w.long(self.write_plane)), w.long(self.write_offset))
            both = w.at(constants, w.builder.shl(index, w.long(3)))
            scale, shift = (w.splat(both), w.splat(both, 4)) if self.what == "scale" else (w.zero(), w.zero())

            def row(y: Value, _: Sequence[Value]) -> Sequence[Value]:
                here, there = w.builder.mul(y, w.long(self.read_row)), w.builder.mul(y, w.long(self.write_row))
                to = w.at(w.at(out, written), there)

                def vector(x: Value, _: Sequence[Value]) -> Sequence[Value]:
                    along = w.builder.mul(x, w.long(4 * self.lanes))
                    found = w.load(w.at(read, here), along)
                    if self.what == "scale":
                        found = w.multiply_add(found, scale, shift)
                    elif self.what == "add":
                        found = w.builder.fadd(found, w.load(w.at(second, here), along))
                    if self.relu:
                        found = w.larger(found, w.zero())
                    w.store(found, to, along)
                    return ()

                w.loop(0, self.row_vectors, vector)
                return ()

            w.loop(0, self.rows, row)
            return ()

        w.loop(w.first, w.last, channel)
        w.close()


@final
@dataclass(frozen=True)
class Pack(Kernel):
    """A kernel that puts images (B, C, H, W) side by side, image i in lane i, scaled and shifted channel by channel.

    Arguments: images, output, per channel {scale, shift}, number of images. Lanes without an image get the last one.
    Goes over channels.
    """

    lanes: int
    rows: int
    columns: int
    image: int
    """Bytes from image to image."""
    write_offset: int
    write_row: int
    write_plane: int

    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""
        w = LLVMBuilder(module, name, self.lanes, aligned=True)
        source, out, constants = (w.argument(place) for place in range(3))
        images = w.argument(3, LONG)
        last = w.builder.sub(images, w.long(1))
        starts = []
        for lane in range(self.lanes):
            which = w.builder.select(w.builder.icmp_signed("<", w.long(lane), last), w.long(lane), last)
            starts.append(w.at(source, w.builder.mul(which, w.long(self.image))))

        def channel(index: Value, _: Sequence[Value]) -> Sequence[Value]:
            both = w.at(constants, w.builder.shl(index, w.long(3)))
            scale, shift = w.splat(both), w.splat(both, 4)
            plane = w.builder.mul(index, w.long(4 * self.rows * self.columns))
            to = w.at(out, w.builder.add(w.builder.mul(index, w.long(self.write_plane)), w.long(self.write_offset)))

            def row(y: Value, _: Sequence[Value]) -> Sequence[Value]:
                line = w.builder.add(plane, w.builder.mul(y, w.long(4 * self.columns)))
                there = w.at(to, w.builder.mul(y, w.long(self.write_row)))

                def pixel(x: Value, _: Sequence[Value]) -> Sequence[Value]:
                    place = w.builder.add(line, w.builder.shl(x, w.long(2)))
                    values = [w.builder.load(w.at(start, place), typ=FLOAT) for start in starts]
                    found = w.together(values)
                    w.store(w.multiply_add(found, scale, shift), there, w.builder.mul(x, w.long(4 * self.lanes)))
                    return ()

                w.loop(0, self.columns, pixel)
                return ()

            w.loop(0, self.rows, row)
            return ()

        w.loop(w.first, w.last, channel)
        w.close()


@final
@dataclass(frozen=True)
class Driver(Kernel):
    """The function that runs a network: it calls the kernels of its steps, one after the other.

    Its arguments are a table with, for each step, {arguments, first, last}, of 64 bits each. Where `last` threads run
    it side by side, each has a table of its own, and at the address `first` they count who has ended a step.
    """

    steps: tuple[tuple[str, bool], ...]
    """Names of kernels that are in the module already, and whether threads wait for each other after it."""

    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""
        w = LLVMBuilder(module, name, 1, aligned=False)
        met = 0
        for i, (step, shared) in enumerate(self.steps):
            first, last = w.argument(3 * i + 1, LONG), w.argument(3 * i + 2, LONG)
            w.builder.call(module.globals[step], [w.argument(3 * i), first, last])
            if shared:
                met += 1
                with w.builder.if_then(w.builder.icmp_signed(">", w.last, w.long(1))):
                    w.meet(w.builder.inttoptr(w.first, POINTER), w.builder.mul(w.last, w.long(met)))
        w.close()
