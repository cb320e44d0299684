"""Models on disk: weights as safetensors, and beside them what is needed to build the network again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from sparsemble.core.artifacts import Artifact, read_json, write_json
from sparsemble.core.errors import InputError
from sparsemble.core.registry import to_dict
from sparsemble.core.types import seeded
from sparsemble.data.dataset import Dataset
from sparsemble.models.architecture import Architecture, architectures, build_model


def save_model(model: nn.Module, folder: Path, architecture: Architecture, data: Dataset, name: str = "model") -> None:
    """Write `NAME.safetensors` and `architecture.json`."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / f"{name}.safetensors")
    facts = {"architecture": to_dict(architecture), "shape": list(data.shape), "classes": list(data.classes)}
    write_json(folder / "architecture.json", facts | {"mean": list(data.mean), "std": list(data.std)})


def load_model(artifact: Artifact, device: torch.device, name: str = "model") -> nn.Module:
    """Read what `save_model` wrote; the model is in eval mode."""
    facts: dict[str, Any] = read_json(artifact.file("architecture.json"))
    model = build_model(
        architectures.build(facts["architecture"]),
        tuple(facts["shape"]),
        len(facts["classes"]),
        facts["mean"],
        facts["std"],
        rng=seeded(0),
    )
    model.load_state_dict(load_file(artifact.file(f"{name}.safetensors")))
    return model.to(device).eval()


def fill(network: nn.Module, path: Path) -> None:
    """Load a safetensors state dict of the whole classifier, or of the network behind its normalisation.

    Raises:
        InputError: no such file, or one of another architecture.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is no safetensors file: {error}") from error
    body = getattr(network, "body", network)
    whole = network if tensors.keys() == network.state_dict().keys() else body
    own = whole.state_dict()
    odd = sorted(tensors.keys() ^ own.keys())
    if odd:
        fault = "does not know" if odd[0] in tensors else "needs, but the file lacks,"
        raise InputError(f"{path} belongs to another architecture: the model {fault} tensor {odd[0]}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"{path}: tensor {name} is {tuple(tensor.shape)}, the model needs {tuple(own[name].shape)}; "
                "do architecture, width and number of classes fit?"
            )
    whole.load_state_dict(tensors)


def with_width(architecture: Any, width: int) -> Architecture:
    """Return the architecture at another width."""
    narrow: Architecture = replace(architecture, width=width)
    return narrow
