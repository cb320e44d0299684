"""ImageNet (ILSVRC 2012): 1,281,167 training and 50,000 validation photographs in 1,000 classes, read from folders.

Source: O. Russakovsky et al., ImageNet large scale visual recognition challenge, 2015. Tested with generated folders of
JPEG files only: the photographs need a registration.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, final

from sparsemble.core.errors import InputError
from sparsemble.data.assemble import Statistics, assemble
from sparsemble.data.augmentation import Augmentation
from sparsemble.data.dataset import Dataset, DataSource, Sizes, data_sources
from sparsemble.data.file_split import class_names, file_split, folder_hash, left_out, make_preprocessing

# The constants that the field uses for ImageNet (torchvision's reference training among others); not measured here.
STATISTICS: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@final
@data_sources.register("imagenet")
@dataclass(frozen=True, kw_only=True)
class ImageNet(DataSource):
    """Folders root/train/WNID and root/val/WNID of JPEG files, decoded on demand; val is the test split.

    Departs from the usual training: the centre square, shifted by up to `crop` pixels with a black border, instead of
    a random resized crop.
    """

    version: ClassVar[int] = 2

    root: str = "~/.cache/sparsemble/imagenet"
    """Folder of train and val, each with one folder for each class."""
    held_out: int = 10_000
    """Training images to hold out, each class in proportion."""
    resize: int = 256
    """Length of the short side after resizing, in pixels."""
    size: int = 224
    """Side of the square that is cut from the centre, in pixels."""
    crop: int = 16
    """Largest random shift in training, in pixels."""
    flip: bool = True
    """Flip half of the images horizontally in training."""

    def known_sizes(self) -> Sizes:
        """Return the sizes of ILSVRC 2012."""
        shape, held_out = (3, self.size, self.size), self.held_out
        return Sizes(train=1_281_167, test=50_000, classes=1000, shape=shape, held_out=held_out, in_memory=False)

    def load(self) -> Dataset:
        """List the files; images are read on access."""
        root, preprocessing = self._find(), make_preprocessing(resize=self.resize, size=self.size)
        classes = class_names(root / "train", root / "val")
        data = assemble(
            file_split(root, "train", classes, preprocessing),
            file_split(root, "val", classes, preprocessing),
            classes,
            held_out=self.held_out,
            augmentation=Augmentation(crop=self.crop, flip=self.flip),
            statistics=STATISTICS,
        )
        return replace(data, preprocessing=preprocessing, notes=left_out(root, ("train", "val")))

    def fingerprint(self) -> str:
        """Return a sha256 of the names and sizes of all files; their content is not read."""
        return folder_hash(self._find(), ("train", "val"))

    def _find(self) -> Path:
        root = Path(self.root).expanduser()
        if not all((root / part).is_dir() for part in ("train", "val")):
            raise InputError(
                f"{root} must hold train/WNID/*.JPEG and val/WNID/*.JPEG; ImageNet needs a registration at "
                "https://image-net.org, so unpack ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar there by hand "
                "and sort the validation images into class folders"
            )
        return root
