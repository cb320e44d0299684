"""Images in class folders, decoded on access."""

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.core.types import Images, Labels
from sparsemble.data.dataset import Split
from sparsemble.runtime.errors import RuntimeInputError, affects_terminal
from sparsemble.runtime.images import SUFFIXES, Preprocessing, describe_left_out, list_images

THREADS = 8
TRAIN = "train"
TEST_PARTS = ("test", "val", "valid")
"""Names of the test part; the first one that is there is used."""
ARCHIVE_EXTRAS = "__MACOSX"
"""A folder that macOS adds to archives."""


def make_preprocessing(*, resize: int, size: int, grey: bool = False) -> Preprocessing:
    """Return how the files of a data set become images.

    Args:
        resize: length of the short side after resizing, in pixels.
        size: side of the centre square, in pixels, at most `resize`.
        grey: one channel instead of three.

    Raises:
        InputError: sizes that do not fit each other.
    """
    try:
        return Preprocessing(mode="L" if grey else "RGB", resize=resize, size=size)
    except RuntimeInputError as error:
        raise InputError(str(error)) from None


@final
class FileSplit(Split):
    """A split whose images stay on disk; threads decode each batch, and two batches are prefetched."""

    prefetch: ClassVar[int] = 2

    def __init__(self, folder: Path, names: Sequence[str], labels: Labels, preprocessing: Preprocessing) -> None:
        self.folder = folder
        self.names = names
        self.labels = labels
        self.preprocessing = preprocessing

    def pixels(self, indices: Tensor) -> Tensor:
        """Return the images at these indices as uint8 (B, C, H, W) on the CPU."""
        paths = [self.folder / self.names[index] for index in indices.tolist()]
        with ThreadPoolExecutor(THREADS) as pool:
            return torch.from_numpy(np.stack(list(pool.map(self._read, paths))))

    def _read(self, path: Path) -> np.ndarray:
        """Decode a file to (C, size, size), uint8."""
        try:
            return np.ascontiguousarray(self.preprocessing.read(path).transpose(2, 0, 1))
        except RuntimeInputError as error:
            if not os.path.lexists(path):
                raise InputError(
                    f"{path} was there and is gone; once the folder is back, run the same command to go on"
                ) from None
            raise InputError(f"{error}; repair or remove it") from None

    def images(self, indices: Tensor) -> Images:
        """Return the images at these indices as float32 in [0, 1], on the device of `labels`."""
        return self.pixels(indices).to(self.labels.device).float() / 255

    def subset(self, indices: Tensor) -> "FileSplit":
        """Return a split of these images only."""
        names = [self.names[index] for index in indices.tolist()]
        return FileSplit(self.folder, names, self.labels[indices], self.preprocessing)

    def to(self, device: torch.device | str) -> "FileSplit":
        """Return a split that reads its images to a device."""
        return FileSplit(self.folder, self.names, self.labels.to(device), self.preprocessing)


def find_parts(root: Path) -> tuple[str, ...]:
    """Return the folders of the training and the test part; `""` is the folder itself, and one part has no test part.

    A folder `train` is the training part if it holds folders itself, or has a test part beside it: a class may have
    this name, too.

    Raises:
        InputError: no folder, or a test part alone.
    """
    if not root.is_dir():
        advice = "unpack it and give the folder" if root.is_file() else "give a folder of class folders"
        raise InputError(f"{root} is {'a file' if root.is_file() else 'missing'}; {advice}")
    present = [part for part in TEST_PARTS if (root / part).is_dir()]
    if (root / TRAIN).is_dir() and (present or _class_folders(root / TRAIN)):
        return (TRAIN, *present[:1])
    if present and set(_class_folders(root)) <= set(TEST_PARTS):
        raise InputError(f"{root} has {present[0]} and no {TRAIN}; it must hold both, or class folders only")
    return ("",)


def class_names(*parts: Path) -> tuple[str, ...]:
    """Return the names of the class folders, sorted, which must be the same in all parts.

    Raises:
        InputError: a folder is missing or has no class folders, or a class is in one of them only.
    """
    names = []
    for folder in parts:
        if not folder.is_dir():
            raise InputError(f"{folder} is missing; it must hold one folder of images for each class")
        names.append(set(_class_folders(folder)))
    if not names[0]:
        raise InputError(f"{parts[0]} has no class folders; it must hold one folder of images for each class")
    if unmatched := names[0] ^ names[-1]:
        name = min(unmatched)
        present, missing = parts if name in names[0] else parts[::-1]
        raise InputError(
            f"{present} has the class folder {name} and {missing} has not; both must have the same classes"
        )
    if len(names[0]) == 1:
        folder = parts[0] / min(names[0])
        inside = _class_folders(folder)
        advice = f"; give {folder} if its folders are the classes" if len(inside) > 1 else ""
        raise InputError(f"{parts[0]} has one class folder, {folder.name}, and needs two or more{advice}")
    return tuple(sorted(names[0]))


def _class_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of the classes by name; accents that two systems compose differently are the same."""
    folders: dict[str, Path] = {}
    for path in _inside(folder):
        name = unicodedata.normalize("NFC", path.name)
        if name.startswith(".") or name == ARCHIVE_EXTRAS or not path.is_dir():
            continue
        if any(affects_terminal(character) for character in name):
            raise InputError(
                f"the class folder {path.name!a} in {folder} has a control character in its name; rename it"
            )
        if name in folders:
            raise InputError(f"{folder} has two class folders called {name}; rename one")
        folders[name] = path
    return folders


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from None


def file_split(root: Path, part: str, classes: Sequence[str], preprocessing: Preprocessing) -> FileSplit:
    """Return the images of `root/part/CLASS` and the folders within, sorted by name within each class.

    Args:
        root: folder that the names of the files are relative to.
        part: folder in it that holds one folder a class.
        classes: names of the folders, in the order of the labels.
        preprocessing: how a file becomes an image.

    Raises:
        InputError: a class folder has no images.
    """
    names: list[str] = []
    labels: list[int] = []
    folders = _class_folders(root / part)
    for label, name in enumerate(classes):
        files, _ = _list(folders[name])
        if not files:
            raise InputError(f"{folders[name]} has no images ({', '.join(SUFFIXES)}); add some or remove it")
        names += [file.relative_to(root).as_posix() for file in files]
        labels += [label] * len(files)
    return FileSplit(root, names, torch.tensor(labels), preprocessing)


def left_out(root: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence about the files that are not used: no images, hidden, or beside the class folders."""
    files: list[Path] = []
    for folder in folders:
        files += [path for path in _inside(root / folder) if path.is_file()]
        for path in _class_folders(root / folder).values():
            files += _list(path)[1]
    sentence = describe_left_out([file.relative_to(root) for file in files])
    return (f"{root}: {sentence}",) if sentence else ()


def folder_hash(root: Path, folders: Sequence[str]) -> str:
    """Return the sha256 of the sorted relative names and sizes of all images; their content is not read."""
    lines = []
    for folder in folders:
        for path in _class_folders(root / folder).values():
            for file in _list(path)[0]:
                try:
                    size = file.stat().st_size
                except OSError:  # a link to nothing, which `load` leaves out or refuses
                    size = -1
                lines.append(f"{file.relative_to(root).as_posix()}\t{size}")
    return hashlib.sha256("\n".join(sorted(lines)).encode(errors="surrogateescape")).hexdigest()


def _list(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the images in a class folder, and all other files."""
    try:
        return list_images(folder)
    except RuntimeInputError as error:
        raise InputError(str(error)) from None
