"""One member as C: constants, and a function that computes its logits operation by operation."""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from sparsemble.core.errors import InputError
from sparsemble.export.c.arena import Arena, is_linear, place_buffers, reads_levels
from sparsemble.export.c.literals import Array, float_literal
from sparsemble.export.c.weights import store_weights
from sparsemble.runtime.compiler.dead_channels import remove_dead_channels
from sparsemble.runtime.compiler.fused import AddOp, AffineOp, ConvOp, FusedGraph, FusedOp, PoolOp, fuse
from sparsemble.runtime.network import Network


@final
@dataclass(frozen=True, eq=False)
class Member:
    """A member's constants, statements and needs."""

    number: int
    arrays: list[Array]
    """Weights and other constants."""
    tables: list[str]
    """Definitions of the geometry of its layers."""
    statements: list[str]
    """In running order, on `pixels` and `memory`."""
    sections: set[str]
    """Of the C files, that the statements need."""
    arena: Arena
    """Where results lie in `memory`."""
    largest_plane: int
    """Numbers of one output of a convolution, at most."""
    logits: str
    """The tensor that it returns."""

    def __str__(self) -> str:
        """Return the definitions of its constants and of `member1`."""
        body = "\n".join(f"    {statement}" for statement in self.statements)
        return (
            f"/* Member {self.number} */\n"
            + "".join(map(str, self.arrays))
            + "".join(self.tables)
            + f"\nstatic tensor member{self.number}(const uint8_t *pixels)\n{{\n{body}\n"
            + f"    return {self.logits};\n}}\n"
        )


def convert_member(network: Network, number: int) -> Member:
    """Return a member as C.

    Args:
        network: its operations.
        number: from 1; names its constants.

    Raises:
        InputError: an operation that has no C.
    """
    graph = remove_dead_channels(fuse(network))
    arena = place_buffers(graph)
    prefix = f"m{number}"
    scaled = f"{prefix}_scale, {prefix}_shift, memory + {arena.offsets[0]}"
    image, call = ("levels", f"levels({scaled});") if reads_levels(graph) else ("image", f"image(pixels, {scaled});")
    member = Member(
        number=number,
        arrays=[Array(f"{prefix}_scale", graph.scale), Array(f"{prefix}_shift", graph.shift)],
        tables=[],
        statements=[call],
        sections={"tensor", image},
        arena=arena,
        largest_plane=max(
            [0, *(math.prod(graph.shapes[op.out][1:]) for op in graph.operations if _is_plane(op, graph))]
        ),
        logits=_tensor(graph, arena, graph.logits_buffer),
    )
    for index, operation in enumerate(graph.operations, start=1):
        _Writer(member, graph, f"{prefix}_{index}").add(operation)
    return member


def _is_plane(operation: FusedOp, graph: FusedGraph) -> bool:
    """Return whether an operation is a convolution that is computed plane by plane."""
    return isinstance(operation, ConvOp) and not is_linear(operation, graph.shapes[operation.source])


def _tensor(graph: FusedGraph, arena: Arena, buffer: int) -> str:
    """Return a buffer as C."""
    steps = graph.steps.get(buffer)
    kind = f"{float_literal(steps.scale)}, {steps.zero}" if steps else "0, 0"
    return f"(tensor){{memory + {arena.offsets[buffer]}, {kind}}}"


