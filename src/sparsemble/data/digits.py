"""The UCI handwritten digits: 1,797 grey images of 8 x 8 pixels, shipped with the package.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
licensed CC BY 4.0; the copy is the one that scikit-learn carries (see digits.txt).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from sparsemble.core.artifacts import file_hash
from sparsemble.core.errors import InputError
from sparsemble.data.augmentation import Augmentation
from sparsemble.data.dataset import Dataset, DataSource, TensorSplit, data_sources, stratified

FILE = Path(__file__).with_name("digits.npz")
SHA256 = "b2dab7b501728c22e9119ad76740b2e17c77a231e42d1e592380d90886f1a05e"
SPLIT_SEED = 1998


@final
@data_sources.register("digits")
@dataclass(frozen=True, kw_only=True)
class Digits(DataSource):
    """1,000 training, 297 held-out (149 selection, 148 calibration) and 500 test images; the split never changes."""

    crop: int = 0
    """Largest random shift in training, in pixels."""

    def load(self) -> Dataset:
        """Read the file in the package."""
        if self.fingerprint() != SHA256:
            raise InputError(f"{FILE} is damaged (its sha256 is not {SHA256}); install sparsemble again")
        with np.load(FILE, allow_pickle=False) as file:
            pixels = torch.from_numpy(file["images"].astype(np.float32) / 16)[:, None]
            labels = file["labels"].astype(np.int64)
        rest, test = stratified(labels, 500, SPLIT_SEED)
        kept, held_out = stratified(labels[rest], 297, SPLIT_SEED)
        first, second = stratified(labels[rest][held_out], 148, SPLIT_SEED)
        held_out = rest[held_out]
        indices = {"train": rest[kept], "selection": held_out[first], "calibration": held_out[second], "test": test}
        parts: dict[str, Any] = {
            name: TensorSplit(pixels[part], torch.from_numpy(labels[part])) for name, part in indices.items()
        }
        train = parts["train"].pixels
        return Dataset(
            **parts,
            classes=tuple("0123456789"),
            shape=(1, 8, 8),
            mean=(float(train.mean()),),
            std=(float(train.std()),),
            augmentation=Augmentation(crop=self.crop),
        )

    def fingerprint(self) -> str:
        """Return the sha256 of the shipped file."""
        return file_hash(FILE)
