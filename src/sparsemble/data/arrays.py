"""The user's own images in one .npz file of plain arrays."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from sparsemble.core.artifacts import file_hash
from sparsemble.core.errors import InputError
from sparsemble.core.tensor_checks import checked_labels
from sparsemble.data.assemble import assemble, tensor_split
from sparsemble.data.augmentation import Augmentation
from sparsemble.data.dataset import Dataset, DataSource, Sizes, TensorSplit, data_sources

REQUIRED = ("train_images", "train_labels", "test_images", "test_labels")
GROUPS = ("train_groups", "train_track")
READ_ERRORS = (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@final
@data_sources.register("arrays")
@dataclass(frozen=True, kw_only=True)
class Arrays(DataSource):
    """Arrays train_images, test_images (N, H, W, C) or (N, H, W), uint8, and labels (N), whole numbers.

    Optional arrays: `classes` (K strings) names the classes; `train_groups` or `train_track` (N) gives the group of
    near-duplicates of each image, and then whole groups are held out. A group counts within its class only: group 3 of
    class 0 and group 3 of class 1 are two groups.
    """

    path: str
    """The .npz file."""
    held_out: float = 0.1
    """Training images to hold out, each class in proportion; a share if below 1 (of the groups, if there are any)."""
    crop: int = 0
    """Largest random shift in training, in pixels."""
    cutout: int = 0
    """Side in pixels of a random square that is set to zero in training; 0: none."""
    flip: bool = False
    """Flip half of the images horizontally in training; only where the classes are invariant to it."""

    def known_sizes(self) -> Sizes | None:
        """Return none if the file is there, else the sizes of CIFAR-10, as a guess."""
        if Path(self.path).expanduser().is_file():
            return None
        return Sizes(train=50_000, test=10_000, classes=10, shape=(3, 32, 32), held_out=self.held_out, assumed=True)

    def load(self) -> Dataset:
        """Read the file."""
        path = self._find()
        arrays = _read(path)
        train, test = (_split(arrays, part, path) for part in ("train", "test"))
        if train.pixels.shape[1:] != test.pixels.shape[1:]:
            shapes = f"{tuple(train.pixels.shape[1:])} and {tuple(test.pixels.shape[1:])}"
            raise InputError(f"{path}: training and test images must have one shape (C, H, W), got {shapes}")
        return assemble(
            train,
            test,
            _classes(arrays, path),
            held_out=self.held_out,
            augmentation=Augmentation(cutout=self.cutout, crop=self.crop, flip=self.flip),
            groups=_groups(arrays, path),
        )

    def fingerprint(self) -> str:
        """Return the sha256 of the file."""
        return file_hash(self._find())

    def _find(self) -> Path:
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise InputError(f"{path} is missing; it must be an .npz file with {', '.join(REQUIRED)}")
        return path


def _read(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of the file; never unpickles."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            known = [name for name in (*REQUIRED, "classes", *GROUPS) if name in file]
            arrays = {name: file[name] for name in known}
    except READ_ERRORS as error:
        raise InputError(f"{path} cannot be read as an .npz file of plain arrays: {error}") from error
    if missing := [name for name in REQUIRED if name not in arrays]:
        raise InputError(f"{path} lacks {', '.join(missing)}")
    for part in ("train", "test"):
        try:
            labels = checked_labels(arrays[f"{part}_labels"], len(arrays[f"{part}_images"]))
        except InputError as error:
            raise InputError(f"{path}: {part}_{error}") from None
        arrays[f"{part}_labels"] = labels.numpy()
    return arrays


def _split(arrays: dict[str, np.ndarray], part: str, path: Path) -> TensorSplit:
    images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or not 1 <= images.shape[3] <= 4 or 0 in images.shape:
        raise InputError(
            f"{path}: {part}_images must be uint8 (N, H, W) or (N, H, W, C) with at most 4 channels, "
            f"got {images.dtype} {arrays[f'{part}_images'].shape}"
        )
    return tensor_split(images.transpose(0, 3, 1, 2), labels)


def _classes(arrays: dict[str, np.ndarray], path: Path) -> tuple[str, ...]:
    if "classes" not in arrays:
        highest = max(int(arrays[f"{part}_labels"].max()) for part in ("train", "test"))
        return tuple(map(str, range(min(highest + 1, len(arrays["train_labels"])))))  # each class needs an image
    classes = arrays["classes"]
    if classes.ndim != 1 or classes.dtype.kind != "U":
        raise InputError(f"{path}: classes must be a list of strings, got {classes.dtype} {classes.shape}")
    return tuple(classes.tolist())


def _groups(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray | None:
    present = [name for name in GROUPS if name in arrays]
    if not present:
        return None
    if len(present) > 1:
        raise InputError(f"{path} has both {' and '.join(present)}; keep one")
    groups = arrays[present[0]]
    if groups.shape != arrays["train_labels"].shape:
        raise InputError(f"{path}: {present[0]} must have one entry for each training image, got {groups.shape}")
    return groups
