"""Images in class folders, decoded on access."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.core.types import Images, Labels
from sparsemble.data.dataset import Split

SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".webp", ".bmp"})
THREADS = 8


@final
@dataclass(frozen=True, kw_only=True)
class CentreCrop:
    """Reads the centre square of an image file."""

    resize: int
    """Length of the short side after resizing, in pixels (bilinear, antialiased)."""
    size: int
    """Side of the square that is cut from the centre, in pixels, at most `resize`."""
    grey: bool = False
    """One channel instead of three."""

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise InputError(f"size = {self.size} must lie in 1..{self.resize}, the length of the short side")

    def read(self, path: Path) -> np.ndarray:
        """Decode a file to (C, size, size), uint8.

        Raises:
            InputError: the file is not an image.
        """
        try:
            with Image.open(path) as image:
                decoded = image.convert("L" if self.grey else "RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{path} cannot be read as an image ({error}); repair or remove it") from error
        short = min(decoded.size)
        width, height = (self.resize * side // short for side in decoded.size)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        resized = decoded.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(resized.crop((left, top, left + self.size, top + self.size)))
        return np.ascontiguousarray(pixels.reshape(self.size, self.size, -1).transpose(2, 0, 1))


@final
class FileSplit(Split):
    """A split whose images stay on disk; threads decode each batch, and two batches are prefetched."""

    prefetch: ClassVar[int] = 2

    def __init__(self, folder: Path, names: Sequence[str], labels: Labels, reader: CentreCrop) -> None:
        self.folder = folder
        self.names = names
        self.labels = labels
        self.reader = reader

    def pixels(self, indices: Tensor) -> Tensor:
        """Return the images at these indices as uint8 (B, C, H, W) on the CPU."""
        paths = [self.folder / self.names[index] for index in indices.tolist()]
        with ThreadPoolExecutor(THREADS) as pool:
            return torch.from_numpy(np.stack(list(pool.map(self.reader.read, paths))))

    def images(self, indices: Tensor) -> Images:
        """Return the images at these indices as float32 in [0, 1], on the device of `labels`."""
        return self.pixels(indices).to(self.labels.device).float() / 255

    def subset(self, indices: Tensor) -> "FileSplit":
        """Return a split of these images only."""
        names = [self.names[index] for index in indices.tolist()]
        return FileSplit(self.folder, names, self.labels[indices], self.reader)

    def to(self, device: torch.device | str) -> "FileSplit":
        """Return a split that reads its images to a device."""
        return FileSplit(self.folder, self.names, self.labels.to(device), self.reader)


def class_names(train: Path, test: Path) -> tuple[str, ...]:
    """Return the names of the class folders, sorted, which must be the same in both folders.

    Raises:
        InputError: a folder is missing or has no class folders, or a class is in one of them only.
    """
    names = []
    for folder in (train, test):
        if not folder.is_dir():
            raise InputError(f"{folder} is missing; it must hold one folder of images for each class")
        names.append({path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")})
    if not names[0]:
        raise InputError(f"{train} has no class folders; it must hold one folder of images for each class")
    if unmatched := names[0] ^ names[1]:
        name = min(unmatched)
        present, missing = (train, test) if name in names[0] else (test, train)
        raise InputError(
            f"{present} has the class folder {name} and {missing} has not; both must have the same classes"
        )
    return tuple(sorted(names[0]))


def file_split(folder: Path, classes: Sequence[str], reader: CentreCrop) -> FileSplit:
    """Return the images of `folder/CLASS`, sorted by name within each class.

    Args:
        folder: holds one folder a class.
        classes: names of the folders, in the order of the labels.
        reader: reads one file as an image.

    Raises:
        InputError: a class folder has no images.
    """
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(path.name for path in (folder / name).iterdir() if _is_image(path))
        if not files:
            raise InputError(f"{folder / name} has no images ({', '.join(sorted(SUFFIXES))}); add some or remove it")
        names += [f"{name}/{file}" for file in files]
        labels += [label] * len(files)
    return FileSplit(folder, names, torch.tensor(labels), reader)


def folder_hash(root: Path, folders: Sequence[str]) -> str:
    """Return the sha256 of the sorted relative names and sizes of all images; their content is not read."""
    images = (path for folder in folders for path in (root / folder).glob("[!.]*/*") if _is_image(path))
    lines = sorted(f"{path.relative_to(root).as_posix()}\t{path.stat().st_size}" for path in images)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
