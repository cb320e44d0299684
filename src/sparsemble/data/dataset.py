"""Datasets: splits of images in [0, 1], class names, and channel statistics."""

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.core.registry import Component, Registry
from sparsemble.core.tensor_checks import checked_labels, in_unit_range
from sparsemble.core.types import Images, Labels
from sparsemble.data.augmentation import Augmentation, RandomChange
from sparsemble.data.file_summary import FileSummary
from sparsemble.runtime.images import Preprocessing

logger = logging.getLogger("sparsemble")


class Split(ABC):
    """Labelled images, accessed by index."""

    labels: Labels
    names: Sequence[str] = ()
    """Relative path of each image's file; (): the images are no files, or their paths are not kept."""
    prefetch: ClassVar[int] = 0
    """Batches that `stream` reads in the background."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def images(self, indices: Tensor) -> Images:
        """Return the images at these indices as float32 in [0, 1], on the device of `labels`."""

    @abstractmethod
    def subset(self, indices: Tensor) -> "Split":
        """Return a split of these images only."""

    @abstractmethod
    def to(self, device: torch.device | str) -> "Split":
        """Return the split on a device; images that are read later are moved there too."""

    @final
    def stream(self, batches: Iterable[Tensor]) -> Iterator[Images]:
        """Yield the images of each batch of indices, in order; the next batches are read in the background."""
        if not self.prefetch:
            yield from map(self.images, batches)
            return
        reader = ThreadPoolExecutor(1)
        try:
            pending: deque[Future[Images]] = deque()
            for indices in batches:
                pending.append(reader.submit(self.images, indices))
                if len(pending) > self.prefetch:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            reader.shutdown(cancel_futures=True)

    def tensors(self) -> tuple[Images, Labels]:
        """Return all images (N, C, H, W) and labels (N); for splits that fit in memory."""
        return self.images(torch.arange(len(self), device=self.labels.device)), self.labels


@final
class TensorSplit(Split):
    """A split held in memory: uint8 (0..255) or float (0..1) images, (N, C, H, W), and a label each.

    Rounding errors beyond [0, 1] are clamped; labels may be whole numbers of any type, or one-hot.

    Raises:
        InputError: another shape, type or range.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, names: Sequence[str] = ()) -> None:
        if pixels.ndim != 4 or len(pixels) != len(labels):
            raise InputError(
                f"images must be (N, C, H, W) with one label each, got {tuple(pixels.shape)} and {tuple(labels.shape)}"
            )
        if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
            kind = str(pixels.dtype).removeprefix("torch.")
            raise InputError(f"images must be uint8 in 0..255 or float in [0, 1], got {kind}; convert them")
        if pixels.is_floating_point():
            pixels = in_unit_range(pixels.detach())
        self.pixels = _with_usual_strides(pixels)
        self.labels = checked_labels(labels, len(pixels)).to(pixels.device)
        self.names = names

    def images(self, indices: Tensor) -> Images:
        """Return the images at these indices as float32 in [0, 1]."""
        pixels = self.pixels[indices]
        return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()

    def subset(self, indices: Tensor) -> "TensorSplit":
        """Return a split of these images only."""
        names = [self.names[index] for index in indices.tolist()] if self.names else ()
        return TensorSplit(self.pixels[indices], self.labels[indices], names)

    def to(self, device: torch.device | str) -> "TensorSplit":
        """Return the split on a device."""
        return TensorSplit(self.pixels.to(device), self.labels.to(device), self.names)


def _with_usual_strides(pixels: Tensor) -> Tensor:
    """Return images in the order of their shape, so that `x.view(x.size(0), -1)` works in a model.

    One channel, channels last, counts as contiguous in torch, but views of what a convolution makes of it do not work.
    """
    usual = tuple(pixels[0, 0].numel() * size for size in (pixels.shape[1], 1)) if pixels.numel() else ()
    if not usual or pixels.stride() == (*usual, pixels.shape[3], 1):
        return pixels
    return pixels.clone(memory_format=torch.contiguous_format)


@final
@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images with train, held-out and test splits.

    The held-out part is taken from the training images. Its first half selects checkpoints and ensembles, its second
    half calibrates stopping rules; the test split is for the final evaluation only.
    """

    train: Split
    selection: Split
    """Half of the held-out images: selects checkpoints and ensembles."""
    calibration: Split
    """The other half: calibrates stopping rules."""
    test: Split
    classes: tuple[str, ...]
    """Class names, in label order."""
    shape: tuple[int, int, int]
    """Channels, height, width of an image."""
    mean: tuple[float, ...]
    """Mean of each channel over the training images."""
    std: tuple[float, ...]
    """Standard deviation of each channel over the training images."""
    augmentation: RandomChange = Augmentation()
    """Changes training images at random: an `Augmentation`, `PerImage`, or any function like it."""
    preprocessing: Preprocessing | None = None
    """How images are made of files; none: the data set is arrays."""
    files: FileSummary | None = None
    """What the files were; none: the data set is arrays, or its files were not read."""
    notes: tuple[str, ...] = ()
    """Sentences about what is left out."""

    def to(self, device: torch.device | str) -> "Dataset":
        """Return the dataset on a device."""
        parts = ("train", "selection", "calibration", "test")
        return replace(self, **{part: getattr(self, part).to(device) for part in parts})


@final
@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much there is in a data set."""

    train: int
    """Training images, those included that are held out."""
    test: int
    classes: int
    shape: tuple[int, int, int]
    """Channels, height, width of an image."""
    held_out: float
    """Training images that are held out; a share if below 1."""
    in_memory: bool = True
    """Whether the images are kept in memory; else files are decoded on demand."""
    assumed: bool = False
    """Whether the files are missing and these sizes a guess."""


class DataSource(Component):
    """Settings of a dataset: where its files are and how it is split."""

    def known_sizes(self) -> Sizes | None:
        """Return the sizes that are known without reading files, or guessed where files are missing; else none."""
        return None

    @final
    def load_and_report(self) -> Dataset:
        """Read the dataset, and tell the user what it leaves out."""
        data = self.load()
        for note in data.notes:
            logger.warning("%s", note)
        return data

    @abstractmethod
    def load(self) -> Dataset:
        """Read the dataset.

        Raises:
            InputError: a file is missing, truncated or has another checksum; the message says where to put it.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of the files, which is part of the hash of every result."""


def stratified(labels: np.ndarray, fraction_or_count: int | float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split indices into (rest, part) with each class in proportion.

    Args:
        labels: (N,) class indices.
        fraction_or_count: share of the images in the part if below 1, else their number.
        seed: of the shuffle; a constant for each dataset, so that the split never changes.

    Returns:
        Two sorted index arrays that together hold every index once.
    """
    total = len(labels)
    count = round(fraction_or_count * total) if fraction_or_count < 1 else int(fraction_or_count)
    rng = np.random.default_rng(seed)
    order = rng.permutation(total)
    classes, inverse = np.unique(labels[order], return_inverse=True)
    exact = np.bincount(inverse, minlength=len(classes)) * count / total
    quota = np.floor(exact).astype(int)
    short = count - quota.sum()
    quota[np.argsort(quota - exact, kind="stable")[:short]] += 1
    rank = np.empty(total, dtype=int)
    for label in range(len(classes)):
        members = np.flatnonzero(inverse == label)
        rank[members] = np.arange(len(members))
    part = rank < quota[inverse]
    return np.sort(order[~part]), np.sort(order[part])


data_sources: Registry[DataSource] = Registry("data", DataSource)
