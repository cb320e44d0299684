"""Kernels that are no convolutions: packing images, pooling, scaling, adding; and the driver that runs all steps."""

from dataclasses import dataclass
from typing import Literal, final

from llvmlite import ir

from sparsemble.runtime.kernels.llvm_builder import FLOAT, LONG, POINTER, Kernel, LLVMBuilder, Value

UNROLLED = 256
"""Vectors of a window up to which the code of each is written out; more of them take long to compile."""


@final
@dataclass(frozen=True)
class Gather(Kernel):
    """Reduces a window of input vectors to each output vector, channel by channel: pooling.

    Arguments: input, output, table. The table holds, for each output vector, its offset in the output and `window`
    offsets in the input, in bytes from the start of a channel, as uint32. The range is over channels.
    """

    lanes: int
    vectors: int
    """Output vectors in a channel."""
    window: int
    """Input vectors that each output vector is reduced from."""
    reduction: Literal["max", "sum"]
    scale: float
    """Factor of the result."""
    read_plane: int
    """Bytes from one input channel to the next."""
    write_plane: int
    aligned: bool
    integer: bool = False
    """Whether a lane holds four unsigned bytes: for a maximum only."""

    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""
        code = LLVMBuilder(module, name, self.lanes, aligned=self.aligned)
        source, out, table = (code.argument(i) for i in range(3))

        def load(entry: Value) -> Value:
            offset = code.load_uint32(entry)
            return code.load_octets(read, offset) if self.integer else code.load(read, offset)

        def reduce(result: Value, entry: Value) -> Value:
            other = load(entry)
            if self.integer:
                return code.builder.select(code.builder.icmp_unsigned(">", result, other), result, other)
            return code.maximum(result, other) if self.reduction == "max" else code.builder.fadd(result, other)

        with code.loop(code.first, code.last) as channel:
            read = code.address(source, code.scaled(channel, self.read_plane))
            written = code.address(out, code.scaled(channel, self.write_plane))
            with code.loop(0, self.vectors) as vector:
                row = code.address(table, code.scaled(vector, 4 * (self.window + 1)))
                result = [load(code.address(row, 4))]
                if self.window > UNROLLED:
                    with code.loop(8, 4 * (self.window + 1), result, step=4) as offset:
                        result[0] = reduce(result[0], code.address(row, offset))
                else:
                    for i in range(1, self.window):
                        result[0] = reduce(result[0], code.address(row, 4 + 4 * i))
                if self.scale != 1:
                    result[0] = code.builder.fmul(result[0], code.broadcast(ir.Constant(FLOAT, self.scale)))
                code.store(result[0], written, code.load_uint32(row))
        code.finish()


@final
@dataclass(frozen=True)
class Elementwise(Kernel):
    """relu(scale x + shift), or relu(x + addend), channel by channel.

    Arguments: input, addend, output, and per channel {scale, shift}. The range is over channels; `rows` and
    `row_vectors` leave frames out.
    """

    lanes: int
    rows: int
    row_vectors: int
    """Vectors in a row."""
    read_offset: int
    """Bytes from the start of a channel to its first vector."""
    read_row: int
    """Bytes from row to row."""
    read_plane: int
    write_offset: int
    write_row: int
    write_plane: int
    function: Literal["affine", "add"]
    relu: bool
    aligned: bool

    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""
        code = LLVMBuilder(module, name, self.lanes, aligned=self.aligned)
        source, addend, out, constants = (code.argument(i) for i in range(4))
        with code.loop(code.first, code.last) as channel:
            offset = code.builder.add(code.scaled(channel, self.read_plane), code.int64(self.read_offset))
            read, added = code.address(source, offset), code.address(addend, offset)
            written = code.builder.add(code.scaled(channel, self.write_plane), code.int64(self.write_offset))
            if self.function == "affine":
                entry = code.address(constants, code.builder.shl(channel, code.int64(3)))
                scale, shift = code.load_broadcast(entry), code.load_broadcast(entry, 4)
            with code.loop(0, self.rows) as y:
                read_row = code.scaled(y, self.read_row)
                target = code.address(code.address(out, written), code.scaled(y, self.write_row))
                with code.loop(0, self.row_vectors) as x:
                    along = code.scaled(x, 4 * self.lanes)
                    value = code.load(code.address(read, read_row), along)
                    if self.function == "affine":
                        value = code.intrinsic("fma", value, scale, shift)
                    else:
                        value = code.builder.fadd(value, code.load(code.address(added, read_row), along))
                    if self.relu:
                        value = code.maximum(value, code.zero())
                    code.store(value, target, along)
        code.finish()


@final
@dataclass(frozen=True)
class Pack(Kernel):
    """Interleaves images (B, C, H, W), image i in lane i, and scales and shifts each channel.

    Arguments: images, output, per channel {scale, shift}, number of images. Lanes without an image repeat the last one.
    The range is over channels.
    """

    lanes: int
    rows: int
    columns: int
    image: int
    """Bytes from an image to the next."""
    write_offset: int
    write_row: int
    write_plane: int

    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""
        code = LLVMBuilder(module, name, self.lanes, aligned=True)
        source, out, constants = (code.argument(i) for i in range(3))
        images = code.argument(3, LONG)
        last = code.builder.sub(images, code.int64(1))
        starts = []
        for lane in range(self.lanes):
            index = code.builder.select(code.builder.icmp_signed("<", code.int64(lane), last), code.int64(lane), last)
            starts.append(code.address(source, code.scaled(index, self.image)))
        with code.loop(code.first, code.last) as channel:
            entry = code.address(constants, code.builder.shl(channel, code.int64(3)))
            scale, shift = code.load_broadcast(entry), code.load_broadcast(entry, 4)
            plane = code.scaled(channel, 4 * self.rows * self.columns)
            offset = code.builder.add(code.scaled(channel, self.write_plane), code.int64(self.write_offset))
            target = code.address(out, offset)
            with code.loop(0, self.rows) as y:
                row = code.builder.add(plane, code.scaled(y, 4 * self.columns))
                written = code.address(target, code.scaled(y, self.write_row))
                with code.loop(0, self.columns) as x:
                    pixel = code.builder.add(row, code.builder.shl(x, code.int64(2)))
                    floats = [code.builder.load(code.address(start, pixel), typ=FLOAT) for start in starts]
                    vector = code.intrinsic("fma", code.pack_lanes(floats), scale, shift)
                    code.store(vector, written, code.scaled(x, 4 * self.lanes))
        code.finish()


@final
@dataclass(frozen=True)
class Driver(Kernel):
    """The function that runs a network: it calls the kernels of its steps in order.

    Its arguments are a table of {arguments, first, last} for each step, of 64 bits each. Its own `last` is the number
    of threads that run it together, each with its own table; its own `first` is the address of their barrier.
    """

    steps: tuple[tuple[str, bool], ...]
    """Name of each step's kernel, which is in the module, and whether threads wait for each other after it."""

    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""
        code = LLVMBuilder(module, name, 1, aligned=False)
        barriers = 0
        for i, (step, shared) in enumerate(self.steps):
            first, last = code.argument(3 * i + 1, LONG), code.argument(3 * i + 2, LONG)
            code.builder.call(module.globals[step], [code.argument(3 * i), first, last])
            if shared:
                barriers += 1
                with code.builder.if_then(code.builder.icmp_signed(">", code.last, code.int64(1))):
                    code.barrier(code.builder.inttoptr(code.first, POINTER), code.scaled(code.last, barriers))
        code.finish()
