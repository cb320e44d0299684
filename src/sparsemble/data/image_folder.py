"""The user's own images in class folders.

Every file is decoded once before any work, so that what cannot be read and what is there twice is known. Up to 2 GiB of
pixels are kept in memory; the images of larger folders are streamed, and are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch

from sparsemble.core.errors import InputError
from sparsemble.core.types import Labels
from sparsemble.data.assemble import assemble, channel_statistics
from sparsemble.data.augmentation import Augmentation
from sparsemble.data.dataset import Dataset, DataSource, Sizes, Split, TensorSplit, data_sources
from sparsemble.data.file_split import (
    FileSplit,
    class_names,
    file_split,
    find_parts,
    folder_hash,
    left_out,
    make_preprocessing,
)
from sparsemble.data.file_summary import FileSummary
from sparsemble.data.image_groups import ImageGroups
from sparsemble.data.image_scan import ImageScan, scan_images
from sparsemble.runtime.errors import printable
from sparsemble.runtime.images import NAMED

IN_MEMORY = 2 << 30
MEASURED = 2048
AUGMENTATION = ("random_resized_crop", "flip", "crop", "rand_augment", "jitter", "cutout")
"""Settings that are passed on."""
FEWEST = 10
"""Images of a class, in all parts together, that are needed."""


@final
@data_sources.register("image_folder")
@dataclass(frozen=True, kw_only=True)
class ImageFolder(DataSource):
    """Image files in class folders, and in folders within: root/CLASS, or root/train/CLASS and root/test/CLASS.

    The test part may be called `test`, `val` or `valid`; without one, it is cut from the images. Images that show the
    same picture (`data/duplicates.py`) are never in two splits: test images that are also in training are left out, and
    those whose copy is in another class stay in training.
    """

    version: ClassVar[int] = 3

    root: str
    """Folder of the class folders, or of `train` and a test part, each with one folder for each class."""
    size: int = 32
    """Side of the images in pixels: the short side is resized to it, the centre square is kept."""
    grey: bool = False
    """One channel instead of three."""
    held_out: float = 0.1
    """Training images to hold out, each class in proportion; a share if below 1."""
    test: float = 0.2
    """Images to test on where the folder has no test part, each class in proportion; a share if below 1."""
    near_duplicates: bool = True
    """Treat images that look the same as one picture; without it, only those whose pixels are equal."""
    random_resized_crop: tuple[float, ...] = ()
    """Least and largest share of the area that is cut out at random in training, in (0, 1]; (): the whole image."""
    flip: bool = False
    """Flip half of the images horizontally in training; only where the classes are invariant to it."""
    crop: int = 0
    """Largest random shift in training, in pixels."""
    rand_augment: float = 0.0
    """Strength of RandAugment-light in training, in [0, 1]; 0: none."""
    jitter: tuple[float, ...] = ()
    """Largest change of brightness, contrast, saturation and hue in training; (): none."""
    cutout: int = 0
    """Side in pixels of a random square that is set to zero in training; 0: none."""

    def known_sizes(self) -> Sizes | None:
        """Return none if the folder is there, else, as a guess, the counts of CIFAR-10."""
        if Path(self.root).expanduser().is_dir():
            return None
        shape = (1 if self.grey else 3, self.size, self.size)
        return Sizes(train=50_000, test=10_000, classes=10, shape=shape, held_out=self.held_out, assumed=True)

    def load(self) -> Dataset:
        """Read the images into memory, or list them if they are too many.

        Mean and standard deviation of streamed images are those of 2,048 evenly spaced ones.
        """
        root, parts = self._find()
        preprocessing = make_preprocessing(resize=self.size, size=self.size, grey=self.grey)
        augmentation = Augmentation(**{name: getattr(self, name) for name in AUGMENTATION})
        augmentation.check(preprocessing.shape)
        classes = class_names(*(root / part for part in parts))
        files, in_test = _join([file_split(root, part, classes, preprocessing) for part in parts])
        _check_counts(root, files.labels, classes)
        in_memory = len(files) * int(np.prod(preprocessing.shape)) <= IN_MEMORY
        scan = scan_images(root, files.names, preprocessing, keep_pixels=in_memory)
        _check_readable(root, files, scan, classes)
        pictures = ImageGroups.find(files.labels.numpy(), scan, near=self.near_duplicates)
        copies: dict[int, int] = {}
        if len(parts) == 1:
            train, test = pictures.cut(self.test)
        else:
            train, test, copies = pictures.without_copies(in_test)
            if not len(test):
                raise InputError(f"{root}: every image of {parts[1]} is also in {parts[0]}; test on other images")
        summary = pictures.summary(files.names, scan, copies)

        def split(indices: np.ndarray) -> Split:
            if in_memory:
                names = [files.names[index] for index in indices.tolist()]
                return TensorSplit(torch.from_numpy(scan.pixels[indices]), files.labels[indices], names)
            return files.subset(torch.from_numpy(indices))

        measured = train[np.linspace(0, len(train) - 1, MEASURED).astype(int)]
        data = assemble(
            split(train),
            split(test),
            classes,
            held_out=self.held_out,
            augmentation=augmentation,
            groups=pictures.groups[train] if summary.duplicates else None,
            stays=pictures.in_several_classes[train],
            statistics=None if in_memory else channel_statistics(split(measured)),
        )
        notes = (*left_out(root, parts), *_notes(root, summary))
        return replace(data, preprocessing=preprocessing, files=summary, notes=notes)

    def fingerprint(self) -> str:
        """Return a sha256 of the names and sizes of all files; their content is not read."""
        root, parts = self._find()
        class_names(*(root / part for part in parts))
        return folder_hash(root, parts)

    def _find(self) -> tuple[Path, tuple[str, ...]]:
        root = Path(self.root).expanduser()
        return root, find_parts(root)


def _join(splits: Sequence[FileSplit]) -> tuple[FileSplit, np.ndarray]:
    """Return the files of all parts, and whether each is in the test part."""
    first, names = splits[0], [name for split in splits for name in split.names]
    labels = torch.cat([split.labels for split in splits])
    return FileSplit(first.folder, names, labels, first.preprocessing), np.arange(len(names)) >= len(first)


def _check_counts(root: Path, labels: Labels, classes: Sequence[str], beside: str = "") -> None:
    """Refuse a class with too few images."""
    counts = labels.bincount(minlength=len(classes)).tolist()
    if min(counts) < FEWEST:
        rarest = counts.index(min(counts))
        found = f"{counts[rarest]} image{'' if counts[rarest] == 1 else 's'}{beside}"
        raise InputError(
            f"{root}: the class {classes[rarest]} has {found}, and at least {FEWEST} are needed; add some or remove "
            "its folder"
        )


def _check_readable(root: Path, files: FileSplit, scan: ImageScan, classes: Sequence[str]) -> None:
    """Refuse a folder of which nothing, or too little of a class, can be read."""
    bad = [(name, error) for name, error in zip(files.names, scan.errors, strict=True) if error]
    if len(bad) == len(files):
        raise InputError(f"{root}: none of {len(bad)} files can be read; {bad[0][0]} {bad[0][1]}")
    if bad:
        readable = torch.tensor([not error for error in scan.errors])
        _check_counts(root, files.labels[readable], classes, " that can be read")


def _notes(root: Path, summary: FileSummary) -> tuple[str, ...]:
    """Return sentences about files that are left out, and about labels that cannot both be right."""
    notes = []
    if summary.unreadable:
        named = [f"{name} {error}" for name, error in summary.unreadable]
        notes.append(f"{_count(named)} left out: {_first(named, '; ')}")
    if summary.removed:
        named = [f"{test} as {train}" for test, train in summary.removed]
        notes.append(f"{_count(named, 'test image')} left out, as the same picture is in training: {_first(named)}")
    if summary.several_classes:
        named = [f"{one} and {other}" for one, other in summary.several_classes]
        notes.append(f"{_count(named, 'picture')} in several classes, and not held out: {_first(named)}")
    return tuple(printable(f"{root}: {note}") for note in notes)


def _count(named: Sequence[str], noun: str = "file") -> str:
    return f"{len(named):,} {noun}s are" if len(named) > 1 else f"1 {noun} is"


def _first(named: Sequence[str], comma: str = ", ") -> str:
    return comma.join(named[:NAMED]) + (f"{comma}..." if len(named) > NAMED else "")
