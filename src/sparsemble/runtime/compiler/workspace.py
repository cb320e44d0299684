"""The memory of one run: buffers whose frames stay zero, and the arguments of the kernels, which point into it."""

from typing import final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.compiler.execution_plan import Argument, BufferAddress, ExecutionPlan, KernelCall
from sparsemble.runtime.compiler.fused import FusedGraph, sources
from sparsemble.runtime.compiler.im2col import BufferLayout, Im2col, PartialSums
from sparsemble.runtime.compiler.layout import Plane, table_bytes

ALIGNMENT = 64
TAIL = 1024
"""Bytes behind the last buffer, for vectors that are read beyond the end of a row."""


def _buffer_offsets(fused: FusedGraph, layout: BufferLayout) -> tuple[list[int], int]:
    """Return the offset of every buffer, and the bytes of all; buffers of equal layout reuse memory.

    Only equal layouts may share memory: otherwise the frame of one would be overwritten by the pixels of another.
    """
    buffers, free = layout.buffers, dict[Plane | Im2col | PartialSums, list[int]]()
    last = {0: -1}
    for i, operation in enumerate(fused.operations):
        last |= dict.fromkeys([operation.out, *sources(operation)], i)
    last[fused.logits_buffer] = len(fused.operations)
    last |= {buffer: end for buffer, (_, end) in layout.lifetimes.items()}
    offsets, end = [0] * len(buffers), 0

    def allocate(buffer: int) -> None:
        nonlocal end
        reusable = free.get(buffers[buffer])
        if reusable:
            offsets[buffer] = reusable.pop()
        else:
            offsets[buffer] = end
            end += -(-buffers[buffer].bytes // ALIGNMENT) * ALIGNMENT

    allocate(0)
    for i, operation in enumerate(fused.operations):
        for buffer, (first, _) in layout.lifetimes.items():
            if first == i:
                allocate(buffer)
        allocate(operation.out)
        for buffer, last_use in last.items():
            if last_use == i:
                free.setdefault(buffers[buffer], []).append(offsets[buffer])
    return offsets, end + TAIL


def workspace_bytes(fused: FusedGraph, layout: BufferLayout) -> int:
    """Return the bytes that one run and its plan take."""
    copy_tables = sum(buffer.table_bytes for buffer in layout.buffers if isinstance(buffer, Im2col))
    return _buffer_offsets(fused, layout)[1] + table_bytes(fused) + copy_tables


def zero_bytes(size: int) -> NDArray[np.uint8]:
    """Return an array of that many bytes, all 0."""
    return np.zeros(size, np.uint8)


@final
class Workspace:
    """Buffers and arguments of one run of a plan at a time."""

    def __init__(self, plan: ExecutionPlan) -> None:
        self.plan = plan
        self.offsets, size = _buffer_offsets(plan.fused, plan.layout)
        # Each thread has memory of its own; all but the first use only the buffers of copies in it.
        self._size = -(-size // ALIGNMENT) * ALIGNMENT
        self._bytes = zero_bytes(plan.threads * self._size + ALIGNMENT)
        self.start = -(-self._bytes.ctypes.data // ALIGNMENT) * ALIGNMENT
        for buffer, begin in zip(plan.layout.buffers, self.offsets, strict=True):
            if buffer.fill:
                for t in range(plan.threads):
                    first = self.start - self._bytes.ctypes.data + t * self._size + begin
                    self._bytes[first : first + buffer.bytes] = buffer.fill
        self._arguments = [[self.arguments(step.calls[t], t) for step in plan.steps] for t in range(plan.threads)]
        self._tables = [
            np.array(
                [
                    [arguments.ctypes.data, step.calls[t].first, step.calls[t].last]
                    for arguments, step in zip(of_thread, plan.steps, strict=True)
                ],
                np.int64,
            )
            for t, of_thread in enumerate(self._arguments)
        ]
        self.tables = [int(table.ctypes.data) for table in self._tables]
        """Address of each thread's table of steps."""
        self._barrier = np.zeros(1, np.int64)
        self.barrier = int(self._barrier.ctypes.data)
        """Address of the number of threads that have finished a step."""
        self._logits = self._view(plan.fused.logits_buffer)

    def arguments(self, call: KernelCall, thread: int = 0) -> NDArray[np.int64]:
        """Return the table of arguments of a kernel call."""
        return np.array([self._value(argument, thread) for argument in call.arguments], np.int64)

    def fill(self, value: float) -> None:
        """Write a number everywhere, for timing: pages that were never written are faster to read."""
        self._bytes[: len(self._bytes) // 4 * 4].view(np.float32)[:] = value

    def load(self, images: NDArray[np.float32]) -> None:
        """Set the images of the next run: (B, C, H, W), contiguous, B at most the lanes of the plan."""
        self._barrier[0], self._images = 0, images
        for of_thread in self._arguments:
            of_thread[0][0], of_thread[0][3] = images.ctypes.data, len(images)

    def release(self) -> None:
        """Let all threads pass the barrier, after an error; the buffers hold no valid result then."""
        self._barrier[0] = 2**62

    def logits(self, count: int) -> NDArray[np.float32]:
        """Return the logits of the first images, (count, K)."""
        return np.ascontiguousarray(self._logits[..., :count].reshape(self.plan.fused.classes, count).T)

    def _view(self, buffer: int) -> NDArray[np.float32]:
        """Return the content of a plane without its frame, (channels, height, width, lanes)."""
        plane = self.plan.layout.plane(buffer)
        begin = self.start - self._bytes.ctypes.data + self.offsets[buffer]
        stored = self._bytes[begin : begin + plane.plane * plane.channels].reshape(plane.channels, plane.plane)
        framed_height, framed_width = plane.height + 2 * plane.frame[0], plane.width + 2 * plane.frame[1]
        rows = stored[:, : framed_height * plane.row].view(np.float32)
        pixels = rows.reshape(plane.channels, framed_height, framed_width, plane.lanes)
        (above, left), (height, width) = plane.frame, (plane.height, plane.width)
        return pixels[:, above : above + height, left : left + width]

    def _value(self, argument: Argument, thread: int) -> int:
        """Return an argument as a number: an address or a count."""
        if isinstance(argument, BufferAddress):
            own = (
                thread * self._size
                if isinstance(self.plan.layout.buffers[argument.buffer], Im2col | PartialSums)
                else 0
            )
            return self.start + self.offsets[argument.buffer] + own
        if isinstance(argument, np.ndarray):
            return int(argument.ctypes.data)
        return argument
