"""The IDX files of MNIST and of the data sets that took over its format, compressed or not.

Source: Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits (the page describes the format). The
content of a file is verified, not its compression, so that a copy which was packed again is the same data set.
"""

import gzip
import hashlib
import math
import zlib
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
from sparsemble.data.download import Remote, fetch

UNSIGNED_BYTES = 8
"""Type of the values, third byte of a file."""
IMAGES, LABELS = "{part}-images-idx3-ubyte.gz", "{part}-labels-idx1-ubyte.gz"
"""Names of the files; the parts are called train and t10k."""


@final
@dataclass(frozen=True, kw_only=True)
class Release:
    """The published files of a data set."""

    remotes: Mapping[str, Remote]
    """Each compressed file, by name."""
    contents: Mapping[str, str]
    """The sha256 of each file when unpacked, in hexadecimal, by the same names."""
    classes: tuple[str, ...]
    installed: Path | None = None
    """Folder in which an operating system's package puts the files."""


def release(
    url: str, files: Mapping[str, tuple[int, str, str]], classes: tuple[str, ...], installed: Path | None = None
) -> Release:
    """Return the record of a data set whose files lie in one place.

    Args:
        url: of the folder, with a slash at its end.
        files: length in bytes and sha256 of each compressed file, and sha256 of its content, by name.
        classes: in the order of the labels.
        installed: folder in which an operating system's package puts the files.
    """
    remotes = {name: Remote(urls=(url + name,), size=size, sha256=sha256) for name, (size, sha256, _) in files.items()}
    contents = {name: content for name, (_, _, content) in files.items()}
    return Release(remotes=remotes, contents=contents, classes=classes, installed=installed)


@dataclass(frozen=True, kw_only=True)
class IDX(DataSource):
    """Settings that these data sets share, and how they are read."""

    root: str
    """Folder of the four files, compressed (.gz) or not."""
    download: bool = True
    """Download the files if they are absent."""
    held_out: int = 5000
    """Training images to hold out, each class in proportion."""
    crop: int = 0
    """Largest random shift in training, in pixels."""
    cutout: int = 0
    """Side in pixels of a random square that is set to zero in training; 0: none."""

    @abstractmethod
    def _release(self) -> Release:
        """Return the published files."""

    def _augmentation(self) -> Augmentation:
        return Augmentation(cutout=self.cutout, crop=self.crop)

    @final
    def known_sizes(self) -> Sizes:
        """Return the sizes of the published files."""
        classes = len(self._release().classes)
        return Sizes(train=60_000, test=10_000, classes=classes, shape=(1, 28, 28), held_out=self.held_out)

    @final
    def load(self) -> Dataset:
        """Read the four files, downloading those that are absent."""
        published = self._release()
        train, test = (self._split(published, part) for part in ("train", "t10k"))
        return assemble(train, test, published.classes, held_out=self.held_out, augmentation=self._augmentation())

    @final
    def fingerprint(self) -> str:
        """Return one sha256 over the contents of the four files."""
        published = self._release()
        for name in published.contents:
            self._content(published, name)
        return hashlib.sha256("\n".join(published.contents.values()).encode()).hexdigest()

    def _split(self, published: Release, part: str) -> TensorSplit:
        names = [pattern.format(part=part) for pattern in (IMAGES, LABELS)]
        images, labels = (parse(self._content(published, name), name) for name in names)
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise InputError(f"{names[0]} has shape {images.shape} and {names[1]} {labels.shape}; they do not fit")
        return tensor_split(images[:, None], labels)

    def _content(self, published: Release, name: str) -> bytes:
        """Return the verified content of a file."""
        path = self._find(published, name)
        try:
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
        except (EOFError, zlib.error, OSError) as error:
            raise InputError(f"{path} cannot be read ({error}); delete it and run again") from error
        sha256, expected = hashlib.sha256(content).hexdigest(), published.contents[name]
        if sha256 != expected:
            raise InputError(f"{path} is another file: its content has sha256 {sha256}, expected {expected}; delete it")
        return content

    def _find(self, published: Release, name: str) -> Path:
        root = Path(self.root).expanduser()
        folders = [root, *([published.installed] if published.installed else [])]
        for path in (folder / file for folder in folders for file in (name, name.removesuffix(".gz"))):
            if path.is_file():
                return path
        fetch(published.remotes[name], root / name, download=self.download)
        return root / name


def parse(content: bytes, source: str) -> np.ndarray:
    """Return the array of uint8 in a file's content.

    Raises:
        InputError: another type, or another length than the header says.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTES:
        raise InputError(f"{source} is no IDX file of unsigned bytes: it starts with {content[:4].hex() or 'nothing'}")
    start = 4 + 4 * content[3]
    header = content[4:start].ljust(start - 4, b"\0")
    shape = tuple(np.frombuffer(header, dtype=">u4").tolist())
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise InputError(f"{source} has {len(content):,} bytes, expected {expected:,}; it is truncated")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()
