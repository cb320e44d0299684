"""Models on disk: weights as safetensors, and beside them the specification that the network is built from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Generator, nn

from sparsemble.core.artifacts import read_json, write_json
from sparsemble.core.config import from_dict
from sparsemble.core.errors import InputError
from sparsemble.core.registry import to_dict
from sparsemble.core.types import seeded
from sparsemble.models.architecture import Architecture, build_model

SPEC = "architecture.json"
"""File of a model's specification, beside its weights."""


@runtime_checkable
class ImageFacts(Protocol):
    """What a network must know about its images; a `Dataset` has it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in label order."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel."""

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel."""


@final
@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """An architecture and the images it is built for."""

    architecture: Architecture
    shape: tuple[int, int, int]
    """Channels, height and width of an image."""
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    """Of each channel, over the training images."""
    std: tuple[float, ...]

    @classmethod
    def of(cls, architecture: Architecture, images: ImageFacts) -> "ModelSpec":
        """Return the specification of an architecture for these images."""
        facts = {name: getattr(images, name) for name in ("shape", "classes", "mean", "std")}
        return cls(architecture=architecture, **facts)

    def build(self, *, rng: Generator | None = None) -> nn.Module:
        """Return a network with fresh weights, on the CPU, in training mode; without `rng` they are of a fixed seed."""
        return build_model(self.architecture, self.shape, len(self.classes), self.mean, self.std, rng=rng or seeded(0))


def save_model(model: nn.Module, folder: Path, spec: ModelSpec, name: str = "model") -> None:
    """Write `NAME.safetensors` and `architecture.json`.

    Args:
        model: the network; its state is written as it is.
        folder: an existing folder.
        spec: what is needed to build the network again.
        name: of the file, without its ending.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / f"{name}.safetensors")
    write_json(folder / SPEC, to_dict(spec))


def load_spec(folder: Path) -> ModelSpec:
    """Read the specification that `save_model` wrote."""
    return from_dict(ModelSpec, read_json(folder / SPEC), SPEC)


def load_model(folder: Path, device: torch.device, name: str = "model") -> nn.Module:
    """Read what `save_model` wrote; the model is in eval mode.

    Args:
        folder: where `save_model` wrote.
        device: where the model goes.
        name: of the file, without its ending.
    """
    model = load_spec(folder).build()
    model.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return model.to(device).eval()


def load_weights_(network: nn.Module, path: Path) -> None:
    """Load a safetensors state dict of the whole classifier, or of the network behind its normalisation."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is no safetensors file: {error}") from error
    body = getattr(network, "body", network)
    target = network if tensors.keys() == network.state_dict().keys() else body
    expected = target.state_dict()
    unmatched = sorted(tensors.keys() ^ expected.keys())
    if unmatched:
        fault = "does not know" if unmatched[0] in tensors else "needs, but the file lacks,"
        raise InputError(f"{path} belongs to another architecture: the model {fault} tensor {unmatched[0]}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{path}: tensor {name} is {tuple(tensor.shape)}, the model needs {tuple(expected[name].shape)}; "
                "do architecture, width and number of classes fit?"
            )
    target.load_state_dict(tensors)
