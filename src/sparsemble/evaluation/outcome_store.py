"""What an evaluation found, image by image, kept shard by shard: a killed one goes on where it was."""

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
    """What one attack did to some images; everything on the CPU."""

    answer: Counts
    """Class that the deployed decision gives the adversarial image, in float32."""
    right: Flags
    """Whether that is the true class; where the clean image is answered wrongly there is nothing to attack."""
    members_run: Counts
    """Members that the deployed decision ran; 1 for a single model."""
    distance: PerImage
    """Of the adversarial image from the clean one, in the threat's norm."""
    minimum: PerImage
    """Minimum-norm attacks: distance of the nearest adversarial image found, infinite where there is none; NaN for
    other attacks."""
    part: Counts
    """AutoAttack: place of the part that broke the image; -1 where none did, and for other attacks."""
    passes: Float[Tensor, "B 2"]
    """How often each image was sent forward and backward through models; whole numbers where the attack says whose
    points it asks about (`core.passes.for_images`), else equal shares."""
    seconds: Float[Tensor, " shards"]
    """Time that the attack took, one entry a shard."""

    def total_passes(self) -> tuple[int, int]:
        """Return the passes of all images, forward and backward."""
        forward, backward = self.passes.sum(0).round().long().tolist()
        return forward, backward

    @staticmethod
    def join(parts: Sequence["Outcome"]) -> "Outcome":
        """Put consecutive shards together."""
        return Outcome(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Outcome)))


@final
class OutcomeStore:
    """Outcomes and adversarial images, one file for each attack and shard, whole or absent.

    Args:
        folder: where the shards lie, `LABEL/00000.safetensors`; None keeps them in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.kept: dict[tuple[str, int], tuple[str, Outcome, Images]] = {}

    def read(self, label: str, shard: int, key: str) -> Outcome | None:
        """Return a finished shard; None where it is missing, damaged, or answers another question than `key`."""
        if self.folder is None:
            found = self.kept.get((label, shard))
            return found[1] if found and found[0] == key else None
        try:
            with safe_open(self._path(label, shard), "pt") as stored:
                if (stored.metadata() or {}).get(KEY) != key:
                    return None
                tensors = {field.name: stored.get_tensor(field.name) for field in fields(Outcome)}
        except (OSError, SafetensorError):
            return None
        tensors["right"] = tensors["right"].bool()
        return Outcome(**tensors)

    def images(self, label: str, shard: int) -> Images:
        """Return the adversarial images of a finished shard."""
        if self.folder is None:
            return self.kept[label, shard][2]
        with safe_open(self._path(label, shard), "pt") as stored:
            found: Tensor = stored.get_tensor("images")
            return found

    def write(self, label: str, shard: int, key: str, outcome: Outcome, images: Images) -> None:
        """Keep a finished shard."""
        if self.folder is None:
            self.kept[label, shard] = key, outcome, images
            return
        path = self._path(label, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {field.name: getattr(outcome, field.name) for field in fields(Outcome)}
        tensors |= {"right": outcome.right.to(torch.uint8), "images": images.contiguous()}
        write_bytes(path, save(tensors, metadata={KEY: key}))

    def _path(self, label: str, shard: int) -> Path:
        assert self.folder is not None
        return self.folder / re.sub(r"[^\w.-]", "_", label) / f"{shard:05d}.safetensors"
