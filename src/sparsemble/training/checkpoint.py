"""What a killed training needs to go on: one file, written beside and renamed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Generator, Tensor, nn

from sparsemble.core.artifacts import write_bytes
from sparsemble.training.callbacks import Callback


@final
class Checkpoint:
    """Model, momentum, random state and history after an epoch, in `checkpoint.safetensors`.

    The history stands in the file's metadata: one file is whole or absent, two could disagree.
    """

    def __init__(self, folder: Path, name: str = "checkpoint") -> None:
        self.path = folder / f"{name}.safetensors"

    def save(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        rng: Generator,
        callbacks: Sequence[Callback],
        history: list[dict[str, Any]],
    ) -> None:
        """Write the state after `len(history)` epochs."""
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        parameters = optimiser.param_groups[0]["params"]
        for i, parameter in enumerate(parameters):
            buffer = optimiser.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{i}"] = buffer
        for i, callback in enumerate(callbacks):
            tensors |= {f"callback.{i}.{name}": tensor for name, tensor in callback.state().items()}
        tensors["rng"] = rng.get_state()
        content = save(
            {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, {"history": json.dumps(history)}
        )
        write_bytes(self.path, content)

    def restore(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, rng: Generator, callbacks: Sequence[Callback]
    ) -> list[dict[str, Any]]:
        """Load the state into these objects and return the history; empty where there is no checkpoint."""
        try:
            with safe_open(self.path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                history: list[dict[str, Any]] = json.loads((file.metadata() or {})["history"])
        except (FileNotFoundError, SafetensorError):
            return []
        model.load_state_dict(_part(tensors, "model."))
        for i, parameter in enumerate(optimiser.param_groups[0]["params"]):
            if f"momentum.{i}" in tensors:
                optimiser.state[parameter]["momentum_buffer"] = tensors[f"momentum.{i}"].to(parameter.device)
        for i, callback in enumerate(callbacks):
            callback.restore(_part(tensors, f"callback.{i}."))
        rng.set_state(tensors["rng"])
        return history

    def remove(self) -> None:
        """Delete the file once its training is over."""
        self.path.unlink(missing_ok=True)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
