"""Generated images for tests: a bright spot in noise, whose position depends on the class."""

import hashlib
from dataclasses import dataclass
from typing import final

import numpy as np

from sparsemble.core.errors import InputError
from sparsemble.data.assemble import assemble, tensor_split
from sparsemble.data.augmentation import Augmentation
from sparsemble.data.dataset import Dataset, DataSource, data_sources

NOISE = 0.08


@final
@data_sources.register("synthetic")
@dataclass(frozen=True, kw_only=True)
class Synthetic(DataSource):
    """`images` to train with, half as many held out and half as many to test; nothing is read from disk."""

    classes: int = 4
    """Number of classes, at least 2."""
    images: int = 128
    """Training images, at least two for each class."""
    size: int = 8
    """Side of an image in pixels, at least 4."""
    channels: int = 1
    """Channels of an image."""
    seed: int = 0
    """Seed of the images."""

    def __post_init__(self) -> None:
        lowest = {"classes": 2, "images": 2 * self.classes, "size": 4, "channels": 1, "seed": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} = {getattr(self, name)} must be {least} or more")

    def load(self) -> Dataset:
        """Generate the images."""
        held_out, tested = self.images // 2, self.images // 2
        pixels, labels = self._make(self.images + held_out + tested)
        train, test = tensor_split(pixels[tested:], labels[tested:]), tensor_split(pixels[:tested], labels[:tested])
        names = tuple(map(str, range(self.classes)))
        return assemble(train, test, names, held_out=held_out, augmentation=Augmentation())

    def fingerprint(self) -> str:
        """Return the sha256 of the images."""
        return hashlib.sha256(b"".join(array.tobytes() for array in self._make(2 * self.images))).hexdigest()

    def _make(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        labels = np.arange(count) % self.classes
        angle = 2 * np.pi * labels / self.classes
        middle = (self.size - 1) / 2
        centre = middle + self.size / 4 * np.stack([np.sin(angle), np.cos(angle)]) + rng.normal(0, 0.3, (2, count))
        grid = np.arange(self.size)
        down, across = (np.exp(-((grid - position[:, None]) ** 2) / (self.size / 4) ** 2) for position in centre)
        spot = 0.2 + 0.6 * down[:, None, :, None] * across[:, None, None, :]
        noisy = spot + rng.normal(0, NOISE, (count, self.channels, self.size, self.size))
        return (noisy.clip(0, 1) * 255).round().astype(np.uint8), labels
