"""Counts forward and backward passes, in images, by watching the model."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsemble.core.types import Counts

FORWARD, BACKWARD = 0, 1


@dataclass
class Passes:
    """Images that went through a model, forward and backward."""

    forward: int = 0
    backward: int = 0
    by_image: Float[Tensor, "B 2"] = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.float64))
    """The same for each image of the batch that `count_passes` was told of."""

    @property
    def total(self) -> int:
        """Forward plus backward passes."""
        return self.forward + self.backward

    def share_out(self, rows: Counts | None, passes: int, way: int) -> None:
        """Put passes down to images: one each, or as many each as points went through the model for it.

        Args:
            rows: (N) position in the batch of the image that each pass belongs to; none: all images share alike.
            passes: number of passes.
            way: FORWARD or BACKWARD.
        """
        if not passes or not len(self.by_image):
            return
        if rows is None:
            rows = torch.arange(len(self.by_image))
        self.by_image = self.by_image.to(rows.device)
        each = torch.full((len(rows),), passes / max(len(rows), 1), dtype=torch.float64, device=rows.device)
        self.by_image[:, way].index_add_(0, rows, each)


_rows: ContextVar[Counts | None] = ContextVar("rows", default=None)


@contextlib.contextmanager
def for_images(rows: Counts) -> Iterator[None]:
    """Say which images of the batch go through models while the context is open; contexts nest.

    An attack that lets go of images opens one around what it asks; where none is open, all images share alike.

    Args:
        rows: (N) places in the batch that the next outer context speaks of; one may stand there more than once.
    """
    outer = _rows.get()
    token = _rows.set(rows if outer is None else outer[rows])
    try:
        yield
    finally:
        _rows.reset(token)


@contextlib.contextmanager
def count_passes(*models: nn.Module, images: int = 0) -> Iterator[Passes]:
    """Count the passes of these models while the context is open; each member of an ensemble counts for itself.

    A pass that stops at a hidden layer counts as a whole one.

    Args:
        models: what is watched.
        images: size of the batch whose images shall have their passes counted one by one; 0 counts only the sum.
    """
    passes = Passes(by_image=torch.zeros(images, 2, dtype=torch.float64))

    def add_backward(gradient: Tensor, rows: Counts | None) -> None:
        passes.backward += len(gradient)
        passes.share_out(rows, len(gradient), BACKWARD)

    def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        passes.forward += len(inputs[0])
        rows = _rows.get()
        passes.share_out(rows, len(inputs[0]), FORWARD)
        if not (inputs[0].requires_grad and torch.is_grad_enabled()):
            return inputs
        # A view of its own: the image may go through other models, or through this one again.
        entered = inputs[0].view_as(inputs[0])
        entered.register_hook(lambda gradient: add_backward(gradient, rows))
        return entered, *inputs[1:]

    def after(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad and not inputs[0].requires_grad:
            rows = _rows.get()
            output.register_hook(lambda gradient: add_backward(gradient, rows))

    handles = [model.register_forward_pre_hook(before) for model in models]
    handles += [model.register_forward_hook(after) for model in models]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()
