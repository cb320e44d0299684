"""The user's own images in class folders.

Up to 2 GiB of pixels are kept in memory: each file is decoded once instead of once an epoch, and an unreadable file is
found before any work. Larger folders are streamed; the images are the same.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, final

import torch

from sparsemble.data.assemble import assemble, channel_statistics
from sparsemble.data.augmentation import Augmentation
from sparsemble.data.dataset import Dataset, DataSource, TensorSplit, data_sources
from sparsemble.data.file_split import FileSplit, class_names, file_split, folder_hash, left_out, make_preprocessing

IN_MEMORY = 2 << 30
MEASURED = 2048


@final
@data_sources.register("image_folder")
@dataclass(frozen=True, kw_only=True)
class ImageFolder(DataSource):
    """Image files in the folders root/train/CLASS and root/test/CLASS, and in folders within."""

    version: ClassVar[int] = 2

    root: str
    """Folder of `train` and `test`, each with one folder for each class."""
    size: int = 32
    """Side of the images in pixels: the short side is resized to it, the centre square is kept."""
    grey: bool = False
    """One channel instead of three."""
    held_out: float = 0.1
    """Training images to hold out, each class in proportion; a share if below 1."""
    crop: int = 0
    """Largest random shift in training, in pixels."""
    cutout: int = 0
    """Side in pixels of a random square that is set to zero in training; 0: none."""
    flip: bool = False
    """Flip half of the images horizontally in training; only where the classes are invariant to it."""

    def load(self) -> Dataset:
        """Read the images into memory, or list them if they are too many.

        Mean and standard deviation of streamed images are those of 2,048 evenly spaced ones.
        """
        root = Path(self.root).expanduser()
        preprocessing = make_preprocessing(resize=self.size, size=self.size, grey=self.grey)
        classes = class_names(root / "train", root / "test")
        train, test = (file_split(root / part, classes, preprocessing) for part in ("train", "test"))
        augmentation = Augmentation(cutout=self.cutout, crop=self.crop, flip=self.flip)
        if (len(train) + len(test)) * self.size**2 * (1 if self.grey else 3) <= IN_MEMORY:
            data = assemble(_read(train), _read(test), classes, held_out=self.held_out, augmentation=augmentation)
        else:
            statistics = channel_statistics(train.subset(torch.linspace(0, len(train) - 1, MEASURED).long()))
            data = assemble(
                train, test, classes, held_out=self.held_out, augmentation=augmentation, statistics=statistics
            )
        return replace(data, preprocessing=preprocessing, notes=left_out(root, ("train", "test")))

    def fingerprint(self) -> str:
        """Return a sha256 of the names and sizes of all files; their content is not read."""
        root = Path(self.root).expanduser()
        class_names(root / "train", root / "test")
        return folder_hash(root, ("train", "test"))


def _read(split: FileSplit) -> TensorSplit:
    return TensorSplit(split.pixels(torch.arange(len(split))), split.labels)
