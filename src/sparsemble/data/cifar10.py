"""CIFAR-10: 60,000 colour images of 32 x 32 pixels in 10 classes, from the original binary version.

Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009. The download from the real address
was not tried.
"""

from dataclasses import dataclass
from typing import final

from sparsemble.data.cifar_binary import CIFAR, Release
from sparsemble.data.dataset import data_sources
from sparsemble.data.download import Remote

FOLDER = "cifar-10-batches-bin"
RELEASE = Release(
    archive="cifar-10-binary.tar.gz",
    # Size and sha256: TensorFlow Datasets, url_checksums/cifar10.txt. The dataset's page names the md5 sum
    # c32a1d4ab5d03f1284b67883e8d87530.
    remote=Remote(
        urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
        size=170_052_171,
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    train={f"{FOLDER}/data_batch_{number}.bin": 10_000 for number in range(1, 6)},
    test={f"{FOLDER}/test_batch.bin": 10_000},
    label_bytes=1,
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)


@final
@data_sources.register("cifar10")
@dataclass(frozen=True, kw_only=True)
class CIFAR10(CIFAR):
    """50,000 images to train with, of which `held_out` are held out, and 10,000 test images."""

    root: str = "~/.cache/sparsemble/cifar10"
    """Folder of cifar-10-binary.tar.gz or of its unpacked folder cifar-10-batches-bin."""

    def _release(self) -> Release:
        return RELEASE
