"""What the functions of the API accept as data."""

from typing import Literal

from torch import Tensor

from sparsemble.data import load
from sparsemble.data.assemble import as_split as as_images
from sparsemble.data.dataset import Dataset, DataSource, Split

Data = Dataset | DataSource | Split | tuple[Tensor, Tensor]
"""A data set, where one comes from, labelled images, or tensors: images (N, C, H, W) in [0, 1] or uint8, labels (N)."""


def as_dataset(data: Data) -> Dataset:
    """Return training data as a data set; a tenth of plain training images, each class in proportion, is held out.

    Raises:
        InputError: too few images, or something that is no data.
    """
    return load(data)


def as_split(data: Data, part: Literal["selection", "calibration", "test"]) -> Split:
    """Return the images to measure on: this part of a data set, or all images where they are given as such."""
    if isinstance(data, DataSource):
        data = data.load()
    split: Split = getattr(data, part) if isinstance(data, Dataset) else as_images(data)
    return split
