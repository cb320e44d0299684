"""Make a dataset of a training and a test split: hold out images, halve them, compute channel statistics."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sparsemble.core.errors import InputError
from sparsemble.data.augmentation import Augmentation
from sparsemble.data.dataset import Dataset, Split, TensorSplit, stratified

SPLIT_SEED = 2009
HELD_OUT = 0.1
"""Share of the training images that is held out where there is no setting."""
CHUNK = 1024
LARGEST_LABEL = 1000
"""Labels up to this one are believed, however few the images."""

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel."""


def assemble(
    train: Split,
    test: Split,
    classes: Sequence[str],
    *,
    held_out: int | float,
    augmentation: Augmentation,
    groups: np.ndarray | None = None,
    statistics: Statistics | None = None,
) -> Dataset:
    """Hold out training images and make the dataset; the same images are held out every time.

    Args:
        train: all training images.
        test: the test images.
        classes: class names, in label order.
        held_out: training images to hold out, or their share if below 1.
        augmentation: augmentation of training images.
        groups: (N,) group of each training image; images of one class and group are never separated.
        statistics: mean and standard deviation of each channel; none: those of all training images.

    Raises:
        InputError: a split is empty, a label is out of range, or classes, held-out part or augmentation do not fit.
    """
    _check_labels(train, test, classes)
    return _hold_out(train, test, classes, held_out, augmentation, groups, statistics)


def without_test_images(split: Split) -> Dataset:
    """Return labelled images as a data set whose test split is empty; a tenth of each class is held out.

    Raises:
        InputError: too few images, or a channel that has one value everywhere.
    """
    highest = int(_labels(split).max(initial=-1))
    if highest >= max(len(split), LARGEST_LABEL):
        raise InputError(f"the labels go up to {highest:,}, for {len(split):,} images; number the classes from 0")
    classes = tuple(map(str, range(highest + 1)))
    return _hold_out(split, split.subset(torch.tensor([], dtype=torch.long)), classes, HELD_OUT, Augmentation())


def _hold_out(
    train: Split,
    test: Split,
    classes: Sequence[str],
    held_out: int | float,
    augmentation: Augmentation,
    groups: np.ndarray | None = None,
    statistics: Statistics | None = None,
) -> Dataset:
    parts = [train.subset(torch.from_numpy(indices)) for indices in cut(_labels(train), held_out, groups)]
    mean, std = statistics or channel_statistics(parts[0])
    return Dataset(
        train=parts[0],
        selection=parts[1],
        calibration=parts[2],
        test=test,
        classes=tuple(classes),
        shape=_shape(train, augmentation),
        mean=mean,
        std=std,
        augmentation=augmentation,
    )


def as_split(images: Any) -> Split:
    """Return a split, or a pair of images (N, C, H, W), uint8 or float in [0, 1], and labels (N), as a split.

    Raises:
        InputError: anything else.
    """
    if isinstance(images, Split):
        if images.labels.dtype != torch.int64:
            kind = str(images.labels.dtype).removeprefix("torch.")
            raise InputError(f"the labels of {type(images).__name__} must be int64 class indices, got {kind}")
        return images
    if isinstance(images, tuple | list) and len(images) == 2:
        return TensorSplit(_as_tensor(images[0], "images"), _as_tensor(images[1], "labels"))
    raise InputError(
        f"data must be a data set, a split, or a pair of tensors (images, labels), got {type(images).__name__}; "
        'use sparsemble.data.load("digits"), say'
    )


def _as_tensor(values: Any, name: str) -> torch.Tensor:
    try:
        return torch.as_tensor(np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{name} must be a tensor or an array of numbers, got {type(values).__name__}: {reason}"
        ) from None


def _labels(split: Split) -> np.ndarray:
    return split.labels.cpu().numpy()


