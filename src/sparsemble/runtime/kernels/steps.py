"""Results in 8 bits: four channels of a pixel are the bytes of one 32-bit lane. Rounding to steps, and back."""

from dataclasses import dataclass
from typing import NamedTuple, final

from llvmlite import ir

from sparsemble.runtime.kernels.llvm_builder import Kernel, LLVMBuilder, Value

PACKED = 4
"""Channels in a lane."""
ROUNDING = 1.5 * 2.0**23
"""Added to a small float, it leaves the nearest whole number, halves to even, in the low bits."""
STEP_BYTES = 16
"""Of {scale, zero as int32, lowest and highest whole number before the zero is added, as floats}."""


@final
class StepConstants(NamedTuple):
    """Steps in every lane."""

    scale: Value
    zero: Value
    lowest: Value
    highest: Value


def load_steps(code: LLVMBuilder, pointer: Value) -> StepConstants:
    """Read steps into every lane."""
    scale, lowest, highest = (code.load_broadcast(pointer, offset) for offset in (0, 8, 12))
    return StepConstants(scale, code.load_integer(pointer, 4), lowest, highest)


def rounded(code: LLVMBuilder, values: Value, steps: StepConstants) -> Value:
    """Return floats as steps, in the lowest byte of each lane; the other bytes hold anything.

    Args:
        code: the function.
        values: vector of floats.
        steps: what they are rounded to.
    """
    multiples = code.builder.fdiv(values, steps.scale)
    # With a comparison that is false for NaN, a clip is one instruction; then the rest is a whole number below 256.
    low = code.builder.select(code.builder.fcmp_ordered(">", multiples, steps.lowest), multiples, steps.lowest)
    clipped = code.builder.select(code.builder.fcmp_ordered("<", low, steps.highest), low, steps.highest)
    whole = code.builder.bitcast(code.builder.fadd(clipped, code.splat_float(ROUNDING)), code.integers)
    return code.builder.add(whole, steps.zero)


def append_byte(code: LLVMBuilder, packed: Value, byte: Value) -> Value:
    """Return lanes shifted down by a byte, with the lowest byte of another vector on top: four calls fill a lane.

    Args:
        code: the function.
        packed: vector of lanes, the bytes so far on top.
        byte: vector whose lowest bytes are appended.
    """
    suffix = f"v{code.lanes}i32" if code.lanes > 1 else "i32"
    return code.call(f"llvm.fshr.{suffix}", code.integers, byte, packed, code.splat_integer(8))


def to_floats(code: LLVMBuilder, packed: Value, bits: Value, steps: StepConstants) -> Value:
    """Return a byte of every lane as floats.

    Args:
        code: the function.
        packed: vector of lanes.
        bits: int32 in every lane: 8 times the index of the byte.
        steps: what the byte means.
    """
    byte = code.builder.and_(code.builder.lshr(packed, bits), code.splat_integer(255))
    shifted = code.builder.sitofp(code.builder.sub(byte, steps.zero), code.vector)
    return code.builder.fmul(shifted, steps.scale)


@final
@dataclass(frozen=True)
class Convert(Kernel):
    """Floats as steps, or steps as floats, for four channels at a time.

    Arguments: input, output, steps. The range is over groups of four channels; `rows` and `row_vectors` leave frames
    out. Channels behind the last one of a plane of floats are read or written, too.
    """

    lanes: int
    rows: int
    row_vectors: int
    read_offset: int
    """Bytes from the start of a plane to its first vector."""
    read_row: int
    read_plane: int
    write_offset: int
    write_row: int
    write_plane: int
    to_steps: bool

    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""
        code = LLVMBuilder(module, name, self.lanes, aligned=True)
        source, out = code.argument(0), code.argument(1)
        steps = load_steps(code, code.argument(2))
        read_planes, write_planes = (PACKED, 1) if self.to_steps else (1, PACKED)
        with code.loop(code.first, code.last) as group:
            read = code.address(source, code.scaled(group, self.read_plane * read_planes))
            written = code.address(out, code.scaled(group, self.write_plane * write_planes))
            with code.loop(0, self.rows) as y:
                read_row = code.address(code.address(read, self.read_offset), code.scaled(y, self.read_row))
                write_row = code.address(code.address(written, self.write_offset), code.scaled(y, self.write_row))
                with code.loop(0, self.row_vectors) as x:
                    along = code.scaled(x, 4 * self.lanes)
                    pixel, target = code.address(read_row, along), code.address(write_row, along)
                    self._convert(code, pixel, target, steps)
        code.finish()

    def _convert(self, code: LLVMBuilder, pixel: Value, target: Value, steps: StepConstants) -> None:
        packed = code.splat_integer(0) if self.to_steps else code.load_integers(pixel)
        for i in range(PACKED):
            if self.to_steps:
                packed = append_byte(code, packed, rounded(code, code.load(pixel, i * self.read_plane), steps))
            else:
                value = to_floats(code, packed, code.splat_integer(8 * i), steps)
                code.store(value, target, i * self.write_plane)
        if self.to_steps:
            code.store(packed, target)
