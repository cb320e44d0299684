"""The state of a training on disk, from which a killed one resumes."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sparsemble.core.artifacts import write_bytes
from sparsemble.core.errors import InputError
from sparsemble.training import distributed

Metadata = dict[str, Any]
"""The part of a state that is not tensors: history, rollbacks, settings."""


@final
class Checkpoint:
    """The state after an epoch in `NAME.safetensors`, and the last good one in `NAME-good.safetensors`.

    Metadata is in the header of the same file, so that tensors and metadata never disagree. Without a folder both
    states are kept in memory: enough for a rollback, not for a resume.
    """

    def __init__(self, folder: Path | None = None, name: str = "checkpoint") -> None:
        self.path = folder / f"{name}.safetensors" if folder else None
        self.good = folder / f"{name}-good.safetensors" if folder else None
        self.in_memory = self.good_in_memory = b""

    def save(self, tensors: Mapping[str, Tensor], metadata: Metadata) -> None:
        """Write a state; of several processes only the first one writes."""
        if distributed.rank():
            return
        copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        content = save(copies, {"metadata": json.dumps(metadata)})
        if self.path:
            write_bytes(self.path, content)
        else:
            self.in_memory = content

    def mark_good(self) -> None:
        """Mark the state written last as good."""
        if distributed.rank():
            return
        if not (self.path and self.good):
            self.good_in_memory = self.in_memory
            return
        beside = self.good.with_suffix(".new")
        beside.unlink(missing_ok=True)
        try:
            os.link(self.path, beside)  # no copy: the next save replaces the file, not its content
        except OSError:
            shutil.copyfile(self.path, beside)
        beside.replace(self.good)
        beside.unlink(missing_ok=True)  # a rename between two links of one file does nothing

    def read(self) -> tuple[dict[str, Tensor], Metadata] | None:
        """Return the state written last, if there is one; every process gets that of the first."""
        return _loaded(distributed.broadcast_bytes(_content(self.path) if self.path else self.in_memory))

    def read_good(self) -> tuple[dict[str, Tensor], Metadata] | None:
        """Return the last good state, as `read` does."""
        return _loaded(distributed.broadcast_bytes(_content(self.good) if self.good else self.good_in_memory))

    def check_settings(self, current: Metadata, stored: Metadata) -> None:
        """Refuse to resume from the state of another training, naming a setting that differs."""
        ours, theirs = dict(_flat(current)), dict(_flat(stored))
        for key in sorted(ours.keys() | theirs.keys(), key=lambda key: (key not in ours or key not in theirs, key)):
            own, other = ours.get(key, "unset"), theirs.get(key, "unset")
            if own != other:
                raise InputError(
                    f"the checkpoint {self.path} is of a training with {key} = {other}, this one has {own}; remove it "
                    "to train anew"
                )

    def remove(self) -> None:
        """Delete the files once their training is over."""
        for path in (self.path, self.good):
            if path:
                path.unlink(missing_ok=True)


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state of each parameter, as `INDEX.NAME`."""
    return {
        f"{i}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for i, parameter in enumerate(optimiser.param_groups[0]["params"])
        for name, value in optimiser.state[parameter].items()
        if value is not None
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Restore what `optimiser_state` returned."""
    optimiser.state.clear()
    parameters = optimiser.param_groups[0]["params"]
    for key, value in state.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        like = torch.empty_like(parameter) if value.shape == parameter.shape else torch.empty_like(value)
        optimiser.state[parameter][name] = like.copy_(value)


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _loaded(content: bytes) -> tuple[dict[str, Tensor], Metadata] | None:
    """Return the state in a file's content; None if it is truncated or of another format."""
    try:
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        metadata: Metadata = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["metadata"])
    except (SafetensorError, KeyError):
        return None
    return tensors, metadata


def _flat(table: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a nested table by their dotted paths, in a fixed order."""
    if isinstance(table, dict):
        for key in sorted(table):
            yield from _flat(table[key], f"{path}.{key}" if path else key)
    else:
        yield path, table
