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
    stays: np.ndarray | None = None,
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
        stays: (N) whether an image must not be held out; none: any may be.
        statistics: mean and standard deviation of each channel; none: those of all training images.

    Raises:
        InputError: a split is empty, a label is out of range, or classes, held-out part or augmentation do not fit.
    """
    _check_labels(train, test, classes)
    parts = cut(_labels(train), held_out, groups, stays)
    return _dataset(train, test, classes, parts, augmentation, statistics)


def without_test_images(split: Split) -> Dataset:
    """Return labelled images as a data set whose test split is empty; a tenth of each class is held out.

    Raises:
        InputError: too few images, or a channel that has one value everywhere.
    """
    highest = int(_labels(split).max(initial=-1))
    if highest >= max(len(split), LARGEST_LABEL):
        raise InputError(f"the labels go up to {highest:,}, for {len(split):,} images; number the classes from 0")
    classes = tuple(map(str, range(highest + 1)))
    no_images = split.subset(torch.tensor([], dtype=torch.long))
    return _dataset(split, no_images, classes, cut(_labels(split), HELD_OUT), Augmentation(), None)


def _dataset(
    train: Split,
    test: Split,
    classes: Sequence[str],
    indices: Sequence[np.ndarray],
    augmentation: Augmentation,
    statistics: Statistics | None,
) -> Dataset:
    parts = [train.subset(torch.from_numpy(part)) for part in indices]
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
    labels: np.ndarray, held_out: int | float, groups: np.ndarray | None = None, stays: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the indices of the train, selection and calibration splits, each class in proportion.

    With groups, whole groups are assigned, and `held_out` counts groups. The only image or group of a class stays in
    training.

    Args:
        labels: (N,) class of each training image.
        held_out: images or groups to hold out, or their share if below 1.
        groups: (N,) group of each training image.
        stays: (N) whether an image must stay in training.

    Raises:
        InputError: `held_out` leaves one of the splits empty.
    """
    units, unit_of = _units(labels, groups)
    held_units = _choose("held_out", held_out, units, unit_of, stays)
    # Alternately, class after class: the halves of a class differ by one at most, and overall by one at most.
    mixed = np.random.default_rng(SPLIT_SEED).permutation(held_units)
    by_class = mixed[np.argsort(units[mixed], kind="stable")]
    role = np.zeros(len(units), dtype=int)
    role[by_class[0::2]], role[by_class[1::2]] = 1, 2
    train, first, second = (np.flatnonzero(role[unit_of] == number) for number in range(3))
    _check_left("held_out", held_out, labels, train)
    return train, first, second


def cut_test(
    labels: np.ndarray, test: int | float, groups: np.ndarray, stays: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training and test images of a data set that has no test images of its own.

    Each class is cut in proportion, whole groups are assigned, and the cut is the same every time.

    Args:
        labels: (N,) class of each image.
        test: groups in the test split, or their share if below 1.
        groups: (N,) group of each image.
        stays: (N) whether an image must stay in training.

    Raises:
        InputError: `test` leaves one of the splits empty.
    """
    units, unit_of = _units(labels, groups)
    part = np.isin(unit_of, _choose("test", test, units, unit_of, stays))
    _check_left("test", test, labels, np.flatnonzero(~part))
    return np.flatnonzero(~part), np.flatnonzero(part)


def _check_left(setting: str, value: int | float, labels: np.ndarray, train: np.ndarray) -> None:
    if missing := set(labels.tolist()) - set(labels[train].tolist()):
        raise InputError(f"{setting} = {value:g} leaves class {min(missing)} without training images; lower it")


def _choose(
    setting: str, value: int | float, units: np.ndarray, unit_of: np.ndarray, stays: np.ndarray | None
) -> np.ndarray:
    """Return the units to take out of training, each class in proportion; at least one of each class is left."""
    share = value if value < 1 else value / len(unit_of)
    may = np.bincount(units)[units] > 1
    if stays is not None:
        may &= np.bincount(unit_of, weights=stays, minlength=len(units)) == 0
    several = np.flatnonzero(may)
    count = round(share * len(units)) if 0 < share <= 1 else 0
    if not 2 <= count < len(several):
        images = f"{len(unit_of):,} training images"
        kind = "training images" if len(units) == len(unit_of) else f"groups of {images}"
        raise InputError(
            f"{setting} = {value:g} does not fit {len(units):,} {kind}: 2 to {len(several) - 1:,} can be held out, "
            "and a value below 1 is a share"
        )
    chosen: np.ndarray = several[stratified(units[several], count, SPLIT_SEED)[1]]
    return chosen


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