def cut(
    labels: np.ndarray, held_out: int | float, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the indices of the train, selection and calibration splits, each class in proportion.

    With groups, whole groups are assigned, and `held_out` counts groups. The only image or group of a class stays in
    training.

    Args:
        labels: (N,) class of each training image.
        held_out: images or groups to hold out, or their share if below 1.
        groups: (N,) group of each training image.

    Raises:
        InputError: `held_out` leaves one of the splits empty.
    """
    units, unit_of = _units(labels, groups)
    share = held_out if held_out < 1 else held_out / len(labels)
    several = np.flatnonzero(np.bincount(units)[units] > 1)
    count = round(share * len(units)) if 0 < share <= 1 else 0
    if not 2 <= count < len(several):
        kind = "training images" if groups is None else f"groups of {len(labels):,} training images"
        raise InputError(
            f"held_out = {held_out:g} does not fit {len(units):,} {kind}: 2 to {len(several) - 1:,} can be held out, "
            "and a value below 1 is a share"
        )
    held_units = several[stratified(units[several], count, SPLIT_SEED)[1]]
    # Alternately, class after class: the halves of a class differ by one at most, and overall by one at most.
    mixed = np.random.default_rng(SPLIT_SEED).permutation(held_units)
    by_class = mixed[np.argsort(units[mixed], kind="stable")]
    role = np.zeros(len(units), dtype=int)
    role[by_class[0::2]], role[by_class[1::2]] = 1, 2
    train, first, second = (np.flatnonzero(role[unit_of] == number) for number in range(3))
    if missing := set(labels.tolist()) - set(labels[train].tolist()):
        raise InputError(f"held_out = {held_out:g} leaves class {min(missing)} without training images; lower it")
    return train, first, second


def _units(labels: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the class of each unit (image or group), and the unit of each image."""
    if groups is None:
        return labels, np.arange(len(labels))
    names, group = np.unique(groups, return_inverse=True)
    keys, unit_of = np.unique(labels.astype(np.int64) * len(names) + group, return_inverse=True)
    return keys // len(names), unit_of


def _check_labels(train: Split, test: Split, classes: Sequence[str]) -> None:
    for split, part in ((train, "training"), (test, "test")):
        if not len(split):
            raise InputError(f"the {part} split is empty; at least one image is needed")
        lowest, highest = int(split.labels.min()), int(split.labels.max())
        if lowest < 0 or highest >= len(classes):
            raise InputError(f"the {part} labels must lie in 0..{len(classes) - 1}, got {lowest}..{highest}")
    counts = torch.bincount(train.labels, minlength=len(classes)).tolist()
    if 0 in counts:
        raise InputError(f'class {counts.index(0)} ("{classes[counts.index(0)]}") has no training image')


def _shape(split: Split, augmentation: Augmentation) -> tuple[int, int, int]:
    channels, height, width = split.images(torch.tensor([0])).shape[1:]
    augmentation.check((channels, height, width))
    return channels, height, width


def channel_statistics(split: Split) -> Statistics:
    """Return the mean and standard deviation of each channel over all pixels of a split.

    Raises:
        InputError: a channel has one value everywhere, so that it cannot be normalised.
    """
    total, squares, count = torch.zeros(1), torch.zeros(1), 0
    for start in range(0, len(split), CHUNK):
        x = split.images(torch.arange(start, min(start + CHUNK, len(split)))).double()
        total = total + x.sum(dim=(0, 2, 3))
        squares = squares + x.square().sum(dim=(0, 2, 3))
        count += x[:, 0].numel()
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    if (std < 1e-6).any():
        raise InputError(f"channel {int(std.argmin())} of the training images has one value everywhere; drop it")
    return tuple(mean.tolist()), tuple(std.tolist())


def tensor_split(pixels: np.ndarray, labels: np.ndarray) -> TensorSplit:
    """Return uint8 images (N, C, H, W) and their labels as a split in memory."""
    return TensorSplit(torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(labels.astype(np.int64)))
