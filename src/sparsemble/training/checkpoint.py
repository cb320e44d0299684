"""What a killed training needs to go on: one file, written beside and renamed."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from sparsemble.core.artifacts import write_bytes

Facts = dict[str, Any]
"""What of a state is no tensor: history, rollbacks, hash of the settings."""


@final
class Checkpoint:
    """The state after an epoch in `NAME.safetensors`, and the last good one beside it in `NAME-good.safetensors`.

    The facts stand in the file's metadata: one file is whole or absent, two could disagree. Without a folder both
    are held in memory: enough to go back, not to survive.
    """

    def __init__(self, folder: Path | None = None, name: str = "checkpoint") -> None:
        self.path = folder / f"{name}.safetensors" if folder else None
        self.good = folder / f"{name}-good.safetensors" if folder else None
        self.held = self.held_good = b""

    def save(self, tensors: Mapping[str, Tensor], facts: Facts) -> None:
        """Write a state."""
        apart = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        content = save(apart, {"facts": json.dumps(facts)})
        if self.path:
            write_bytes(self.path, content)
        else:
            self.held = content

    def keep_good(self) -> None:
        """Call the state written last a good one."""
        if not (self.path and self.good):
            self.held_good = self.held
            return
        beside = self.good.with_suffix(".new")
        beside.unlink(missing_ok=True)
        try:
            os.link(self.path, beside)  # no copy: the next save replaces the name, not the content
        except OSError:
            shutil.copyfile(self.path, beside)
        beside.replace(self.good)
        beside.unlink(missing_ok=True)  # renaming one name of a file to another name of it does nothing

    def read(self) -> tuple[dict[str, Tensor], Facts] | None:
        """Return the state written last, if there is one."""
        return _read(self.path) if self.path else _loaded(self.held)

    def read_good(self) -> tuple[dict[str, Tensor], Facts] | None:
        """Return the last good state, if there is one."""
        return _read(self.good) if self.good else _loaded(self.held_good)

    def remove(self) -> None:
        """Delete the files once their training is over."""
        for path in (self.path, self.good):
            if path:
                path.unlink(missing_ok=True)


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what an optimiser remembers of each parameter, as `INDEX.WORD`."""
    return {
        f"{i}.{word}": value if isinstance(value, Tensor) else torch.tensor(value)
        for i, parameter in enumerate(optimiser.param_groups[0]["params"])
        for word, value in optimiser.state[parameter].items()
        if value is not None
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Give an optimiser back what `optimiser_state` returned."""
    optimiser.state.clear()
    parameters = optimiser.param_groups[0]["params"]
    for name, value in state.items():
        index, word = name.split(".", 1)
        parameter = parameters[int(index)]
        like = torch.empty_like(parameter) if value.shape == parameter.shape else torch.empty_like(value)
        optimiser.state[parameter][word] = like.copy_(value)


def _read(path: Path) -> tuple[dict[str, Tensor], Facts] | None:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            facts: Facts = json.loads((file.metadata() or {})["facts"])
    except (FileNotFoundError, SafetensorError, KeyError):
        return None
    return tensors, facts


def _loaded(content: bytes) -> tuple[dict[str, Tensor], Facts] | None:
    if not content:
        return None
    length = int.from_bytes(content[:8], "little")
    facts: Facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["facts"])
    return load(content), facts
