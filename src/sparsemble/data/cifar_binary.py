"""The binary format of CIFAR: records of one or two label bytes and 3 x 32 x 32 pixel bytes.

Source: the dataset's page, https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from sparsemble.core.errors import InputError
from sparsemble.data.assemble import assemble, tensor_split
from sparsemble.data.augmentation import Augmentation
from sparsemble.data.dataset import Dataset, DataSource, Sizes, TensorSplit
from sparsemble.data.download import Remote, fetch, hash_files, unpack

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


@final
@dataclass(frozen=True, kw_only=True)
class Release:
    """A published archive of CIFAR files."""

    archive: str
    """Name of the archive."""
    remote: Remote
    train: Mapping[str, int]
    """Path in the archive and number of images of each training file."""
    test: Mapping[str, int]
    """Path in the archive and number of images of each test file."""
    label_bytes: int
    """Label bytes of a record; the last is the class."""
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CIFAR(DataSource):
    """Settings that both datasets share, and how they are read."""

    root: str
    """Folder of the archive or of its unpacked folder."""
    download: bool = True
    """Download the archive (170 MB) if it is absent."""
    held_out: int = 5000
    """Training images to hold out, each class in proportion."""
    crop: int = 4
    """Largest random shift in training, in pixels."""
    cutout: int = 0
    """Side in pixels of a random square that is set to zero in training; 0: none."""
    flip: bool = True
    """Flip half of the images horizontally in training."""

    @abstractmethod
    def _release(self) -> Release:
        """Return the published archive."""

    @final
    def known_sizes(self) -> Sizes:
        """Return the sizes of the published archive."""
        release = self._release()
        train, test = (sum(part.values()) for part in (release.train, release.test))
        return Sizes(train=train, test=test, classes=len(release.classes), shape=SHAPE, held_out=self.held_out)

    @final
    def load(self) -> Dataset:
        """Read the unpacked files, downloading the archive first if they are absent."""
        release, folder = self._release(), self._find()
        train, test = (_read(folder, names, release) for names in (release.train, release.test))
        augmentation = Augmentation(cutout=self.cutout, crop=self.crop, flip=self.flip)
        return assemble(train, test, release.classes, held_out=self.held_out, augmentation=augmentation)

    @final
    def fingerprint(self) -> str:
        """Return one sha256 over the unpacked files."""
        release, folder = self._release(), self._find()
        return hash_files([folder / name for name in (*release.train, *release.test)])

    def _find(self) -> Path:
        """Return the folder of the unpacked files; archive and files are verified."""
        release, folder = self._release(), Path(self.root).expanduser()
        files = {**release.train, **release.test}
        if not all((folder / name).is_file() for name in files):
            archive = folder / release.archive
            fetch(release.remote, archive, download=self.download)
            unpack(archive, list(files), folder)
        for name, images in files.items():
            expected, size = images * (release.label_bytes + PIXELS), (folder / name).stat().st_size
            if size != expected:
                raise InputError(
                    f"{folder / name} has {size:,} bytes, expected {expected:,} ({images:,} images); "
                    f"delete it and run again to unpack it from {release.archive}"
                )
        return folder


def _read(folder: Path, names: Mapping[str, int], release: Release) -> TensorSplit:
    paths = [folder / name for name in names]
    files = [parse(path.read_bytes(), release.label_bytes, len(release.classes), str(path)) for path in paths]
    return tensor_split(*map(np.concatenate, zip(*files, strict=True)))


def parse(content: bytes, label_bytes: int, classes: int, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (N, 3, 32, 32) and the labels (N), both uint8, of a file's content.

    Args:
        content: of the file.
        label_bytes: label bytes of a record; the last is the class.
        classes: number of classes.
        source: name of the file, for messages.

    Raises:
        InputError: the last record is truncated, or a label is out of range.
    """
    record = label_bytes + PIXELS
    if not content or len(content) % record:
        raise InputError(f"{source} has {len(content):,} bytes, expected a multiple of {record:,}; it is truncated")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    labels = records[:, label_bytes - 1]
    if labels.max() >= classes:
        raise InputError(f"{source} has label {labels.max()}, expected 0..{classes - 1}; it is not this dataset")
    return records[:, label_bytes:].reshape(-1, *SHAPE), labels
