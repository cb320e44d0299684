"""What the functions of the API accept as data."""

from typing import Literal

import torch
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.data.assemble import channel_statistics, cut
from sparsemble.data.dataset import Dataset, DataSource, Split, TensorSplit

Data = Dataset | DataSource | Split | tuple[Tensor, Tensor]
"""A data set, where one comes from, labelled images, or tensors: images (N, C, H, W) in [0, 1] or uint8, labels (N)."""
HELD_OUT = 0.1
"""Share of the training images that is held out where they come without held-out images."""


def as_dataset(data: Data) -> Dataset:
    """Return training data as a data set; a tenth of plain training images, each class in proportion, is held out.

    Raises:
        InputError: too few images, or something that is no data.
    """
    if isinstance(data, DataSource):
        return data.load()
    if isinstance(data, Dataset):
        return data
    split = _as_images(data)
    parts = [split.subset(torch.from_numpy(part)) for part in cut(split.labels.cpu().numpy(), HELD_OUT)]
    mean, std = channel_statistics(parts[0])
    channels, height, width = split.images(torch.zeros(1, dtype=torch.long)).shape[1:]
    return Dataset(
        train=parts[0],
        selection=parts[1],
        calibration=parts[2],
        test=split.subset(torch.zeros(0, dtype=torch.long)),
        classes=tuple(map(str, range(int(split.labels.max()) + 1))),
        shape=(channels, height, width),
        mean=mean,
        std=std,
    )


def as_split(data: Data, part: Literal["selection", "calibration", "test"]) -> Split:
    """Return the images to measure on: this part of a data set, or all images where they are given as such."""
    if isinstance(data, DataSource):
        data = data.load()
    split: Split = getattr(data, part) if isinstance(data, Dataset) else _as_images(data)
    return split


def _as_images(data: Split | tuple[Tensor, Tensor]) -> Split:
    if isinstance(data, Split):
        return data
    if isinstance(data, tuple | list) and len(data) == 2:
        return TensorSplit(torch.as_tensor(data[0]), torch.as_tensor(data[1]))
    raise InputError(
        f"data must be a data set, a split, or a pair of tensors (images, labels), got {type(data).__name__}; "
        'use sparsemble.data.load("digits"), say'
    )
