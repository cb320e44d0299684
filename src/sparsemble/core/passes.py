"""Counts forward and backward passes, in images, by watching the model."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Passes:
    """Images that went through a model, forward and backward."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Forward plus backward passes."""
        return self.forward + self.backward


@contextlib.contextmanager
def count_passes(*models: nn.Module) -> Iterator[Passes]:
    """Count the passes of these models while the context is open; each member of a team counts for itself.

    A pass that stops at a hidden layer counts as a whole one.
    """
    passes = Passes()

    def add_backward(gradient: Tensor) -> None:
        passes.backward += len(gradient)

    def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        passes.forward += len(inputs[0])
        if not (inputs[0].requires_grad and torch.is_grad_enabled()):
            return inputs
        # A view of its own: the image may go through other models, or through this one again.
        entered = inputs[0].view_as(inputs[0])
        entered.register_hook(add_backward)
        return entered, *inputs[1:]

    def after(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad and not inputs[0].requires_grad:
            output.register_hook(add_backward)

    handles = [model.register_forward_pre_hook(before) for model in models]
    handles += [model.register_forward_hook(after) for model in models]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()
