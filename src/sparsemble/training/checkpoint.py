"""What a killed training needs to go on: one file, written beside and renamed."""

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
        """Write a state; of several processes the first one does."""
        if distributed.rank():
            return
        apart = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        content = save(apart, {"facts": json.dumps(facts)})
        if self.path:
            write_bytes(self.path, content)
        else:
            self.held = content

    def keep_good(self) -> None:
        """Call the state written last a good one."""
        if distributed.rank():
            return
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
        """Return the state written last, if there is one; of several processes all get the first one's."""
        return _loaded(distributed.broadcast_bytes(_content(self.path) if self.path else self.held))

    def read_good(self) -> tuple[dict[str, Tensor], Facts] | None:
        """Return the last good state in the same way."""
        return _loaded(distributed.broadcast_bytes(_content(self.good) if self.good else self.held_good))

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


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _loaded(content: bytes) -> tuple[dict[str, Tensor], Facts] | None:
    """Return the state in a file's content; None where it is cut off or of another kind."""
    try:
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        facts: Facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["facts"])
    except (SafetensorError, KeyError):
        return None
    return tensors, facts


def check_settings(ours: Facts, theirs: Facts, path: Path | None) -> None:
    """Refuse to go on from the checkpoint of another training.

    Raises:
        InputError: naming a setting in which they differ, one that both have if possible.
    """
    mine, its = dict(_flat(ours)), dict(_flat(theirs))
    for key in sorted(mine.keys() | its.keys(), key=lambda key: (key not in mine or key not in its, key)):
        if mine.get(key, "unset") != its.get(key, "unset"):
            raise InputError(
                f"the checkpoint {path} is of a training with {key} = {its.get(key, 'unset')}, this one has "
                f"{mine.get(key, 'unset')}; remove it to train anew"
            )


def _flat(table: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a nested table by their dotted paths, in a fixed order."""
    if isinstance(table, dict):
        for key in sorted(table):
            yield from _flat(table[key], f"{path}.{key}" if path else key)
    else:
        yield path, table