@final
class _Writer:
    """Adds one operation to a member."""

    def __init__(self, member: Member, graph: FusedGraph, name: str) -> None:
        self.member, self.graph, self.shapes, self.name = member, graph, graph.shapes, name

    def add(self, operation: FusedOp) -> None:
        """Add constants, geometry and the call."""
        if isinstance(operation, ConvOp):
            self._add_conv(operation)
        elif isinstance(operation, PoolOp):
            self._add_pool(operation)
        elif isinstance(operation, AffineOp):
            scale, shift = Array(f"{self.name}_scale", operation.scale), Array(f"{self.name}_shift", operation.shift)
            self.member.arrays.extend([scale, shift])
            channels, *plane = self.shapes[operation.out]
            numbers = [scale.name, shift.name, int(operation.relu), channels, math.prod(plane)]
            self._call("affine", *numbers, self._at(operation.source), self._at(operation.out))
        elif isinstance(operation, AddOp):
            buffers = [self._at(buffer) for buffer in (operation.source, operation.addend, operation.out)]
            self._call("add", int(operation.relu), math.prod(self.shapes[operation.out]), *buffers)
        else:
            raise InputError(
                f"member {self.member.number} has an operation {type(operation).__name__} that cannot be written as C"
            )

    def _add_conv(self, operation: ConvOp) -> None:
        weights = store_weights(operation.weight, self.name)
        bias = Array(f"{self.name}_bias", np.asarray(operation.bias, np.float32))
        self.member.arrays.extend([*weights.arrays, bias])
        (channels, height, width), (outputs, out_height, out_width) = (
            self.shapes[buffer] for buffer in (operation.source, operation.out)
        )
        self._table(
            "layer",
            values=weights.values.name,
            gaps=weights.gaps.name if weights.gaps else 0,
            scales=weights.scales.name if weights.scales else 0,
            bias=bias.name,
            value_bytes=weights.values.values.itemsize,
            gap_bits=weights.gap_bits,
            relu=int(operation.relu),
            channels=channels,
            height=height,
            width=width,
            outputs=outputs,
            out_height=out_height,
            out_width=out_width,
            kernel_height=operation.weight.shape[2],
            kernel_width=operation.weight.shape[3],
            stride_down=operation.stride[0],
            stride_right=operation.stride[1],
            padding_top=operation.padding[0],
            padding_left=operation.padding[1],
            dilation_down=operation.dilation[0],
            dilation_right=operation.dilation[1],
        )
        residual = "(tensor){0, 0, 0}" if operation.residual is None else self._at(operation.residual)
        function, sections = "linear", {"weights"}
        if not is_linear(operation, (channels, height, width)):
            function, sections = "convolution", {"weights", "window", "place"}
        if self.graph.reads_integers(operation):
            function = f"integer_{function}"
        elif operation.source in self.graph.steps:
            raise InputError(
                f"member {self.member.number}, {self.name} reads 8 bits, but its weights are floats; C needs integers"
            )
        else:
            sections.add("weight_value")
        self.member.sections.update(sections)
        source = [self._at(operation.source)]
        if operation.source == 0 and reads_levels(self.graph):
            function, source = "image_convolution", ["pixels", f"memory + {self.member.arena.offsets[0]}"]
        self._call(function, f"&{self.name}", *source, residual, self._at(operation.out))

    def _add_pool(self, operation: PoolOp) -> None:
        (channels, height, width), (_, out_height, out_width) = (
            self.shapes[buffer] for buffer in (operation.source, operation.out)
        )
        self._table(
            "window",
            channels=channels,
            height=height,
            width=width,
            out_height=out_height,
            out_width=out_width,
            kernel_height=operation.kernel[0],
            kernel_width=operation.kernel[1],
            stride_down=operation.stride[0],
            stride_right=operation.stride[1],
            padding_top=operation.padding[0],
            padding_left=operation.padding[1],
        )
        self.member.sections.add("pool")
        function = "max_pool" if operation.is_max else "average_pool"
        self._call(function, f"&{self.name}", self._at(operation.source), self._at(operation.out))

    def _table(self, kind: str, **fields: Any) -> None:
        """Add the geometry of the operation."""
        settings = ", ".join(f".{name} = {value}" for name, value in fields.items())
        self.member.tables.append(f"static const {kind} {self.name} = {{{settings}}};\n")

    def _at(self, buffer: int) -> str:
        """Return a buffer."""
        return _tensor(self.graph, self.member.arena, buffer)

    def _call(self, function: str, *arguments: Any) -> None:
        """Add the call of a function of the C files."""
        self.member.sections.update({"store", function})
        self.member.statements.append(f"{function}({', '.join(map(str, arguments))});")
