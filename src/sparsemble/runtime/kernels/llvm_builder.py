"""A builder of LLVM functions: loops with carried values, vectors, addresses in bytes."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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

    def argument(self, index: int, kind: ir.Type = POINTER) -> Value:
        """Read an argument from the table; each takes eight bytes."""
        return self.builder.load(self.address(self.arguments, 8 * index), typ=kind)

    def load(self, pointer: Value, offset: Value | int = 0) -> Value:
        """Read a vector."""
        vector = self.builder.load(self.address(pointer, offset), typ=self.vector)
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
        declared = self.module.globals.get("llvm.prefetch.p0")
        kind = ir.FunctionType(ir.VoidType(), [POINTER, INT, INT, INT])
        function = declared or ir.Function(self.module, kind, "llvm.prefetch.p0")
        self.builder.call(function, [self.address(pointer, offset), *(ir.Constant(INT, v) for v in (0, 3, 1))])

    def load_uint32(self, pointer: Value, offset: Value | int = 0) -> Value:
        """Read a uint32, as 64 bits."""
        return self.builder.zext(self.builder.load(self.address(pointer, offset), typ=INT), LONG)

    def load_broadcast(self, pointer: Value, offset: Value | int = 0) -> Value:
        """Read one float into every lane."""
        return self.broadcast(self.builder.load(self.address(pointer, offset), typ=FLOAT))

    def broadcast(self, value: Value) -> Value:
        """Return a float in every lane."""
        if self.lanes == 1:
            return value
        empty = ir.Constant(self.vector, ir.Undefined)
        first_lane = self.builder.insert_element(empty, value, ir.Constant(INT, 0))
        zeros = ir.Constant(ir.VectorType(INT, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first_lane, empty, zeros)

    def pack_lanes(self, values: Sequence[Value]) -> Value:
        """Return a vector of single floats, one a lane."""
        if self.lanes == 1:
            return values[0]
        vector: Value = ir.Constant(self.vector, ir.Undefined)
        for lane, value in enumerate(values):
            vector = self.builder.insert_element(vector, value, ir.Constant(INT, lane))
        return vector

    def zero(self) -> Value:
        """Return 0 in every lane."""
        return ir.Constant(self.vector, [0.0] * self.lanes) if self.lanes > 1 else ir.Constant(FLOAT, 0.0)

    def intrinsic(self, name: str, *values: Value) -> Value:
        """Call llvm.NAME on vectors."""
        suffix = f"v{self.lanes}f32" if self.lanes > 1 else "f32"
        full = f"llvm.{name}.{suffix}"
        declared = self.module.globals.get(full)
        kind = ir.FunctionType(self.vector, [self.vector] * len(values))
        return self.builder.call(declared or ir.Function(self.module, kind, full), list(values))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """Return a b + c, rounded once.

        Args:
            a: a vector.
            b: a vector of the same type.
            c: a vector of the same type.
        """
        return self.intrinsic("fma", a, b, c)

    def maximum(self, a: Value, b: Value) -> Value:
        """Return the maximum in each lane; the other value where one is NaN."""
        return self.intrinsic("maxnum", a, b)

    def loop(
        self,
        start: Value | int,
        stop: Value | int,
        body: Callable[[Value, Sequence[Value]], Sequence[Value]],
        carried: Sequence[Value] = (),
        step: int = 1,
    ) -> list[Value]:
        """Run `body` for start, start + step, .. below stop.

        Args:
            start: first index.
            stop: end of the indices.
            body: builds one iteration from the index and the carried values; returns the next carried values.
            carried: values at the start.
            step: added to the index.

        Returns:
            The carried values after the last iteration.
        """
        begin, end = (self.int64(v) if isinstance(v, int) else v for v in (start, stop))
        before = self.builder.block
        head, inside, after = (self.builder.append_basic_block(name) for name in ("head", "body", "after"))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        index = self.builder.phi(LONG)
        index.add_incoming(begin, before)
        values = []
        for value in carried:
            values.append(self.builder.phi(value.type))
            values[-1].add_incoming(value, before)
        self.builder.cbranch(self.builder.icmp_signed("<", index, end), inside, after)
        self.builder.position_at_end(inside)
        results = body(index, values)
        following = self.builder.add(index, self.int64(step))
        index.add_incoming(following, self.builder.block)
        for value, result in zip(values, results, strict=True):
            value.add_incoming(result, self.builder.block)
        self.builder.branch(head)
        self.builder.position_at_end(after)
        return values

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
        values = []
        for first_value, second_value in zip(first, second, strict=True):
            values.append(self.builder.phi(first_value.type))
            values[-1].add_incoming(first_value, first_block)
            values[-1].add_incoming(second_value, second_block)
        return values

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
        spins = self.builder.phi(LONG)
        spins.add_incoming(self.int64(1), before)
        count = self.builder.load_atomic(counter, "acquire", 8, typ=LONG)
        self.builder.cbranch(self.builder.icmp_signed("<", count, target), again, on)
        self.builder.position_at_end(again)
        if os.name == "posix":
            with self.builder.if_then(self.builder.icmp_signed(">", spins, self.int64(SPINS))):
                declared = self.module.globals.get("sched_yield")
                self.builder.call(declared or ir.Function(self.module, ir.FunctionType(INT, []), "sched_yield"), [])
        spins.add_incoming(self.builder.add(spins, self.int64(1)), self.builder.block)
        self.builder.branch(waiting)
        self.builder.position_at_end(on)

    def finish(self) -> None:
        """End the function."""
        self.builder.ret_void()
