"""Where corrupted images come from: generated, the arrays of CIFAR-10-C, or files like those of ImageNet-C."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch

from sparsemble.core.artifacts import file_hash
from sparsemble.core.errors import InputError
from sparsemble.core.results.corruptions import CORRUPTIONS, SEVERITIES
from sparsemble.core.types import Images
from sparsemble.data.dataset import Split
from sparsemble.data.file_split import THREADS
from sparsemble.evaluation.corruptions import SMALLEST, corrupt, parameters_for
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.images import MODES, Preprocessing

GENERATED = "generated"


class CorruptedImages(ABC):
    """Where corrupted images come from."""

    @abstractmethod
    def images(self, name: str, severity: int, x: Images, positions: Sequence[int]) -> Images:
        """Return corrupted images on the device of `x`.

        Args:
            name: of `CORRUPTIONS`.
            severity: 1 to 5.
            x: (B, C, H, W) the clean images.
            positions: (B) of the images in their split.
        """

    @abstractmethod
    def record(self, x: Images) -> dict[str, Any]:
        """Return the fields of a `CorruptionRecord` that describe this source for images like these."""


@final
@dataclass(frozen=True)
class GeneratedCorruptions(CorruptedImages):
    """Corruptions made on the fly."""

    seed: int
    """>= 0; a corrupted image depends on it and on its own position only."""

    def images(self, name: str, severity: int, x: Images, positions: Sequence[int]) -> Images:
        """Return corrupted images."""
        return corrupt(name, severity, x, seed=self.seed, positions=positions)

    def record(self, x: Images) -> dict[str, Any]:
        """Return source, parameters and seed."""
        return {"source": GENERATED, "parameters": parameters_for(*x.shape[2:]), "seed": self.seed}


@final
@dataclass(frozen=True)
class StoredCorruptions(CorruptedImages):
    """Corruptions in arrays, as CIFAR-10-C is published: `NAME.npy` with all images at severity 1, then 2, ..."""

    folder: Path
    sha256: str
    total: int
    """Images at one severity."""

    def images(self, name: str, severity: int, x: Images, positions: Sequence[int]) -> Images:
        """Return corrupted images."""
        rows = (severity - 1) * self.total + np.asarray(positions)
        pixels = torch.from_numpy(_open(self.folder / f"{name}.npy")[rows]).float() / 255
        return (pixels[..., None] if pixels.ndim == 3 else pixels).permute(0, 3, 1, 2).contiguous().to(x.device)

    def record(self, x: Images) -> dict[str, Any]:
        """Return the folder and the hash of its arrays."""
        return {"source": str(self.folder), "sha256": self.sha256}


@final
@dataclass(frozen=True)
class CorruptedFiles(CorruptedImages):
    """Corruptions in files, as ImageNet-C is published: `CORRUPTION/SEVERITY/CLASS/NAME`.

    The short side is resized to the side of the test images, and the centre square is taken.
    """

    folder: Path
    names: dict[int, str]
    """CLASS/NAME of each image, by its position in the split."""
    preprocessing: Preprocessing
    sha256: str
    """Of the names and sizes of all files."""

    def images(self, name: str, severity: int, x: Images, positions: Sequence[int]) -> Images:
        """Return corrupted images."""
        folder = self.folder / name / str(severity)
        with ThreadPoolExecutor(THREADS) as pool:
            pixels = np.stack(list(pool.map(self._read, [folder / self.names[i] for i in positions])))
        return (torch.from_numpy(pixels).float() / 255).permute(0, 3, 1, 2).contiguous().to(x.device)

    def _read(self, path: Path) -> np.ndarray:
        try:
            return self.preprocessing.read(path)
        except RuntimeInputError as error:
            raise InputError(f"{error}; repair it") from None

    def record(self, x: Images) -> dict[str, Any]:
        """Return the folder and the hash of its files."""
        return {"source": str(self.folder), "sha256": self.sha256}


def open_corruptions(
    wanted: str | Path | Literal[True], split: Split, positions: Sequence[int], seed: int
) -> CorruptedImages:
    """Return where corrupted images come from, after a check that they fit the images.

    Args:
        wanted: True or "generated": made on the fly; else a folder of arrays (5 N, H, W, C), uint8, `NAME.npy` for
            each corruption, with the classes in `labels.npy`; or one of files, CORRUPTION/SEVERITY/CLASS/NAME, where
            the images are files, too.
        split: the images that are evaluated.
        positions: of these in the whole split that the arrays are about.
        seed: of what is made on the fly.

    Raises:
        InputError: no such folder, arrays or files that are missing, damaged or of other images, or images that are
            too small.
    """
    channels, height, width = split.images(torch.zeros(1, dtype=torch.long, device=split.labels.device)).shape[1:]
    if wanted is True or str(wanted) == GENERATED:
        if min(height, width) < SMALLEST:
            raise InputError(f"images of {height} x {width} pixels are too small to corrupt; a side needs {SMALLEST}")
        return GeneratedCorruptions(seed)
    folder = Path(wanted)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of corrupted images; name one, or no folder to generate them")
    if (folder / CORRUPTIONS[0]).is_dir():
        return _open_files(folder, split, positions, (channels, height, width))
    files = {name: folder / f"{name}.npy" for name in (*CORRUPTIONS, "labels")}
    if missing := [file.name for file in files.values() if not file.is_file()]:
        raise InputError(
            f"{folder} lacks {', '.join(missing)}; it must hold the arrays of CIFAR-10-C or the folders of ImageNet-C, "
            "or ones like them"
        )
    labels = _open(files["labels"])
    total = len(_open(files[CORRUPTIONS[0]])) // SEVERITIES
    for name in CORRUPTIONS:
        _check_array(files[name], (SEVERITIES * total, height, width, channels))
    _check_labels(files["labels"], labels, total, split, positions)
    digest = hashlib.sha256("".join(map(file_hash, files.values())).encode()).hexdigest()
    return StoredCorruptions(folder, digest, total)


def _open_files(folder: Path, split: Split, positions: Sequence[int], shape: tuple[int, int, int]) -> CorruptedFiles:
    """Return the files of a folder, each of which must be there under the name of its clean image."""
    channels, height, width = shape
    if not split.names or height != width or channels not in MODES:
        raise InputError(f"{folder} holds files, but the images that are evaluated are arrays; give a folder of arrays")
    first = folder / CORRUPTIONS[0] / "1"
    whole = (first / split.names[0]).is_file()  # else without the name of the test part
    names = [name if whole else name.partition("/")[2] for name in split.names]
    digest = hashlib.sha256()
    for corruption in CORRUPTIONS:
        for severity in range(1, SEVERITIES + 1):
            for name in names:
                path = folder / corruption / str(severity) / name
                if not path.is_file():
                    raise InputError(f"{path} is missing; each test image needs a file of its name in every severity")
                digest.update(
                    f"{corruption}/{severity}/{name}\t{path.stat().st_size}\n".encode(errors="surrogateescape")
                )
    record = Preprocessing(mode=MODES[channels], resize=height, size=height)
    return CorruptedFiles(folder, dict(zip(positions, names, strict=True)), record, digest.hexdigest())


def _open(file: Path) -> np.ndarray:
    """Map an array into memory; never unpickles."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file} cannot be read as an array: {error}") from error
    if not isinstance(array, np.ndarray) or not array.ndim:
        raise InputError(f"{file} must hold one array with an entry for each image")
    return array


