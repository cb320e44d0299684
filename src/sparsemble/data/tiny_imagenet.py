"""Tiny ImageNet: 110,000 photographs of 64 x 64 pixels in 200 classes, read from the folders of its archive.

Source: Y. Le and X. Yang, Tiny ImageNet visual recognition challenge, 2015. Tested with 20 of the 200 classes and with
made-up folders; the archive was not at hand.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch

from sparsemble.core.artifacts import file_hash
from sparsemble.core.errors import InputError
from sparsemble.data.assemble import assemble
from sparsemble.data.augmentation import Augmentation
from sparsemble.data.dataset import Dataset, DataSource, Sizes, TensorSplit, data_sources
from sparsemble.data.file_split import FileSplit, class_names, file_split, folder_hash, make_preprocessing
from sparsemble.runtime.images import Preprocessing

ANNOTATIONS = "val_annotations.txt"
SIZE = 64


@final
@data_sources.register("tiny_imagenet")
@dataclass(frozen=True, kw_only=True)
class TinyImageNet(DataSource):
    """Files root/train/CLASS/images/*.JPEG and root/val/images/*.JPEG, or root/val/CLASS; val is the test split.

    The classes of root/val/images are those of root/val/val_annotations.txt, as in the archive. Images are kept in
    memory: 1.3 GB for all classes.
    """

    root: str = "~/.cache/sparsemble/tiny-imagenet-200"
    """Folder of train and val."""
    held_out: float = 0.1
    """Training images to hold out, each class in proportion; a share if below 1."""
    random_resized_crop: tuple[float, ...] = ()
    """Least and largest share of the area that is cut out at random in training, such as [0.35, 1]; []: none."""
    crop: int = 0
    """Largest random shift in training, in pixels."""
    cutout: int = 0
    """Side in pixels of a random square that is set to zero in training; 0: none."""
    flip: bool = False
    """Flip half of the images horizontally in training."""

    def known_sizes(self) -> Sizes:
        """Return the sizes of the published archive."""
        return Sizes(train=100_000, test=10_000, classes=200, shape=(3, SIZE, SIZE), held_out=self.held_out)

    def load(self) -> Dataset:
        """Decode all images."""
        root, preprocessing = self._find(), make_preprocessing(resize=SIZE, size=SIZE)
        classes = _classes(root)
        train, test = file_split(root, "train", classes, preprocessing), _validation(root, classes, preprocessing)
        augmentation = Augmentation(
            random_resized_crop=self.random_resized_crop, crop=self.crop, cutout=self.cutout, flip=self.flip
        )
        data = assemble(_read(train), _read(test), classes, held_out=self.held_out, augmentation=augmentation)
        return replace(data, preprocessing=preprocessing)

    def fingerprint(self) -> str:
        """Return a sha256 of the names and sizes of all images and of the list of classes; images are not read."""
        root = self._find()
        images, path = folder_hash(root, ("train", "val")), root / "val" / ANNOTATIONS
        return hashlib.sha256(f"{images} {file_hash(path)}".encode()).hexdigest() if path.is_file() else images

    def _find(self) -> Path:
        root = Path(self.root).expanduser()
        if not all((root / part).is_dir() for part in ("train", "val")):
            raise InputError(
                f"{root} must hold train/CLASS/images/*.JPEG and val/images/*.JPEG; unpack tiny-imagenet-200.zip "
                "(http://cs231n.stanford.edu/tiny-imagenet-200.zip) there by hand, or set root"
            )
        return root


def _classes(root: Path) -> tuple[str, ...]:
    """Return the names of the class folders, sorted."""
    if not (root / "val" / ANNOTATIONS).is_file():
        return class_names(root / "train", root / "val")
    return class_names(root / "train", root / "train")


def _validation(root: Path, classes: Sequence[str], preprocessing: Preprocessing) -> FileSplit:
    """Return the test images, whose classes are those of their folders or of the list in the archive."""
    folder, path = root / "val", root / "val" / ANNOTATIONS
    if not path.is_file():
        return file_split(root, "val", classes, preprocessing)
    label_of = {name: label for label, name in enumerate(classes)}
    names, labels = [], []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        name, _, rest = line.partition("\t")
        label = label_of.get(rest.split("\t")[0])
        if label is None:
            raise InputError(f'{path}, line {number}: "{line:.60}" must be a file, a tab and one of the class folders')
        if not (folder / "images" / name).is_file():
            raise InputError(f"{path}, line {number}: {folder / 'images' / name} is missing; unpack the archive again")
        names.append(f"images/{name}")
        labels.append(label)
    return FileSplit(folder, names, torch.tensor(labels, dtype=torch.long), preprocessing)


def _read(split: FileSplit) -> TensorSplit:
    return TensorSplit(split.pixels(torch.arange(len(split))), split.labels)
