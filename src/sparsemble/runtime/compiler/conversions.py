"""Convert results between floats and 8-bit steps where an operation computes the other kind."""

from dataclasses import replace

from sparsemble.runtime.compiler.fused import AddOp, ConvertOp, ConvOp, FusedGraph, FusedOp, PoolOp


def add_conversions(fused: FusedGraph) -> FusedGraph:
    """Return the same graph with conversions: only integer convolutions and maxima work on steps.

    Integer convolutions take residuals and write results of either kind; the logits become floats.
    """
    if not fused.steps:
        return fused
    return _Converter(fused).run()


class _Converter:
    def __init__(self, fused: FusedGraph) -> None:
        self.fused = fused
        self.shapes, self.steps = list(fused.shapes), dict(fused.steps)
        self.operations: list[FusedOp] = []
        self.floats: dict[int, int] = {}
        """The buffer of floats of each buffer of steps that has one."""

    def run(self) -> FusedGraph:
        """Return the graph with conversions."""
        for operation in self.fused.operations:
            maximum = isinstance(operation, PoolOp) and operation.is_max
            if self.fused.reads_integers(operation) or (maximum and operation.source in self.fused.steps):
                self.operations.append(operation)
            else:
                self._add_in_floats(operation)
        logits = self._as_floats(self.fused.logits_buffer)
        return replace(
            self.fused,
            shapes=tuple(self.shapes),
            operations=tuple(self.operations),
            steps=self.steps,
            logits_buffer=logits,
        )

    def _add_in_floats(self, operation: FusedOp) -> None:
        out = operation.out
        rounds = out in self.fused.steps and not _rounds(operation)
        operation = replace(operation, source=self._as_floats(operation.source), out=self._new(out) if rounds else out)
        if isinstance(operation, ConvOp) and operation.residual is not None:
            operation = replace(operation, residual=self._as_floats(operation.residual))
        elif isinstance(operation, AddOp):
            operation = replace(operation, addend=self._as_floats(operation.addend))
        self.operations.append(operation)
        if rounds:
            self.operations.append(ConvertOp(operation.out, out))

    def _as_floats(self, buffer: int) -> int:
        """Return the buffer itself, or one of floats that its steps are converted to once."""
        if buffer not in self.fused.steps:
            return buffer
        if buffer not in self.floats:
            self.floats[buffer] = self._new(buffer)
            self.operations.append(ConvertOp(buffer, self.floats[buffer]))
        return self.floats[buffer]

    def _new(self, like: int) -> int:
        self.shapes.append(self.shapes[like])
        return len(self.shapes) - 1


def _rounds(operation: FusedOp) -> bool:
    """Return whether an operation of floats rounds its result itself: a convolution of the image, in one turn."""
    return isinstance(operation, ConvOp) and operation.source == 0 and operation.residual is None
