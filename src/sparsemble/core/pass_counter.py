"""Counts forward and backward passes, in images, with hooks on the model."""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsemble.core.types import Counts

FORWARD, BACKWARD = 0, 1


@dataclass
class Passes:
    """Numbers of images passed through models, forward and backward."""

    forward: int = 0
    backward: int = 0
    by_image: Float[Tensor, "B 2"] = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.float64))
    """Forward and backward passes of each image of the batch, where `count_passes` knows its size."""

    @property
    def total(self) -> int:
        """Forward plus backward passes."""
        return self.forward + self.backward

    def attribute(self, rows: Counts | None, passes: int, direction: int) -> None:
        """Attribute passes to images in equal parts.

        Args:
            rows: (N) indices of the images in the batch; none: all images.
            passes: images that went through the model.
            direction: `FORWARD` or `BACKWARD`.
        """
        if not passes or not len(self.by_image):
            return
        if rows is None:
            rows = torch.arange(len(self.by_image))
        self.by_image = self.by_image.to(rows.device)
        each = torch.full((len(rows),), passes / max(len(rows), 1), dtype=torch.float64, device=rows.device)
        self.by_image[:, direction].index_add_(0, rows, each)


_rows: ContextVar[Counts | None] = ContextVar("rows", default=None)


@contextlib.contextmanager
def for_images(rows: Counts) -> Iterator[None]:
    """Declare which images of the batch, by their indices (N), are passed through models while the context is open.

    An attack that drops images opens such a context around its passes; otherwise passes are attributed to all images.
    Contexts nest, and an index may occur more than once.
    """
    outer = _rows.get()
    token = _rows.set(rows if outer is None else outer[rows])
    try:
        yield
    finally:
        _rows.reset(token)


@contextlib.contextmanager
def count_passes(*models: nn.Module, images: int = 0) -> Iterator[Passes]:
    """Count the passes of these models while the context is open; give the members of an ensemble one by one.

    A pass that ends at a hidden layer counts as a whole one. With `images`, the size of the batch, passes are also
    counted per image.
    """
    passes = Passes(by_image=torch.zeros(images, 2, dtype=torch.float64))

    def add_backward(gradient: Tensor, rows: Counts | None) -> None:
        passes.backward += len(gradient)
        passes.attribute(rows, len(gradient), BACKWARD)

    def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        passes.forward += len(inputs[0])
        rows = _rows.get()
        passes.attribute(rows, len(inputs[0]), FORWARD)
        if not (inputs[0].requires_grad and torch.is_grad_enabled()):
            return inputs
        # A view, because the tensor may be passed through other models, or through this one again.
        view = inputs[0].view_as(inputs[0])
        view.register_hook(lambda gradient: add_backward(gradient, rows))
        return view, *inputs[1:]

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


@final
class StandIn(nn.Module):
    """A network that runs in place of others: each of its passes is, to the hooks of all of these, a pass of theirs.

    Args:
        network: what runs.
        models: what it stands in for; not part of it.
    """

    def __init__(self, network: nn.Module, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.network = network
        self.__dict__["_models"] = tuple(models)  # past `__setattr__`, which would make them its own

    def forward(self, x: Tensor) -> Tensor:
        """Return what the network returns."""
        models: Sequence[nn.Module] = self.__dict__["_models"]
        for model in models:
            for hook in list(model._forward_pre_hooks.values()):
                changed: Any = hook(model, (x,))
                x = x if changed is None else changed[0] if isinstance(changed, tuple) else changed
        output: Tensor = self.network(x)
        for model in models:
            for after in list(model._forward_hooks.values()):
                after(model, (x,), output)
        return output
