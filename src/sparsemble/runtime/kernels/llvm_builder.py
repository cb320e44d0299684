"""Writing LLVM: loops with carried values, vectors, addresses in bytes."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

BYTE, INT, LONG, FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
POINTER = ir.PointerType()
LOOKS = 1000
"""How often one that waits looks before it gives way: some microseconds, less than most steps take."""

Value = Any
"""An `llvmlite.ir.Value`; the package carries no types."""


class Kernel(ABC):
    """What can write itself as a function; equal ones write the same."""

    @abstractmethod
    def write(self, module: ir.Module, name: str) -> None:
        """Add the function to a module."""


class LLVMBuilder:
    """One function that is being written: `name(arguments*, first, last)`.

    Args:
        module: where it goes.
        name: of the function.
        lanes: floats in a vector.
        aligned: whether every vector lies at a multiple of its size.
    """

    def __init__(self, module: ir.Module, name: str, lanes: int, *, aligned: bool) -> None:
        self.module, self.lanes = module, lanes
        self.vector = ir.VectorType(FLOAT, lanes) if lanes > 1 else FLOAT
        self.align = 4 * lanes if aligned else 4
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, LONG, LONG]), name)
        self.arguments, self.first, self.last = function.args
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))

    def long(self, value: int) -> Value:
        """Return a constant of 64 bits."""
        return ir.Constant(LONG, value)

    def at(self, pointer: Value, offset: Value | int) -> Value:
        """Return a pointer so many bytes further on."""
        if isinstance(offset, int):
            if not offset:
                return pointer
            offset = self.long(offset)
        return self.builder.gep(pointer, [offset], source_etype=BYTE)

    def argument(self, place: int, kind: ir.Type = POINTER) -> Value:
        """Return the argument at a place of the table; each takes eight bytes."""
        return self.builder.load(self.at(self.arguments, 8 * place), typ=kind)

    def load(self, pointer: Value, offset: Value | int = 0) -> Value:
        """Read a vector."""
        found = self.builder.load(self.at(pointer, offset), typ=self.vector)
        found.align = self.align
        return found

    def store(self, value: Value, pointer: Value, offset: Value | int = 0) -> None:
        """Write a vector."""
        self.builder.store(value, self.at(pointer, offset)).align = self.align

    def prefetch(self, pointer: Value, offset: int) -> None:
        """Ask for a line of memory that will be read soon; one that is not there does no harm."""
        known = self.module.globals.get("llvm.prefetch.p0")
        kind = ir.FunctionType(ir.VoidType(), [POINTER, INT, INT, INT])
        one = known or ir.Function(self.module, kind, "llvm.prefetch.p0")
        self.builder.call(one, [self.at(pointer, offset), *(ir.Constant(INT, v) for v in (0, 3, 1))])

    def number(self, pointer: Value, offset: Value | int = 0) -> Value:
        """Read an unsigned whole number of 32 bits, as one of 64."""
        return self.builder.zext(self.builder.load(self.at(pointer, offset), typ=INT), LONG)

    def splat(self, pointer: Value, offset: Value | int = 0) -> Value:
        """Read one float into every lane."""
        return self.spread(self.builder.load(self.at(pointer, offset), typ=FLOAT))

    def spread(self, value: Value) -> Value:
        """Return a float in every lane."""
        if self.lanes == 1:
            return value
        empty = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(empty, value, ir.Constant(INT, 0))
        places = ir.Constant(ir.VectorType(INT, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(one, empty, places)

    def together(self, values: Sequence[Value]) -> Value:
        """Return a vector of single floats, one a lane."""
        if self.lanes == 1:
            return values[0]
        found: Value = ir.Constant(self.vector, ir.Undefined)
        for lane, value in enumerate(values):
            found = self.builder.insert_element(found, value, ir.Constant(INT, lane))
        return found

    def zero(self) -> Value:
        """Return 0 in every lane."""
        return ir.Constant(self.vector, [0.0] * self.lanes) if self.lanes > 1 else ir.Constant(FLOAT, 0.0)

    def intrinsic(self, name: str, *values: Value) -> Value:
        """Call llvm.NAME on vectors."""
        suffix = f"v{self.lanes}f32" if self.lanes > 1 else "f32"
        full = f"llvm.{name}.{suffix}"
        known = self.module.globals.get(full)
        kind = ir.FunctionType(self.vector, [self.vector] * len(values))
        return self.builder.call(known or ir.Function(self.module, kind, full), list(values))

    def multiply_add(self, a: Value, b: Value, c: Value) -> Value:
        """Return a b + c, rounded once."""
        return self.intrinsic("fma", a, b, c)

    def larger(self, a: Value, b: Value) -> Value:
        """Return the larger one in each lane; a number where the other is none."""
        return self.intrinsic("maxnum", a, b)

    def loop(
        self,
        start: Value | int,
        stop: Value | int,
        body: Callable[[Value, Sequence[Value]], Sequence[Value]],
        carried: Sequence[Value] = (),
        step: int = 1,
    ) -> list[Value]:
        """Run `body(index, carried)` for start, start + step, .. below stop; it returns what is carried on.

        Returns:
            What is carried out of the last turn.
        """
        begin, end = (self.long(v) if isinstance(v, int) else v for v in (start, stop))
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
        following = self.builder.add(index, self.long(step))
        index.add_incoming(following, self.builder.block)
        for value, result in zip(values, results, strict=True):
            value.add_incoming(result, self.builder.block)
        self.builder.branch(head)
        self.builder.position_at_end(after)
        return values

    def choose(
        self, condition: Value, yes: Callable[[], Sequence[Value]], no: Callable[[], Sequence[Value]]
    ) -> list[Value]:
        """Return the values of one of two branches; only that one runs."""
        with self.builder.if_else(condition) as (then, otherwise):
            with then:
                first = yes()
                first_block = self.builder.block
            with otherwise:
                second = no()
                second_block = self.builder.block
        found = []
        for one, other in zip(first, second, strict=True):
            found.append(self.builder.phi(one.type))
            found[-1].add_incoming(one, first_block)
            found[-1].add_incoming(other, second_block)
        return found

    def bit(self, value: Value, mask: int) -> Value:
        """Return whether a bit of a 64-bit number is set."""
        return self.builder.icmp_signed("!=", self.builder.and_(value, self.long(mask)), self.long(0))

    def meet(self, place: Value, wanted: Value) -> None:
        """Count one up, and wait until the count is there; who waits for long lets others have the processor."""
        self.builder.atomic_rmw("add", place, self.long(1), "seq_cst")
        before = self.builder.block
        waiting, again, on = (self.builder.append_basic_block(name) for name in ("waiting", "again", "on"))
        self.builder.branch(waiting)
        self.builder.position_at_end(waiting)
        looks = self.builder.phi(LONG)
        looks.add_incoming(self.long(1), before)
        count = self.builder.load_atomic(place, "acquire", 8, typ=LONG)
        self.builder.cbranch(self.builder.icmp_signed("<", count, wanted), again, on)
        self.builder.position_at_end(again)
        if os.name == "posix":
            with self.builder.if_then(self.builder.icmp_signed(">", looks, self.long(LOOKS))):
                known = self.module.globals.get("sched_yield")
                self.builder.call(known or ir.Function(self.module, ir.FunctionType(INT, []), "sched_yield"), [])
        looks.add_incoming(self.builder.add(looks, self.long(1)), self.builder.block)
        self.builder.branch(waiting)
        self.builder.position_at_end(on)

    def close(self) -> None:
        """End the function."""
        self.builder.ret_void()
