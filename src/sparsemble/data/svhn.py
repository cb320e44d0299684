"""SVHN, cropped: 99,289 colour images of house numbers, 32 x 32 pixels, one digit in the middle of each.

Source: Y. Netzer et al., Reading digits in natural images with unsupervised feature learning, 2011. The download from
the real address was not tried.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from sparsemble.core.errors import InputError
from sparsemble.data.assemble import assemble, tensor_split
from sparsemble.data.augmentation import Augmentation
from sparsemble.data.dataset import Dataset, DataSource, Sizes, data_sources
from sparsemble.data.download import Remote, fetch, hash_files

# Sizes and sha256: TensorFlow Datasets, url_checksums/svhn_cropped.txt. torchvision's svhn.py names the md5 sums
# e26dedcc434d2e4c54c9b2d4a06d8373 (train) and eb5a983be6a315427106f1b164d9cef3 (test).
FILES = {
    "train_32x32.mat": Remote(
        urls=("http://ufldl.stanford.edu/housenumbers/train_32x32.mat",),
        size=182_040_794,
        sha256="435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    ),
    "test_32x32.mat": Remote(
        urls=("http://ufldl.stanford.edu/housenumbers/test_32x32.mat",),
        size=64_275_384,
        sha256="cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
    ),
}


@final
@data_sources.register("svhn")
@dataclass(frozen=True, kw_only=True)
class SVHN(DataSource):
    """73,257 images to train with, of which `held_out` are held out, and 26,032 test images."""

    root: str = "~/.cache/sparsemble/svhn"
    """Folder of train_32x32.mat and test_32x32.mat."""
    download: bool = True
    """Download the files (182 and 64 MB) if they are absent."""
    held_out: int = 5000
    """Training images to hold out, each class in proportion."""
    crop: int = 4
    """Largest random shift in training, in pixels; digits are never flipped."""
    cutout: int = 0
    """Side in pixels of a random square that is set to zero in training; 0: none."""

    def known_sizes(self) -> Sizes:
        """Return the sizes of the published files."""
        return Sizes(train=73_257, test=26_032, classes=10, shape=(3, 32, 32), held_out=self.held_out)

    def load(self) -> Dataset:
        """Read the two files, downloading them first if they are absent."""
        train, test = (tensor_split(*read(path)) for path in self._find())
        augmentation = Augmentation(cutout=self.cutout, crop=self.crop)
        return assemble(train, test, tuple("0123456789"), held_out=self.held_out, augmentation=augmentation)

    def fingerprint(self) -> str:
        """Return one sha256 over the two files."""
        return hash_files(self._find())

    def _find(self) -> list[Path]:
        paths = [Path(self.root).expanduser() / name for name in FILES]
        for path in paths:
            fetch(FILES[path.name], path, download=self.download)
        return paths


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (N, 3, H, W), uint8, and the digits (N) of a file, in which label 10 means digit 0.

    Raises:
        InputError: the file has no `X` of shape (H, W, 3, N) with one `y` in 1..10 for each image.
    """
    from scipy.io import loadmat

    try:
        file = loadmat(path, variable_names=("X", "y"))
        pixels, labels = file["X"], file["y"].reshape(-1)
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise InputError(f"{path} cannot be read as a MATLAB file with X and y: {error}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[2:] != (3, len(labels)):
        raise InputError(f"{path} must hold X, uint8 (H, W, 3, {len(labels)}), got {pixels.dtype} {pixels.shape}")
    if labels.min() < 1 or labels.max() > 10:
        raise InputError(f"{path} has labels {labels.min()}..{labels.max()}, expected 1..10")
    return pixels.transpose(3, 2, 0, 1), labels % 10
