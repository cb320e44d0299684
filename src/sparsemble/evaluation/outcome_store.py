"""Per-image outcomes and adversarial images of an evaluation, kept shard by shard, so that a killed one is resumed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sparsemble.core.artifacts import write_bytes
from sparsemble.core.types import Counts, Flags, Images, PerImage

KEY = "key"


@final
@dataclass(frozen=True)
class Outcome:
    """The outcome of one attack on some images; all tensors are on the CPU."""

    prediction: Counts
    """Class that the deployed decision gives the adversarial image, in float32."""
    correct: Flags
    """Whether that is the true class; false where the clean image is misclassified, since nothing is attacked there."""
    members_run: Counts
    """Members that the deployed decision ran; 1 for a single model."""
    distance: PerImage
    """Of the adversarial image from the clean one, in the threat's norm."""
    minimum: PerImage
    """Minimum-norm attacks: distance of the nearest adversarial image found, infinite where there is none; NaN for
    other attacks."""
    part: Counts
    """AutoAttack: index of the part that broke the image; -1 where none did, and for other attacks."""
    passes: Float[Tensor, "B 2"]
    """Forward and backward passes of each image; whole numbers where the attack reports which images it evaluates
    (`core.pass_counter.for_images`), else equal fractions of the batch's passes."""
    seconds: Float[Tensor, " shards"]
    """Time that the attack took, one entry a shard."""

    def total_passes(self) -> tuple[int, int]:
        """Return the passes of all images, forward and backward."""
        forward, backward = self.passes.sum(0).round().long().tolist()
        return forward, backward

    @staticmethod
    def join(parts: Sequence["Outcome"]) -> "Outcome":
        """Concatenate consecutive shards."""
        return Outcome(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Outcome)))


@final
class OutcomeStore:
    """Outcomes and adversarial images, one file for each attack and shard, whole or absent.

    Args:
        folder: where shards are written, as `LABEL/00000.safetensors`; None keeps them in memory.
        finished: stores of other evaluations that are read, but not written to.
    """

    def __init__(self, folder: Path | None = None, finished: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.finished = tuple(finished)
        self.memory: dict[tuple[str, int, str], tuple[Outcome, Images]] = {}

    def part(self, name: str) -> "OutcomeStore":
        """Return the store of a part of the evaluation, such as its security curve, in a sub-folder."""
        return OutcomeStore(self.folder and self.folder / name, [folder / name for folder in self.finished])

    def has(self, label: str, shard: int, key: str) -> bool:
        """Return whether a shard is finished.

        Args:
            label: of the attack.
            shard: its number, from 0.
            key: hash of what decides the outcome.
        """
        return (label, shard, key) in self.memory or self._file(label, shard, key) is not None

    def read(self, label: str, shard: int, key: str) -> tuple[Outcome, Images] | None:
        """Return the outcome and adversarial images of a shard; None if it is missing, damaged or has another key.

        Args:
            label: of the attack.
            shard: index of the shard.
            key: hash of everything that decides the outcome.
        """
        if (label, shard, key) in self.memory:
            return self.memory[label, shard, key]
        path = self._file(label, shard, key)
        if path is None:
            return None
        try:
            with safe_open(path, "pt") as stored:
                tensors = {field.name: stored.get_tensor(field.name) for field in fields(Outcome)}
                images = stored.get_tensor("images")
        except (OSError, SafetensorError):
            return None
        tensors["correct"] = tensors["correct"].bool()
        return Outcome(**tensors), images

    def write(self, label: str, shard: int, key: str, outcome: Outcome, images: Images) -> None:
        """Keep a finished shard.

        Args:
            label: of the attack.
            shard: its number, from 0.
            key: hash of what decides the outcome.
            outcome: of every image of the shard.
            images: (B, C, H, W) the adversarial images.
        """
        if self.folder is None:
            self.memory[label, shard, key] = outcome, images
            return
        path = _path(self.folder, label, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {field.name: getattr(outcome, field.name) for field in fields(Outcome)}
        tensors |= {"correct": outcome.correct.to(torch.uint8), "images": images.contiguous()}
        write_bytes(path, save(tensors, metadata={KEY: key}))

    def _file(self, label: str, shard: int, key: str) -> Path | None:
        """Return the file of a shard that has this key."""
        for folder in (*([self.folder] if self.folder else []), *self.finished):
            path = _path(folder, label, shard)
            try:
                with safe_open(path, "pt") as stored:
                    if (stored.metadata() or {}).get(KEY) == key:
                        return path
            except (OSError, SafetensorError):
                continue
        return None


def _path(folder: Path, label: str, shard: int) -> Path:
    return folder / re.sub(r"[^\w.-]", "_", label) / f"{shard:05d}.safetensors"
