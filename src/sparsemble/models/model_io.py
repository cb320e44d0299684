"""Models on disk: weights as safetensors, and beside them the specification that the network is built from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, nn

from sparsemble.core.artifacts import read_json, write_json
from sparsemble.core.config import from_dict
from sparsemble.core.errors import InputError
from sparsemble.core.module_state import copy_network
from sparsemble.core.registry import to_dict
from sparsemble.core.types import seeded
from sparsemble.models.architecture import Architecture, Normalised, build_as_given, build_model
from sparsemble.models.plain_network import make_plain_, separate_
from sparsemble.models.weights_file import load_named_, read_weights, split_normalisation
from sparsemble.runtime.images import Preprocessing

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

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How they were made of files, if they were."""


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
    preprocessing: Preprocessing | None = None
    """How the training images were made of files; none: they were arrays."""

    @classmethod
    def of(cls, architecture: Architecture, images: ImageFacts) -> "ModelSpec":
        """Return the specification of an architecture for these images."""
        facts = {name: getattr(images, name) for name in ("shape", "classes", "mean", "std", "preprocessing")}
        return cls(architecture=architecture, **facts)

    def build(self, *, rng: Generator | None = None) -> Normalised:
        """Return a network with fresh weights, on the CPU, in training mode; without `rng` they are of a fixed seed."""
        return build_model(self.architecture, self.shape, len(self.classes), self.mean, self.std, rng=rng or seeded(0))

    def build_trained(
        self, weights: Path | None, *, mean: Sequence[float] = (), std: Sequence[float] = ()
    ) -> Normalised:
        """Return a trained network, on the CPU, in plain layers.

        Args:
            weights: a file, as `load_weights_` reads it, of the network as it was trained, with the tensors that its
                weights are computed from, or in plain layers; None: those that its architecture gives it.
            mean: as in `load_weights_`.
            std: as in `load_weights_`.
        """
        with torch.random.fork_rng(devices=[]):
            network = build_as_given(self.architecture, self.shape, len(self.classes), self.mean, self.std)
        shared = separate_(network)  # before loading, as each tensor of the file belongs to one layer
        note = ""
        if weights is not None:
            if not _holds_computed(network, read_weights(weights).keys(), self.shape):
                make_plain_(network, self.shape)
            note = load_weights_(network, weights, mean=mean, std=std)
        changes = make_plain_(network, self.shape)
        network.changes = replace(changes, shared=shared, loaded=(note,) if note else ())
        return network


def save_model(model: nn.Module, folder: Path, spec: ModelSpec, name: str = "model") -> None:
    """Write `NAME.safetensors` and `architecture.json`.

    Args:
        model: the network; its state is written as it is.
        folder: an existing folder.
        spec: what is needed to build the network again.
        name: of the file, without its ending.
    """
    # Copies, because a module that a network holds under two names has its tensors in the state twice.
    layout = torch.contiguous_format
    tensors = {key: value.detach().cpu().clone(memory_format=layout) for key, value in model.state_dict().items()}
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


def _holds_computed(network: Normalised, names: Iterable[str], shape: tuple[int, int, int]) -> bool:
    """Return whether a file holds tensors that weights are computed from (`weight_orig`, `weight_g`), by name."""
    plain = copy_network(network)
    make_plain_(plain, shape)
    computed = {name.rpartition(".")[2] for name in set(network.state_dict()) - set(plain.state_dict())}
    return any(name.rpartition(".")[2] in computed for name in names)


def load_weights_(network: nn.Module, path: Path, *, mean: Sequence[float] = (), std: Sequence[float] = ()) -> str:
    """Load weights of the whole classifier, or of the network behind its normalisation, into a network.

    Args:
        network: a classifier that `ModelSpec.build` made, whose normalisation is replaced where the file or the caller
            gives one, or any other network.
        path: a safetensors file, or one of `torch.save` with tensors only.
        mean: of each channel, in [0, 1]; empty: that of the file. Where the file has none either, weights under the
            names of other projects get no normalisation, and those under ours that of the data.
        std: of each channel, > 0; empty: as for the mean.

    Returns:
        A sentence on names and normalisation that were changed; empty if none were.

    Raises:
        InputError: no such file, one that needs code, one of another architecture, or statistics that do not fit.
    """
    tensors = read_weights(path)
    body = getattr(network, "body", network)
    own_mean: Sequence[float] = ()
    own_std: Sequence[float] = ()
    if tensors.keys() == network.state_dict().keys():
        translated = load_named_(network, tensors, path)
    else:
        if tensors.keys() != body.state_dict().keys():
            tensors, own_mean, own_std = split_normalisation(tensors)
        translated = load_named_(body, tensors, path)
    mean, std = mean or own_mean, std or own_std
    if not (mean or std or translated):
        return ""
    if not isinstance(network, Normalised):
        raise InputError("mean and std are for networks that do not normalise their images themselves")
    channels = network.mean.numel()
    mean, std = mean or (0.0,) * channels, std or (1.0,) * channels
    if {len(mean), len(std)} != {channels} or min(std) <= 0:
        raise InputError(
            f"mean = {list(mean)} and std = {list(std)} need a value for each of {channels} channels, std above 0"
        )
    for buffer, values in ((network.mean, mean), (network.std, std)):
        buffer.copy_(torch.tensor(values).view(1, -1, 1, 1))
    names = "tensors are named as in another project; " if translated else ""
    return f"{names}images are normalised by mean {_short(mean)} and deviation {_short(std)}"


def _short(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
