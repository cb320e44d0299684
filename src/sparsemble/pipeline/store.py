"""Models on disk: weights as safetensors, and beside them what is needed to build the network again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sparsemble.core.artifacts import Artifact, read_json, write_json
from sparsemble.core.registry import describe
from sparsemble.core.types import seeded
from sparsemble.data.dataset import Dataset
from sparsemble.models.architecture import Architecture, architectures, build_model


def save_model(model: nn.Module, folder: Path, architecture: Architecture, data: Dataset, name: str = "model") -> None:
    """Write `NAME.safetensors` and `architecture.json`."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / f"{name}.safetensors")
    facts = {"architecture": describe(architecture), "shape": list(data.shape), "classes": list(data.classes)}
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


def with_width(architecture: Any, width: int) -> Architecture:
    """Return the architecture at another width."""
    narrow: Architecture = replace(architecture, width=width)
    return narrow
