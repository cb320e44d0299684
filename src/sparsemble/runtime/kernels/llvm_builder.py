"""A builder of LLVM functions: loops with carried values, vectors, addresses in bytes."""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llvmlite import ir

BYTE, INT, LONG, FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
POINTER = ir.PointerType()
SPINS = 1000
"""Times that a waiting thread reads the barrier before it yields: some microseconds, less than most steps take."""

Value = Any
"""An `llvmlite.ir.Value`; the package carries no types."""


class Kernel(ABC):
    """A function that can be written as LLVM IR; equal kernels write equal functions."""

    @abstractmethod
    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""


class LLVMBuilder:
    """Builds one function: `name(arguments*, first, last)`.

    Args:
        module: where the function is added.
        name: of the function.
        lanes: floats in a vector.
        aligned: whether the address of every vector is a multiple of its size.
    """

    def __init__(self, module: ir.Module, name: str, lanes: int, *, aligned: bool) -> None:
        self.module, self.lanes = module, lanes
        self.vector = ir.VectorType(FLOAT, lanes) if lanes > 1 else FLOAT
        self.integers = ir.VectorType(INT, lanes) if lanes > 1 else INT
        self.align = 4 * lanes if aligned else 4
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, LONG, LONG]), name)
        self.arguments, self.first, self.last = function.args
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))

    def int64(self, value: int) -> Value:
        """Return a constant of 64 bits."""
        return ir.Constant(LONG, value)

    def address(self, pointer: Value, offset: Value | int) -> Value:
        """Return the pointer plus an offset in bytes."""
        if isinstance(offset, int):
            if not offset:
                return pointer
            offset = self.int64(offset)
        return self.builder.gep(pointer, [offset], source_etype=BYTE)

    def scaled(self, index: Value, size: int) -> Value:
        """Return the offset of the element of that index among elements of `size` bytes."""
        return self.builder.mul(index, self.int64(size))

    def argument(self, index: int, kind: ir.Type = POINTER) -> Value:
        """Read an argument from the table; each takes eight bytes."""
        return self.builder.load(self.address(self.arguments, 8 * index), typ=kind)

    def load(self, pointer: Value, offset: Value | int = 0) -> Value:
        """Read a vector."""
        return self._load(pointer, offset, self.vector)

    def load_integers(self, pointer: Value, offset: Value | int = 0) -> Value:
        """Read a vector of int32."""
        return self._load(pointer, offset, self.integers)

    def load_octets(self, pointer: Value, offset: Value | int = 0) -> Value:
        """Read a vector as bytes."""
        return self._load(pointer, offset, ir.VectorType(BYTE, 4 * self.lanes))

    def _load(self, pointer: Value, offset: Value | int, kind: ir.Type) -> Value:
        vector = self.builder.load(self.address(pointer, offset), typ=kind)
        vector.align = self.align
        return vector

    def store(self, value: Value, pointer: Value, offset: Value | int = 0) -> None:
        """Write a vector.

        Args:
            value: a vector.
            pointer: base address.
            offset: in bytes.
        """
        self.builder.store(value, self.address(pointer, offset)).align = self.align

    def prefetch(self, pointer: Value, offset: int) -> None:
        """Prefetch a cache line; an address outside the memory does no harm."""
        constants = (ir.Constant(INT, value) for value in (0, 3, 1))
        self.call("llvm.prefetch.p0", ir.VoidType(), self.address(pointer, offset), *constants)

    def load_uint32(self, pointer: Value, offset: Value | int = 0) -> Value:
        """Read a uint32, as 64 bits."""
        return self.builder.zext(self.builder.load(self.address(pointer, offset), typ=INT), LONG)

    def load_broadcast(self, pointer: Value, offset: Value | int = 0) -> Value:
        """Read one float into every lane."""
        return self.broadcast(self.builder.load(self.address(pointer, offset), typ=FLOAT))

    def load_integer(self, pointer: Value, offset: Value | int = 0) -> Value:
        """Read one int32 into every lane."""
        return self.broadcast(self.builder.load(self.address(pointer, offset), typ=INT))

    def splat_integer(self, value: int) -> Value:
        """Return a constant int32 in every lane."""
        return ir.Constant(self.integers, [value] * self.lanes) if self.lanes > 1 else ir.Constant(INT, value)

    def splat_float(self, value: float) -> Value:
        """Return a constant float in every lane."""
        return ir.Constant(self.vector, [value] * self.lanes) if self.lanes > 1 else ir.Constant(FLOAT, value)

    def broadcast(self, value: Value) -> Value:
        """Return a float or an int32 in every lane."""
        if self.lanes == 1:
            return value
        empty = ir.Constant(ir.VectorType(value.type, self.lanes), ir.Undefined)
        first_lane = self.builder.insert_element(empty, value, ir.Constant(INT, 0))
        zeros = ir.Constant(ir.VectorType(INT, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first_lane, empty, zeros)

    def pack_lanes(self, values: Sequence[Value]) -> Value:
        """Return a vector of single floats or int32, one a lane."""
        if self.lanes == 1:
            return values[0]
        vector: Value = ir.Constant(ir.VectorType(values[0].type, self.lanes), ir.Undefined)
        for lane, value in enumerate(values):
            vector = self.builder.insert_element(vector, value, ir.Constant(INT, lane))
        return vector

    def zero(self) -> Value:
        """Return 0 in every lane."""
        return self.splat_float(0.0)

    def intrinsic(self, name: str, *values: Value) -> Value:
        """Call llvm.NAME on vectors."""
        suffix = f"v{self.lanes}f32" if self.lanes > 1 else "f32"
        return self.call(f"llvm.{name}.{suffix}", self.vector, *values)

    def call(self, name: str, result: ir.Type, *values: Value) -> Value:
        """Call a function that is not in the module.

        Args:
            name: of the function.
            result: its type.
            values: its arguments.
        """
        kind = ir.FunctionType(result, [value.type for value in values])
        return self.builder.call(self.module.globals.get(name) or ir.Function(self.module, kind, name), list(values))

    def maximum(self, a: Value, b: Value) -> Value:
        """Return the maximum in each lane; the other value where one is NaN."""
        return self.intrinsic("maxnum", a, b)

    @contextlib.contextmanager
    def loop(
        self, start: Value | int, stop: Value | int, carried: list[Value] | None = None, step: int = 1
    ) -> Iterator[Value]:
        """Build a loop over start, start + step, .. below stop; the context is its body and yields the index.

        Args:
            start: first index.
            stop: end of the indices.
            carried: values that the body may replace in this list, for the next iteration; then the last ones.
            step: added to the index.
        """
        begin, end = (self.int64(v) if isinstance(v, int) else v for v in (start, stop))
        carried = [] if carried is None else carried
        before = self.builder.block
        head, inside, after = (self.builder.append_basic_block(name) for name in ("head", "body", "after"))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        index = self._phi((begin, before))
        values = [self._phi((value, before)) for value in carried]
        self.builder.cbranch(self.builder.icmp_signed("<", index, end), inside, after)
        self.builder.position_at_end(inside)
        carried[:] = values
        yield index
        index.add_incoming(self.builder.add(index, self.int64(step)), self.builder.block)
        for value, following in zip(values, carried, strict=True):
            value.add_incoming(following, self.builder.block)
        self.builder.branch(head)
        self.builder.position_at_end(after)
        carried[:] = values

    def _phi(self, *incoming: tuple[Value, ir.Block]) -> Value:
        """Return the value that belongs to the block which control came from."""
        phi = self.builder.phi(incoming[0][0].type)
        for value, block in incoming:
            phi.add_incoming(value, block)
        return phi

    def if_else(
        self, condition: Value, then: Callable[[], Sequence[Value]], otherwise: Callable[[], Sequence[Value]]
    ) -> list[Value]:
        """Return the values of one of two branches; only that branch runs.

        Args:
            condition: one bit.
            then: builds the branch that runs if the bit is set.
            otherwise: builds the other branch.
        """
        with self.builder.if_else(condition) as (then_block, otherwise_block):
            with then_block:
                first = then()
                first_block = self.builder.block
            with otherwise_block:
                second = otherwise()
                second_block = self.builder.block
        return [self._phi((a, first_block), (b, second_block)) for a, b in zip(first, second, strict=True)]

    def bit(self, value: Value, mask: int) -> Value:
        """Return whether a bit of a 64-bit number is set."""
        return self.builder.icmp_signed("!=", self.builder.and_(value, self.int64(mask)), self.int64(0))

    def barrier(self, counter: Value, target: Value) -> None:
        """Increment a counter, and wait until it reaches a target; yields the processor after a while."""
        self.builder.atomic_rmw("add", counter, self.int64(1), "seq_cst")
        before = self.builder.block
        waiting, again, on = (self.builder.append_basic_block(name) for name in ("waiting", "again", "on"))
        self.builder.branch(waiting)
        self.builder.position_at_end(waiting)
        spins = self._phi((self.int64(1), before))
        count = self.builder.load_atomic(counter, "acquire", 8, typ=LONG)
        self.builder.cbranch(self.builder.icmp_signed("<", count, target), again, on)
        self.builder.position_at_end(again)
        if os.name == "posix":
            with self.builder.if_then(self.builder.icmp_signed(">", spins, self.int64(SPINS))):
                self.call("sched_yield", INT)
        spins.add_incoming(self.builder.add(spins, self.int64(1)), self.builder.block)
        self.builder.branch(waiting)
        self.builder.position_at_end(on)

    def finish(self) -> None:
        """End the function."""
        self.builder.ret_void()
