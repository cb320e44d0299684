"""The interface of architectures, and the normalisation in front of every network."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Generator, nn

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import ShapedModule
from sparsemble.core.registry import Component, Registry
from sparsemble.core.types import Images, Logits
from sparsemble.models.adapted import find_output
from sparsemble.models.plain_network import Changes, make_plain_


class Architecture(Component):
    """A network of Conv2d, BatchNorm2d, ReLU, pooling, addition and Linear, each a module of its own.

    Every ReLU is an `nn.ReLU()` module (not in place) and is called once a forward pass, so that hooks see all
    activations; weights are float32. Pooling ends in an `nn.AdaptiveAvgPool2d(1)`, so that images may have any size
    from `smallest` on. Module names are part of stored models: renaming one raises `version`.
    """

    smallest: ClassVar[int] = 1
    """Height and width, in pixels, of the smallest image it takes."""
    is_plain: ClassVar[bool] = False
    """Whether `make_plain_` would change nothing: weights are parameters of one layer each, and all layers are used."""
    normalises: ClassVar[bool] = False
    """Whether the network normalises its images itself, so that no normalisation is put in front."""

    @abstractmethod
    def build(self, in_channels: int, classes: int) -> nn.Module:
        """Return the network, from normalised images to logits; `build_model` draws its weights."""


@final
class Normalised(ShapedModule):
    """Images in [0, 1] to logits: subtract the mean, divide by the standard deviation, run the network."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        body: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        shape: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.shape = shape
        self.changes = Changes()
        """What the architecture's network was changed by, to be prunable."""
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Images) -> Logits:
        """Return logits for images in [0, 1]: the first result of a network that also returns auxiliary ones."""
        output = self.body((x - self.mean) / self.std)
        logits = find_output(output)
        if logits is None:
            raise InputError(f"{type(self.body).__name__} must return logits, got {type(output).__name__}")
        return logits


def build_model(
    architecture: Architecture,
    shape: tuple[int, int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    rng: Generator,
) -> Normalised:
    """Return a classifier with fresh weights: He-normal (fan out) convolutions, BatchNorm at 1 and 0.

    Args:
        architecture: of the network.
        shape: channels, height and width of an image.
        classes: number of logits.
        mean: of each channel, over the training images.
        std: of each channel, over the training images.
        rng: draws the weights, on the CPU.

    Raises:
        InputError: the images are too small for the architecture, or the statistics do not fit the channels.
    """
    # Torch draws the weights of new layers from its global generator, whose state is restored; all are redrawn below.
    with torch.random.fork_rng(devices=[]):
        model = build_as_given(architecture, shape, classes, mean, std)
        if not architecture.is_plain:
            model.changes = make_plain_(model, shape)
    for module in model.modules():
        _draw_(module, rng)
    return model


def build_as_given(
    architecture: Architecture,
    shape: tuple[int, int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Normalised:
    """Return a network with the weights that its architecture gives it, hooks and all, behind its normalisation.

    Args:
        architecture: of the network.
        shape: channels, height and width of an image.
        classes: number of logits.
        mean: of each channel, over the training images.
        std: of each channel, over the training images.

    Raises:
        InputError: the images are too small for the architecture, or the statistics do not fit the channels.
    """
    _check_fit(architecture, shape, mean, std)
    return Normalised(architecture.build(shape[0], classes), *normalisation(architecture, mean, std), shape)


def normalisation(
    architecture: Architecture, mean: Sequence[float], std: Sequence[float]
) -> tuple[Sequence[float], Sequence[float]]:
    """Return the mean and standard deviation of the normalisation in front of a network.

    Args:
        architecture: the network behind the normalisation.
        mean: of each channel of the training images, in [0, 1].
        std: standard deviation of each channel, > 0.
    """
    return ((0.0,) * len(mean), (1.0,) * len(std)) if architecture.normalises else (mean, std)


def _draw_(module: nn.Module, rng: Generator) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=rng)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=rng)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d) and module.affine:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def _check_fit(
    architecture: Architecture, shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]
) -> None:
    channels, height, width = shape
    if min(height, width) < architecture.smallest:
        least = f"{architecture.smallest} x {architecture.smallest}"
        raise InputError(f"{architecture.name} needs images of at least {least} pixels, got {height} x {width}")
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        given = f"{list(mean)} and {list(std)}"
        raise InputError(f"mean and std need a value for each of {channels} channels, std above 0, got {given}")


architectures: Registry[Architecture] = Registry("model", Architecture)
