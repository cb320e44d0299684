"""Fashion-MNIST: 70,000 grey images of 28 x 28 pixels in 10 classes of clothing, from the original files.

Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine learning
algorithms, 2017. The download from the real address was not tried; the files of Debian's package are read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from sparsemble.data.augmentation import Augmentation
from sparsemble.data.dataset import data_sources
from sparsemble.data.idx import IDX, Release, release

# Sizes and sha256 of the compressed files: TensorFlow Datasets, url_checksums/fashion_mnist.txt. The authors' page and
# torchvision's mnist.py name the md5 sums 8d4fb7e6c68d591d4c3dfef9ec88bf0d, 25c81989df183df01b3e8a0aad5dffbe,
# bef4ecab320f06d8554ea6380940ec79 and bb300cfdad3c16e7a12a480ee83cd310. Contents: Debian's copy, which is the published
# one but for names and times in the headers of gzip: with them put back, the md5 sums are these.
RELEASE = release(
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    {
        "train-images-idx3-ubyte.gz": (
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        "train-labels-idx1-ubyte.gz": (
            29_515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        "t10k-images-idx3-ubyte.gz": (
            4_422_102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        "t10k-labels-idx1-ubyte.gz": (
            5_148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    },
    ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    Path("/usr/share/datasets/fashion-mnist"),
)


@final
@data_sources.register("fashion_mnist")
@dataclass(frozen=True, kw_only=True)
class FashionMNIST(IDX):
    """60,000 images to train with, of which `held_out` are held out, and 10,000 test images.

    The files that Debian's package `dataset-fashion-mnist` installs are read where there are none in `root`.
    """

    root: str = "~/.cache/sparsemble/fashion_mnist"
    """Folder of train-images-idx3-ubyte.gz and the other three files, or of the unpacked ones."""
    flip: bool = False
    """Flip half of the images horizontally in training."""

    def _release(self) -> Release:
        return RELEASE

    def _augmentation(self) -> Augmentation:
        return Augmentation(cutout=self.cutout, crop=self.crop, flip=self.flip)