def _check_array(file: Path, expected: tuple[int, ...]) -> None:
    """Check that an array holds images of this shape; grey ones may lack the last axis."""
    array = _open(file)
    shapes = (expected, expected[:3]) if expected[3] == 1 else (expected,)
    if array.dtype != np.uint8 or array.shape not in shapes:
        raise InputError(
            f"{file} must be uint8 {expected}, five severities of each image, got {array.dtype} {array.shape}"
        )


def _check_labels(file: Path, labels: np.ndarray, total: int, split: Split, positions: Sequence[int]) -> None:
    """Check that the arrays are about the images that are evaluated, as far as the classes tell."""
    if labels.dtype.kind not in "iu" or labels.shape not in ((total,), (SEVERITIES * total,)):
        raise InputError(f"{file} must be whole numbers, one for each of {total} images or of all severities")
    if max(positions) >= total:
        raise InputError(f"{file.parent} is about {total} images, but the evaluation uses image {max(positions)}")
    differ = np.flatnonzero(labels[np.asarray(positions)] != split.labels.cpu().numpy())
    if differ.size:
        i = int(differ[0])
        raise InputError(
            f"{file.parent} is about other images, or in another order: image {positions[i]} has class "
            f"{labels[positions[i]]} there and {int(split.labels[i])} in the data set"
        )
