"""The binary format of CIFAR: records of one or two label bytes and 3 x 32 x 32 pixel bytes.

Source: the dataset's page, https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from sparsemble.core.errors import InputError
from sparsemble.data.assemble import assemble, tensor_split
from sparsemble.data.dataset import Augmentation, Dataset
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


def load(release: Release, root: str, *, download: bool, held_out: int, augmentation: Augmentation) -> Dataset:
    """Return the dataset of a release.

    Args:
        release: the published archive.
        root: folder of the archive or of its unpacked files.
        download: whether the archive may be downloaded.
        held_out: training images to hold out, each class in proportion.
        augmentation: of training images.

    Raises:
        InputError: the archive cannot be downloaded or is damaged, or a file is truncated.
    """
    folder = find(release, root, download=download)
    train, test = (
        tensor_split(*map(np.concatenate, zip(*(_read(folder / name, release) for name in names), strict=True)))
        for names in (release.train, release.test)
    )
    return assemble(train, test, release.classes, held_out=held_out, augmentation=augmentation)


def fingerprint(release: Release, root: str, *, download: bool) -> str:
    """Return one sha256 over the unpacked files, downloading and unpacking them first if they are absent.

    Args:
        release: the published archive.
        root: folder of the archive or of its unpacked files.
        download: whether the archive may be downloaded.
    """
    folder = find(release, root, download=download)
    return hash_files([folder / name for name in (*release.train, *release.test)])


def find(release: Release, root: str, *, download: bool) -> Path:
    """Return the folder of the unpacked files, downloading and unpacking the archive if they are absent.

    The checksum of the archive and the length of each unpacked file are verified.

    Args:
        release: the published archive.
        root: folder of the archive or of its unpacked files.
        download: whether the archive may be downloaded.

    Raises:
        InputError: the archive cannot be downloaded or is damaged, or an unpacked file is truncated.
    """
    folder = Path(root).expanduser()
    files = {**release.train, **release.test}
    if not all((folder / name).is_file() for name in files):
        archive = folder / release.archive
        fetch(release.remote, archive, download=download)
        unpack(archive, list(files), folder)
    for name, images in files.items():
        expected, size = images * (release.label_bytes + PIXELS), (folder / name).stat().st_size
        if size != expected:
            raise InputError(
                f"{folder / name} has {size:,} bytes, expected {expected:,} ({images:,} images); "
                f"delete it and run again to unpack it from {release.archive}"
            )
    return folder


def _read(path: Path, release: Release) -> tuple[np.ndarray, np.ndarray]:
    return parse(path.read_bytes(), release.label_bytes, len(release.classes), str(path))


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
