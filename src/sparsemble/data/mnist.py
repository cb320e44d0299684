"""MNIST: 70,000 grey images of handwritten digits, 28 x 28 pixels, from the original files.

Source: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-based learning applied to document recognition, 1998.
Neither the files nor the download from the real address were tried.
"""

from dataclasses import dataclass
from typing import final

from sparsemble.data.dataset import data_sources
from sparsemble.data.idx import IDX, Release, release

# The authors' page no longer serves the files; this is the copy that TensorFlow Datasets reads. Sizes and sha256 of the
# compressed files: its url_checksums/mnist.txt. torchvision's mnist.py names the md5 sums
# f68b3c2dcbeaaa9fbdd348bbdeb94873, d53e105ee54ea40749a09fcbcd1e9432, 9fb629c4189551a2d022fa330f9573f3 and
# ec29112dd5afa0611ce80d1b7f02629c. The sha256 of the contents are those that several public repositories state; they
# were not verified here, where no copy of the files was available.
RELEASE = release(
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    {
        "train-images-idx3-ubyte.gz": (
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        "train-labels-idx1-ubyte.gz": (
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        "t10k-images-idx3-ubyte.gz": (
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        "t10k-labels-idx1-ubyte.gz": (
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    },
    tuple("0123456789"),
)


@final
@data_sources.register("mnist")
@dataclass(frozen=True, kw_only=True)
class MNIST(IDX):
    """60,000 images to train with, of which `held_out` are held out, and 10,000 test images; never flipped."""

    root: str = "~/.cache/sparsemble/mnist"
    """Folder of train-images-idx3-ubyte.gz and the other three files, or of the unpacked ones."""

    def _release(self) -> Release:
        return RELEASE
