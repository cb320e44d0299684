"""Looking inside members: features before a ReLU, activations after it."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import Images


class _Reached(Exception):
    """Ends a forward pass at the layer that was asked for."""


def feature_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers whose outputs are features before a ReLU: the BatchNorms.

    Raises:
        InputError: there are none.
    """
    found = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if not found:
        raise InputError(
            "dverge imitates features in front of a ReLU, where a BatchNorm2d ends, and the model has no BatchNorm2d; "
            "add some, set its beta = 0, or use another loss, such as joint"
        )
    return found


def features(model: nn.Module, layer: str, x: Images) -> Tensor:
    """Return the output of one layer; nothing after it is computed."""
    found: list[Tensor] = []

    def stop_here(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        found.append(output.float())
        raise _Reached

    handle = model.get_submodule(layer).register_forward_hook(stop_here)
    try:
        model(x)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]


@contextlib.contextmanager
def watch_activations(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the output of every ReLU while the context is open."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen.append(output.float())

    handles = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, nn.ReLU)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def soft_nonzero(activation: Tensor, scale: float) -> Tensor:
    """Return the smooth share of an activation that is not 0: mean of a^2 / (a^2 + e^2), e = scale * rms (detached)."""
    square = activation.square()
    edge = scale**2 * square.detach().mean().clamp_min(1e-12)
    return torch.mean(square / (square + edge))
