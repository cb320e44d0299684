"""The memory of one run: buffers whose frames stay zero, and the table of arguments that points into them."""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.execution_plan import Argument, BufferAddress, ExecutionPlan, KernelCall, last_uses
from sparsemble.runtime.compiler.fused import FusedGraph
from sparsemble.runtime.compiler.im2col import Im2col
from sparsemble.runtime.compiler.layout import Plane
from sparsemble.runtime.compiler.memory_estimate import table_bytes
from sparsemble.runtime.network import Pair

ALIGNMENT = 64


TAIL = 1024
"""Bytes behind the last buffer, for vectors that are read where a row has ended."""


def places(fused: FusedGraph, buffers: Sequence[Plane | Im2col], lives: Mapping[int, Pair]) -> tuple[list[int], int]:
    """Return the offset of every buffer, and the bytes of all; buffers of one layout take turns.

    Only equal layouts may share: the frame of one would be written by the inside of another.

    Args:
        fused: the operations.
        buffers: what they read and write, then whatever else a plan needs.
        lives: the first and last operation that needs each of the others.
    """
    last, free = last_uses(fused), dict[Plane | Im2col, list[int]]()
    last |= {buffer: end for buffer, (_, end) in lives.items()}
    offsets, end = [0] * len(buffers), 0

    def take(buffer: int) -> None:
        nonlocal end
        waiting = free.get(buffers[buffer])
        if waiting:
            offsets[buffer] = waiting.pop()
        else:
            offsets[buffer] = end
            end += -(-buffers[buffer].bytes // ALIGNMENT) * ALIGNMENT

    take(0)
    for place, operation in enumerate(fused.operations):
        for buffer, (first, _) in lives.items():
            if first == place:
                take(buffer)
        take(operation.out)
        for buffer, done in last.items():
            if done == place:
                free.setdefault(buffers[buffer], []).append(offsets[buffer])
    return offsets, end + TAIL


def workspace_bytes(
    fused: FusedGraph, buffers: Sequence[Plane | Im2col], lives: Mapping[int, Pair] | None = None
) -> int:
    """Return the bytes that one run takes, and planning it."""
    copied = sum(buffer.table_bytes for buffer in buffers if isinstance(buffer, Im2col))
    return places(fused, buffers, lives or {})[1] + table_bytes(fused) + copied


def room(size: int) -> NDArray[np.uint8]:
    """Return so many bytes, all of them 0."""
    return np.zeros(size, np.uint8)


@final
class Workspace:
    """Buffers and arguments of one run at a time.

    Args:
        plan: what runs in it.
    """

    def __init__(self, plan: ExecutionPlan) -> None:
        self.plan = plan
        self.offsets, size = places(plan.fused, plan.buffers, plan.lives)
        # Each thread has a memory of its own, of which all but the first use what holds copies.
        self._size = -(-size // ALIGNMENT) * ALIGNMENT
        self._bytes = room(plan.threads * self._size + ALIGNMENT)
        self.start = -(-self._bytes.ctypes.data // ALIGNMENT) * ALIGNMENT
        self._arguments = [[self.arguments(step.calls[t], t) for step in plan.steps] for t in range(plan.threads)]
        self._tables = [
            np.array(
                [
                    [one.ctypes.data, step.calls[t].first, step.calls[t].last]
                    for one, step in zip(mine, plan.steps, strict=True)
                ],
                np.int64,
            )
            for t, mine in enumerate(self._arguments)
        ]
        self.tables = [int(table.ctypes.data) for table in self._tables]
        """Where each thread's table lies."""
        self._meeting = np.zeros(1, np.int64)
        self.meeting = int(self._meeting.ctypes.data)
        """Where threads count who has come to the end of a step."""
        self._logits = self._view(plan.fused.answer)

    def arguments(self, call: KernelCall, thread: int = 0) -> NDArray[np.int64]:
        """Return the table of arguments that a kernel is called with."""
        return np.array([self._value(one, thread) for one in call.arguments], np.int64)

    def fill(self, value: float) -> None:
        """Put a number everywhere: memory that was never written reads faster than any in use."""
        self._bytes[: len(self._bytes) // 4 * 4].view(np.float32)[:] = value

    def load(self, images: NDArray[np.float32]) -> None:
        """Say which images to pack: (B, C, H, W), contiguous, at most as many as there are lanes."""
        self._meeting[0], self._images = 0, images
        for mine in self._arguments:
            mine[0][0], mine[0][3] = images.ctypes.data, len(images)

    def let_go(self) -> None:
        """Have nobody wait for anybody any more; what is in the buffers then is nothing."""
        self._meeting[0] = 2**62

    def answer(self, count: int) -> NDArray[np.float32]:
        """Return the logits of the first images, (count, K)."""
        return np.ascontiguousarray(self._logits[..., :count].reshape(self.plan.fused.classes, count).T)

    def _view(self, buffer: int) -> NDArray[np.float32]:
        """Return what is in a plane, (channels, height, width, lanes), without its frame."""
        plane = self.plan.plane(buffer)
        begin = self.start - self._bytes.ctypes.data + self.offsets[buffer]
        stored = self._bytes[begin : begin + plane.plane * plane.channels].reshape(plane.channels, plane.plane)
        high, wide = plane.height + 2 * plane.frame[0], plane.width + 2 * plane.frame[1]
        rows = stored[:, : high * plane.row].view(np.float32).reshape(plane.channels, high, wide, plane.lanes)
        (above, beside), (height, width) = plane.frame, (plane.height, plane.width)
        return rows[:, above : above + height, beside : beside + width]

    def _value(self, argument: Argument, thread: int) -> int:
        if isinstance(argument, BufferAddress):
            own = thread * self._size if isinstance(self.plan.buffers[argument.buffer], Im2col) else 0
            return self.start + self.offsets[argument.buffer] + own
        if isinstance(argument, np.ndarray):
            return int(argument.ctypes.data)
        return argument
